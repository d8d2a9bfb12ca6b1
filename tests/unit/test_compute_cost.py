"""Operations counted by hand."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config

from embedder.labelling.compute_cost import ModelSize, ModelWork, model_size
from embedder.models.device import matmul_rate
from embedder.models.onednn import pack_linear_layers
from tests.unit.tiny_llms import GROUPED, SEQUENTIAL, SHARING


def size_of(config) -> ModelSize:
    return model_size(AutoModelForCausalLM.from_config(config))


def test_model_work_counts_operations_by_hand():
    """2 tokens through 10 weights, 1 of them through 3, 4 pairs of width 5: 2 x 20 + 2 x 3 + 4 x 20."""
    work = ModelWork(ModelSize(layers=10, head=3, attention=5))
    work.add(tokens=1, head_tokens=1, attended=3)
    work.add(tokens=1, head_tokens=0, attended=1)
    assert (work.tokens, work.head_tokens, work.attended) == (2, 1, 4)
    assert work.flops == 2 * 20 + 2 * 3 + 4 * 20


LAYER = 32 * 32 + 2 * 32 * 16 + 32 * 32
"""Weights of queries, keys and values (half as many heads), and output."""


def test_model_size_of_a_llama_by_hand():
    assert size_of(SHARING["mistral"]) == ModelSize(2 * (LAYER + 3 * 32 * 64), 32 * 600, 2 * 32)


def test_model_size_tied_weights_are_the_output_layer():
    assert size_of(SHARING["tied llama"]) == size_of(SHARING["mistral"])


def test_model_size_packed_layers_count_as_before():
    model = AutoModelForCausalLM.from_config(SHARING["mistral"])
    pack_linear_layers(model, keep=model.get_output_embeddings())
    assert model_size(model) == size_of(SHARING["mistral"])


def test_model_size_layers_that_hold_their_weight_the_other_way_round():
    size = size_of(GPT2Config(vocab_size=600, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    assert size == ModelSize(2 * (4 * 32 * 32 + 2 * 32 * 128), 32 * 600, 2 * 32)


def test_model_size_of_four_experts_the_two_that_a_token_goes_through_count():
    assert size_of(SHARING["mixtral"]).layers == 2 * (LAYER + 2 * 3 * 32 * 64)


def test_model_size_a_width_of_heads_of_its_own():
    assert size_of(SHARING["mistral"].__class__(**GROUPED, head_dim=16)).attention == 2 * 64


def test_model_size_a_model_without_attention_has_none():
    assert size_of(SEQUENTIAL["mamba, no attention"]).attention == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matmul_rate_the_peak_is_a_rate(monkeypatch, dtype):
    monkeypatch.setattr("embedder.models.device.SIZE", {"cpu": 64})
    monkeypatch.setattr("embedder.models.device.SECONDS", 0.01)
    assert 1e6 < matmul_rate(torch.device("cpu"), dtype) < 1e14
