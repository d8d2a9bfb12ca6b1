"""Loading the LLM, and the conversion of a GGUF file that is done once."""

from __future__ import annotations

import pytest
import torch

from embedder.config import LlmConfig
from embedder.errors import ModelError
from embedder.lm import load_lm, prepare_lm
from embedder.locate import file_sha256


def test_a_folder_of_safetensors_is_used_where_it_is(tiny_llm, tiny_llama_folder, tmp_path):
    assert prepare_lm(tiny_llm, tmp_path / "cache") == tiny_llama_folder
    assert not (tmp_path / "cache").exists()


def test_a_loaded_model_is_in_evaluation_mode_and_of_the_dtype_asked_for(tiny_llm, tmp_path):
    lm = load_lm(tiny_llm.model_copy(update={"dtype": "bfloat16"}), tmp_path, device="cpu")
    assert not lm.model.training
    assert (next(lm.model.parameters()).dtype, lm.device.type) == (torch.bfloat16, "cpu")


def test_tokens_carry_no_special_ones_and_decode_to_the_text(tiny_llm, tmp_path):
    lm = load_lm(tiny_llm, tmp_path, device="cpu")
    assert lm.tokenizer.decode(lm.tokens(" the lazy dog: é")) == " the lazy dog: é"
    assert not set(lm.tokens("the dog")) & set(lm.tokenizer.all_special_ids)


def test_a_gguf_file_that_was_converted_is_not_converted_again(tmp_path):
    packed = tmp_path / "llm" / "weights.gguf"
    packed.parent.mkdir()
    packed.write_bytes(b"stands for a GGUF file")
    done = tmp_path / "cache" / f"weights-{file_sha256(packed)[:16]}"
    done.mkdir(parents=True)
    assert prepare_lm(LlmConfig(model=str(packed.parent)), tmp_path / "cache") == done


def test_a_failed_conversion_leaves_nothing_in_the_cache(tmp_path):
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "weights.gguf").write_bytes(b"no GGUF file at all")
    with pytest.raises((ValueError, OSError)):
        prepare_lm(LlmConfig(model=str(tmp_path / "llm")), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_missing_llm_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no such folder"):
        load_lm(LlmConfig(model=str(tmp_path / "gone")), tmp_path)
