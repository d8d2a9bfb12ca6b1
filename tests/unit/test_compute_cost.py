"""Operations counted by hand."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config

from embedder.config.run import LlmConfig
from embedder.labelling.compute_cost import ModelSize, ModelWork, memory_line, model_size, multiplied_weights
from embedder.models.device import matmul_rate
from embedder.models.locate import count_parameters
from embedder.models.onednn import pack_linear_layers
from tests.unit.tiny_llms import GROUPED, SEQUENTIAL, SHARING, save_tiny

QUANTISED = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False},
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
}
"""As config.json has it."""


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


@pytest.mark.parametrize("method", ["awq", "gptq", "bitsandbytes", "fp8"])
def test_multiplied_weights_do_not_depend_on_how_they_are_stored(tmp_path, method):
    folder = save_tiny(SHARING["mistral"], tmp_path)
    size = size_of(SHARING["mistral"])
    assert multiplied_weights(folder) == size.layers + size.head
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    quantised = {**config, "quantization_config": QUANTISED[method]}
    (folder / "config.json").write_text(json.dumps(quantised), encoding="utf-8")
    assert multiplied_weights(folder) == size.layers + size.head


def test_multiplied_weights_of_a_gguf_file_come_from_its_bytes(tmp_path):
    (tmp_path / "llm.gguf").write_bytes(b"GGUF" + bytes(896))
    assert multiplied_weights(tmp_path) == 900 * 8 / 4.5


def test_memory_line_packed_weights_take_what_their_files_take(tmp_path):
    folder = save_tiny(SHARING["mistral"], tmp_path)
    numbers = count_parameters(folder)
    llm = LlmConfig(model=str(folder), dtype="bfloat16")
    assert memory_line(llm, 0) == f"the LLM's weights take about {2 * numbers / 1e9:,.2g} GB"
    assert memory_line(llm, 2).endswith(f"GB on 2 GPUs together, {numbers / 1e9:,.2g} GB on each")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": QUANTISED["fp8"]}), "utf-8")
    size = (folder / "model.safetensors").stat().st_size
    assert memory_line(llm, 1) == f"the LLM's weights take about {size / 1e9:,.2g} GB"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matmul_rate_the_peak_is_a_rate(monkeypatch, dtype):
    monkeypatch.setattr("embedder.models.device.SIZE", {"cpu": 64})
    monkeypatch.setattr("embedder.models.device.SECONDS", 0.01)
    assert 1e6 < matmul_rate(torch.device("cpu"), dtype) < 1e14
