"""Encoding as a GPU does it, on a CPU: padded batches, short memory, weights in bfloat16, compiled layers."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest
import torch
from transformers import BertModel, ModernBertConfig, ModernBertModel

from embedder.errors import DeviceError, ModelError
from embedder.models import compiled
from embedder.models.compiled import compile_tried
from embedder.models.encoder import (
    TextEncoder,
    aligned_lengths,
    encode_batches,
    encode_prompted,
    encode_tokens,
    load_encoder,
)
from embedder.models.gpu_encoder import hold_in_bfloat16, prepare_on_gpu, reads_key_masks
from embedder.models.onnx import PROBES
from tests.unit.test_encoders import BACKBONES, DECODERS, MASKED, WIDE, config, save

TEXTS = ["The quick brown fox", "Paris", "", "A list holds items in order. " * 5, "é 日本", "the bridge", "Paris"]


@pytest.fixture
def encoder(tiny_encoder):
    return load_encoder(tiny_encoder, device="cpu")


def test_padded_rows_worked_by_hand(encoder):
    padding = encoder.tokenizer.pad_token_id
    batch = encoder.padded([[5, 6], [7], [8, 9, 10]], [4, 0, 2])
    assert batch.ids_BL.tolist() == [[5, 6, padding], [7, padding, padding], [8, 9, 10]]
    assert batch.mask_BL.tolist() == [[1, 1, 0], [1, 0, 0], [1, 1, 1]]
    assert batch.ids_BL.dtype == batch.mask_BL.dtype == torch.int64
    part = batch.part([1, 2])
    assert (part.indices, part.ids_BL.tolist()) == ([0, 2], [[7, padding, padding], [8, 9, 10]])


def test_padded_rows_of_a_text_without_tokens_are_padding_alone(encoder):
    assert encoder.padded([[], [7]], [0, 1]).mask_BL.tolist() == [[0], [1]]
    assert encoder.padded([[]], [0]).ids_BL.shape == (1, 0)


@pytest.mark.parametrize(
    ("longest", "most", "length"),
    [(1, 256, 8), (8, 256, 8), (98, 256, 104), (97, 100, 100), (100, 100, 100), (9, 8, 9)],
)
def test_aligned_lengths_are_multiples_of_eight_within_what_the_model_reads(longest, most, length):
    assert aligned_lengths(np.array([longest, 0]), most).tolist() == [length, 0]


def test_encode_tokens_gives_the_bits_of_a_forward_pass(encoder):
    rows = encoder.tokenize(TEXTS)
    with torch.inference_mode():
        wanted = encoder(rows).numpy()
    assert encode_tokens(encoder, rows).tobytes() == wanted.tobytes()


def test_encode_batches_of_longer_padding_gives_the_same_vectors(encoder):
    """A GPU fills rows up to a multiple of eight tokens."""
    rows = encoder.tokenize(TEXTS)
    batch = encoder.padded([*rows, [2] * 64], list(range(len(TEXTS) + 1)))
    np.testing.assert_allclose(encode_batches(encoder, [batch])[:-1], encode_tokens(encoder, rows), atol=1e-5)


class ShortOfMemory(TextEncoder):
    """An encoder on a device with room for so many padded tokens."""

    room = 0
    refused: list[int]

    def embed(self, batch):
        if batch.ids_BL.numel() > self.room:
            self.refused.append(batch.ids_BL.numel())
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().embed(batch)


def short_of_memory(encoder, room):
    short = ShortOfMemory(encoder.backbone, encoder.tokenizer, encoder.config)
    short.room, short.refused = room, []
    return short


def test_encode_tokens_halves_what_does_not_fit_and_remembers_it(encoder, caplog):
    rows = [[5, 6, 7, 8]] * 16
    short = short_of_memory(encoder, 20)
    found = encode_tokens(short, rows)
    np.testing.assert_allclose(found, encode_tokens(encoder, rows), atol=1e-5)
    assert short.refused == [64, 32]
    assert "encoding: 64 padded tokens at once do not fit into memory" in caplog.text
    assert encode_tokens(short, rows).tobytes() == found.tobytes() and short.refused == [64, 32]


def test_encode_tokens_fails_where_one_text_does_not_fit(encoder):
    with pytest.raises(torch.OutOfMemoryError):
        encode_tokens(short_of_memory(encoder, 3), [[5, 6, 7, 8], [9]])


@pytest.mark.parametrize("name", BACKBONES)
def test_bfloat16_weights_keep_the_vectors_of_every_family(tmp_path, name):
    folder = save(tmp_path, name, begins=True, ends=name not in DECODERS)
    encoder = load_encoder(config(folder, "last" if name in DECODERS else "mean"), device="cpu")
    wanted = encode_prompted(encoder, TEXTS)
    hold_in_bfloat16(encoder.backbone)
    assert {weight.dtype for weight in encoder.backbone.parameters()} == {torch.bfloat16}
    frequencies = [buffer for path, buffer in encoder.backbone.named_buffers() if path.endswith("inv_freq")]
    assert all(buffer.dtype == torch.float32 for buffer in frequencies)
    found = encode_prompted(encoder, TEXTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert (found * wanted).sum(1).min() > 0.999


def test_compile_tried_compiles_each_layer_and_keeps_the_vectors(encoder):
    wanted = encode_prompted(encoder, TEXTS)
    calls = []
    is_right = lambda: bool(calls.append(1) or len(encode_prompted(encoder, TEXTS)))  # noqa: E731
    assert compile_tried(encoder.backbone, is_right, "aot_eager")
    assert isinstance(encoder.backbone, BertModel) and calls
    assert all(layer._compiled_call_impl is not None for layer in encoder.backbone.encoder.layer)
    with torch.compiler.set_stance("fail_on_recompile"):
        np.testing.assert_allclose(encode_prompted(encoder, TEXTS), wanted, atol=1e-6)


def other_results(encoder):
    return False


def fails_to_compile(encoder):
    raise torch._dynamo.exc.InternalTorchDynamoError("no kernel\nfor this layer")


def fails_at_first_launch(encoder):
    raise subprocess.CalledProcessError(1, ["gcc"])


@pytest.mark.parametrize(
    ("trial", "reason"),
    [
        (other_results, "its results are others"),
        (fails_to_compile, "no kernel"),
        (fails_at_first_launch, "Command '['gcc']' returned"),
    ],
)
def test_compile_tried_leaves_a_network_as_it_was_where_that_goes_wrong(encoder, caplog, trial, reason):
    wanted = encode_prompted(encoder, TEXTS)
    assert not compile_tried(encoder.backbone, lambda: trial(encoder))
    assert f"BertModel runs uncompiled, which is slower: {reason}" in caplog.text
    assert encode_prompted(encoder, TEXTS).tobytes() == wanted.tobytes()


def test_compile_tried_short_memory_says_nothing_of_the_compiler(encoder):
    def fail():
        raise torch.OutOfMemoryError("pretended")

    with pytest.raises(torch.OutOfMemoryError):
        compile_tried(encoder.backbone, fail)


def key_masked(folder, pooling):
    encoder = load_encoder(config(folder, pooling), device="cpu")
    return encoder, reads_key_masks(encoder, encoder.tokenize(PROBES))


@pytest.mark.parametrize(("name", "reads"), [("roberta", True), ("modernbert", True), *((d, False) for d in DECODERS)])
def test_key_masks_are_read_where_each_token_sees_the_whole_text(tmp_path, name, reads):
    pooling = "last" if name in DECODERS else "mean"
    encoder, found = key_masked(save(tmp_path, name, begins=True, ends=name not in DECODERS), pooling)
    assert found == reads and not encoder.masks_keys
    wanted = encode_prompted(encoder, TEXTS)
    encoder.masks_keys = found
    np.testing.assert_allclose(encode_prompted(encoder, TEXTS), wanted, atol=1e-5)


def test_key_masks_are_not_read_where_layers_have_a_window(tmp_path, monkeypatch):
    windowed = ModernBertConfig(**WIDE, **MASKED, local_attention=8, global_attn_every_n_layers=2)
    monkeypatch.setitem(BACKBONES, "windowed", lambda: ModernBertModel(windowed))
    assert not key_masked(save(tmp_path, "windowed", begins=True, ends=True), "mean")[1]


@pytest.fixture
def fake_gpu(monkeypatch):
    """A GPU that has bfloat16, and a machine with all that compiling needs."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
    monkeypatch.setattr("embedder.models.gpu_encoder.lacking_compiler", lambda: None)


