"""Any Hugging Face encoder: other families, decoder LLMs with last-token pooling, tokenizers that lack something."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import processors
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5EncoderModel,
)

from embedder.config.run import EncoderConfig
from embedder.config.tasks import BUILTIN_TASKS
from embedder.errors import ModelError
from embedder.models.encoder import encode, encode_prompted, load_encoder
from embedder.models.encoder_export import export_encoder
from tests.conftest import word_tokenizer

TEXTS = ["The quick brown fox", "Paris", "", "a list holds items in order; " * 9, "é 日本", "Paris"]
SIZE = {"vocab_size": 600, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = {**SIZE, "intermediate_size": 64}
GROUPED = {**WIDE, "num_key_value_heads": 2, "head_dim": 8}
MASKED = {"pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}

BACKBONES = {
    "roberta": lambda: RobertaModel(RobertaConfig(**WIDE, max_position_embeddings=80, pad_token_id=1)),
    "modernbert": lambda: ModernBertModel(ModernBertConfig(**WIDE, **MASKED)),
    "t5": lambda: T5EncoderModel(
        T5Config(vocab_size=600, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, pad_token_id=0)
    ),
    "llama": lambda: LlamaModel(LlamaConfig(**GROUPED)),
    "gpt2": lambda: GPT2Model(GPT2Config(vocab_size=600, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
    "qwen3": lambda: Qwen3Model(Qwen3Config(**GROUPED)),
}
DECODERS = ("llama", "gpt2", "qwen3")


def save(folder, name, *, begins=False, ends=False, pads=True, end="[END]"):
    """A random model with a tokenizer that may begin and end texts, and may know no padding."""
    tokenizer = word_tokenizer(["[PAD]", "[BEGIN]", "[END]", "[UNK]"])
    wanted = [("[BEGIN]", 1)] * begins + [("[END]", 2)] * ends
    if wanted:
        single = " ".join(["[BEGIN]"] * begins + ["$A"] + ["[END]"] * ends)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, pair=f"{single} $B:1", special_tokens=wanted
        )
    names = {"bos_token": "[BEGIN]", "unk_token": "[UNK]"}
    if end:
        names["eos_token"] = end
    if pads:
        names["pad_token"] = "[PAD]"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **names).save_pretrained(folder)
    torch.manual_seed(3)
    BACKBONES[name]().save_pretrained(folder)
    return folder


def config(folder, pooling):
    return EncoderConfig(model=str(folder), pooling=pooling, max_tokens=24, batch_tokens=64)


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("pads", [True, False], ids=["pad token", "no pad token"])
def test_encoder_of_every_family_gives_one_vector_a_text_here_exported_and_in_sentence_transformers(
    tmp_path, name, pads
):
    pooling = "last" if name in DECODERS else "mean"
    folder = save(tmp_path / "base", name, begins=True, ends=name not in DECODERS, pads=pads)
    encoder = load_encoder(config(folder, pooling), device="cpu")
    together = encode_prompted(encoder, TEXTS)
    assert together.shape == (len(TEXTS), 32)
    assert np.abs(together[0] - together[1]).max() > 1e-3
    for i, text in enumerate(TEXTS):
        np.testing.assert_allclose(encode_prompted(encoder, [text])[0], together[i], atol=1e-5)
    export_encoder(encoder, tmp_path / "model", BUILTIN_TASKS)
    again = load_encoder(config(tmp_path / "model", pooling), device="cpu")
    np.testing.assert_allclose(encode_prompted(again, TEXTS), together, atol=1e-6)
    other = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    found = other.encode(TEXTS, prompt_name="qa_passage", batch_size=len(TEXTS))
    np.testing.assert_allclose(found, encode(encoder, TEXTS, BUILTIN_TASKS["qa"], "passage"), atol=1e-5)


@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.parametrize("ends", [True, False])
def test_last_token_pooling_sees_one_end_token_behind_every_text(tmp_path, begins, ends):
    folder = save(tmp_path / "base", "llama", begins=begins, ends=ends)
    encoder = load_encoder(config(folder, "last"), device="cpu")
    for row in encoder.tokenize(TEXTS):
        assert row[-1] == 2 and row.count(2) == 1 and len(row) <= 24
        assert row.count(1) == (row[0] == 1) == begins
    export_encoder(encoder, tmp_path / "model", BUILTIN_TASKS)
    assert load_encoder(config(tmp_path / "model", "last"), device="cpu").tokenize(TEXTS) == encoder.tokenize(TEXTS)


def test_complete_tokenizer_changes_nothing_for_other_poolings(tmp_path):
    folder = save(tmp_path / "base", "llama")
    encoder = load_encoder(config(folder, "mean"), device="cpu")
    assert encoder.tokenize(["Paris"]) == [AutoTokenizer.from_pretrained(folder)("Paris")["input_ids"]]


def test_complete_tokenizer_refuses_last_token_pooling_without_an_end_token(tmp_path):
    folder = save(tmp_path / "base", "llama", end=None)
    with pytest.raises(ModelError, match="take pooling 'mean'"):
        load_encoder(config(folder, "last"), device="cpu")


@pytest.mark.parametrize(("name", "limit"), [("roberta", 78), ("gpt2", 64)])
def test_check_positions_refuses_texts_beyond_the_models_positions(tmp_path, name, limit):
    folder = save(tmp_path / "base", name, ends=True)
    fits = config(folder, "mean").model_copy(update={"max_tokens": limit})
    encoder = load_encoder(fits, device="cpu")
    assert len(encoder.tokenize(["fox " * 200])[0]) == limit
    encode_prompted(encoder, ["fox " * 200])
    with pytest.raises(ModelError, match=f"takes at most {limit} tokens"):
        load_encoder(fits.model_copy(update={"max_tokens": limit + 1}), device="cpu")


def test_set_dropout_sets_every_rate(tmp_path):
    folder = save(tmp_path / "base", "llama")
    encoder = load_encoder(config(folder, "last"), device="cpu", dropout=0.3).train()
    assert {layer.self_attn.attention_dropout for layer in encoder.backbone.layers} == {0.3}
    rows = encoder.tokenize(["The quick brown fox"])
    assert (encoder(rows) - encoder(rows)).abs().max() > 1e-4
