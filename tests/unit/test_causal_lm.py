"""Loading the LLM, and the conversion of a GGUF file that is done once."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from tokenizers import processors
from transformers import (
    AutoModelForCausalLM,
    BertLMHeadModel,
    BertModel,
    LlamaModel,
    T5Config,
    T5ForConditionalGeneration,
)

from embedder.config.run import LlmConfig
from embedder.errors import ModelError
from embedder.hashing import file_sha256
from embedder.models.causal_lm import check_llm, load_lm, prepare_lm, reads_ahead
from tests.conftest import save_lm
from tests.unit.tiny_llms import ENCODER, SEQUENTIAL, SHARING


def test_prepare_lm_uses_a_folder_of_safetensors_where_it_is(tiny_llm, tiny_llama_folder, tmp_path):
    assert prepare_lm(tiny_llm, tmp_path / "cache") == tiny_llama_folder
    assert not (tmp_path / "cache").exists()


def test_load_lm_gives_evaluation_mode_and_the_dtype_asked_for(tiny_llm, tmp_path):
    lm = load_lm(tiny_llm.model_copy(update={"dtype": "bfloat16"}), tmp_path, device="cpu")
    assert not lm.model.training
    assert (next(lm.model.parameters()).dtype, lm.device.type) == (torch.bfloat16, "cpu")


def test_causal_lm_tokens_carry_no_special_ones_and_decode_to_the_text(tiny_llm, tmp_path):
    lm = load_lm(tiny_llm, tmp_path, device="cpu")
    assert lm.tokenizer.decode(lm.tokens(" the lazy dog: é")) == " the lazy dog: é"
    assert not set(lm.tokens("the dog")) & set(lm.tokenizer.all_special_ids)


def test_prepare_lm_converts_a_gguf_file_once(tmp_path):
    packed = tmp_path / "llm" / "weights.gguf"
    packed.parent.mkdir()
    packed.write_bytes(b"GGUF and what stands for a model")
    done = tmp_path / "cache" / f"weights-{file_sha256(packed)[:16]}"
    done.mkdir(parents=True)
    assert prepare_lm(LlmConfig(model=str(packed.parent)), tmp_path / "cache") == done


def test_prepare_lm_that_fails_leaves_nothing_in_the_cache(tmp_path):
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "weights.gguf").write_bytes(b"GGUF and nothing else")
    with pytest.raises(ModelError, match="cannot be loaded"):
        prepare_lm(LlmConfig(model=str(tmp_path / "llm")), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_check_llm_refuses_a_gguf_file_that_was_cut_off(tmp_path):
    packed = tmp_path / "llm" / "weights.gguf"
    packed.parent.mkdir()
    writer = GGUFWriter(str(packed), "llama")
    writer.add_tensor("token_embd.weight", np.ones((64, 64), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    check_llm(LlmConfig(model=str(packed.parent)))
    whole = packed.read_bytes()
    for length in (8, 30, len(whole) // 2, len(whole) - 1):
        packed.write_bytes(whole[:length])
        with pytest.raises(ModelError, match="cannot be loaded") as caught:
            check_llm(LlmConfig(model=str(packed.parent)))
        assert "\n" not in str(caught.value)


def test_load_lm_refuses_a_missing_folder(tmp_path):
    with pytest.raises(ModelError, match="no such folder"):
        load_lm(LlmConfig(model=str(tmp_path / "gone")), tmp_path, "cpu")


def refusal(model, folder):
    """What the folder of a model is refused with."""
    save_lm(folder, model)
    with pytest.raises(ModelError) as caught:
        load_lm(LlmConfig(model=str(folder)), folder / "cache", device="cpu")
    return str(caught.value)


def test_load_lm_refuses_an_encoder_decoder(tmp_path):
    torch.manual_seed(0)
    config = T5Config(vocab_size=600, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
    assert "is a t5 model with encoder and decoder, which is no causal language model" in refusal(
        T5ForConditionalGeneration(config), tmp_path
    )


@pytest.mark.parametrize(
    ("text", "reason"), [("{", "config.json: not JSON"), ('{"model_type": "nosuch"}', "has model type `nosuch`")]
)
def test_load_lm_refuses_a_config_that_cannot_be_read_in_one_line(tiny_llama_folder, tmp_path, text, reason):
    folder = shutil.copytree(tiny_llama_folder, tmp_path / "llm")
    (folder / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=reason) as caught:
        load_lm(LlmConfig(model=str(folder)), tmp_path, device="cpu")
    assert "\n" not in str(caught.value)


def test_load_lm_refuses_a_model_without_its_output_layer(tmp_path):
    """Loading it would only warn, and fill the layer with random numbers."""
    assert "lacks weights, such as lm_head.weight" in refusal(
        LlamaModel(
            SHARING["tied llama"].__class__(**{**SHARING["tied llama"].to_dict(), "tie_word_embeddings": False})
        ),
        tmp_path,
    )


def test_load_lm_refuses_an_encoder(tmp_path, tiny_encoder_folder):
    assert "lacks weights, such as cls." in refusal(BertModel(ENCODER), tmp_path / "without")
    assert "sees the words it is to predict" in refusal(BertLMHeadModel(ENCODER), tmp_path / "with")
    with pytest.raises(ModelError, match="lacks weights"):
        load_lm(LlmConfig(model=str(tiny_encoder_folder)), tmp_path, device="cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*SHARING, *SEQUENTIAL])
def test_reads_ahead_is_false_of_every_causal_model(name, dtype):
    torch.manual_seed(1)
    assert not reads_ahead(AutoModelForCausalLM.from_config((SHARING | SEQUENTIAL)[name], dtype=dtype).eval())


@pytest.fixture(scope="module")
def lm(tiny_llm, tmp_path_factory):
    return load_lm(tiny_llm, tmp_path_factory.mktemp("cache"), device="cpu")


@pytest.mark.parametrize(
    ("single", "lead"),
    [("$A", []), ("[UNK] $A", [1]), ("[UNK] [PAD] $A [END]", [1, 0]), ("$A [END]", []), ("[END] $A [END]", [2])],
)
def test_causal_lm_lead_tokens_are_those_before_every_text(lm, single, lead):
    tokenizer = copy.deepcopy(lm.tokenizer)
    names = [(f"[{name}]", token) for token, name in enumerate(["PAD", "UNK", "END"]) if name in single]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=names)
    assert replace(lm, tokenizer=tokenizer).lead_ids == lead


def test_causal_lm_end_tokens_are_those_of_tokenizer_and_model(lm):
    assert lm.tokenizer.eos_token_id == 2
    model = copy.copy(lm.model)
    for known, ends in ((None, {2}), (2, {2}), (7, {2, 7}), ([7, 8], {2, 7, 8})):
        model.generation_config = copy.deepcopy(lm.model.generation_config)
        model.generation_config.eos_token_id = known
        assert replace(lm, model=model).end_ids == ends
    model.generation_config = None
    assert replace(lm, model=model).end_ids == {2}
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.eos_token = None
    assert replace(lm, model=model, tokenizer=tokenizer).end_ids == set()


def test_causal_lm_stop_tokens_are_those_with_a_stop_text_in_them(lm):
    texts = {token: lm.tokenizer.decode([token]) for token in range(len(lm.tokenizer))}
    assert lm.stop_ids(()) == set()
    (newline,) = lm.tokens("\n")
    assert newline in lm.stop_ids(("\n",))
    for stop in (("\n",), ("o",), ("ox", "r")):
        assert lm.stop_ids(stop) == {token for token, text in texts.items() if any(mark in text for mark in stop)}
    assert lm.stop_ids(("ox", "r")) == lm.stop_ids(("ox",)) | lm.stop_ids(("r",))
    assert len(lm.stop_ids(("o",))) > 5