def prepared(tiny_encoder, dtype, compile_it=True):
    encoder = load_encoder(tiny_encoder.model_copy(update={"dtype": dtype}), device="cpu")
    with torch.compiler.set_stance("default", force_backend="aot_eager"):
        prepare_on_gpu(encoder, encoder.tokenize(PROBES), compile_it)
    return encoder


@pytest.mark.parametrize(("dtype", "stored"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
@pytest.mark.parametrize("compile_it", [True, False])
def test_prepare_on_gpu_keeps_the_vectors_in_each_format(tiny_encoder, fake_gpu, dtype, stored, compile_it):
    encoder = prepared(tiny_encoder, dtype, compile_it)
    assert encoder.backbone.dtype == stored and encoder.masks_keys and not encoder.in_bfloat16
    layers = encoder.backbone.encoder.layer
    assert [layer._compiled_call_impl is not None for layer in layers] == [compile_it] * len(layers)
    with torch.compiler.set_stance("default", force_backend="aot_eager"):
        found = encode_prompted(encoder, TEXTS)
    wanted = encode_prompted(load_encoder(tiny_encoder, device="cpu"), TEXTS)
    least = 1 - 1e-5 if dtype == "float32" else 0.999
    assert found.dtype == np.float32 and (found * wanted).sum(1).min() > least


def test_prepare_on_gpu_refuses_a_format_that_the_gpu_has_not(tiny_encoder, fake_gpu, monkeypatch):
    with pytest.raises(ModelError, match="int8 is for CPUs"):
        prepared(tiny_encoder, "int8")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    with pytest.raises(DeviceError, match="dtype is bfloat16, which Tesla V100 does not have; take float32"):
        prepared(tiny_encoder, "bfloat16")


def test_prepare_on_gpu_says_what_compiling_lacks(tiny_encoder, fake_gpu, monkeypatch, caplog):
    monkeypatch.setattr("embedder.models.gpu_encoder.lacking_compiler", lambda: "Triton")
    encoder = prepared(tiny_encoder, "float32")
    assert encoder.backbone.encoder.layer[0]._compiled_call_impl is None
    assert "runs uncompiled, which is slower: there is no Triton" in caplog.text


def test_lacking_compiler_names_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(compiled, "find_spec", lambda name: None)
    assert compiled.lacking_compiler() == "Triton"
    monkeypatch.setattr(compiled, "find_spec", lambda name: name)
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    assert compiled.lacking_compiler() == "a C compiler (gcc)"
    monkeypatch.setattr(compiled.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(compiled.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert compiled.lacking_compiler() == f"{tmp_path}/Python.h (python3-dev)"
    (tmp_path / "Python.h").touch()
    assert compiled.lacking_compiler() is None
