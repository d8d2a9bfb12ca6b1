"""Pairs a second of a random Llama in bfloat16 on a GPU: how fast the scorer is needs no trained weights."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from embedder.labelling.compute_cost import ModelWork
from embedder.labelling.prefix_tree import PackedPrompt
from embedder.labelling.tree_attention import ATTENTION
from embedder.labelling.tree_backend import TreeBackend
from embedder.models.causal_lm import CausalLm
from embedder.models.device import matmul_rate

REFERENCE_PAIRS = 185.0
"""Single-output scorings a second and A100 that the reference's authors state."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama and of what it reads."""

    hidden: int = 4096
    between: int = 11008
    layers: int = 32
    heads: int = 32
    vocabulary: int = 32000
    prefix: int = 300
    output: int = 15
    outputs: int = 11
    candidates: int = 8
    groups: int = 16
    batch_tokens: int = 16384


def random_llama(shape: Shape, device: torch.device) -> CausalLm:
    """A Llama of this shape with random weights; it has no tokenizer, and the scorer needs none."""
    config = LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.between,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        vocab_size=shape.vocabulary,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.eval().set_attn_implementation(ATTENTION)
    return CausalLm(model, PreTrainedTokenizerFast)


def random_groups(shape: Shape, outputs: int) -> list[PackedPrompt]:
    """Prompts of random tokens: all of a group have the same outputs, no two the same prefix."""
    random = np.random.default_rng(0)

    def tokens(count: int) -> list[int]:
        return [int(token) for token in random.integers(3, shape.vocabulary, count)]

    prompts = []
    for _ in range(shape.groups):
        said = [tokens(shape.output) for _ in range(outputs)]
        prompts += [PackedPrompt(tokens(shape.prefix), said) for _ in range(shape.candidates)]
    return prompts


def measure(device: torch.device, shape: Shape) -> dict[str, float]:
    """Pairs a second, ranked and by likelihood alone, and what share of the device's matrix products that takes."""
    lm = random_llama(shape, device)
    peak = matmul_rate(device, torch.bfloat16)
    backend = TreeBackend(lm, shape.batch_tokens)
    found = {"peak_flops": peak}
    for name, outputs in (("ranked", shape.outputs), ("likelihood", 1)):
        prompts = random_groups(shape, outputs)
        backend.score(prompts[: shape.candidates])
        backend.work = ModelWork(backend.work.size)
        began = time.perf_counter()
        backend.score(prompts)
        seconds = time.perf_counter() - began
        found |= {
            f"{name}_pairs_a_second": len(prompts) / seconds,
            f"{name}_share_of_peak": backend.work.flops / seconds / peak,
        }
    return found | {"ranked_vs_reference": found["ranked_pairs_a_second"] / REFERENCE_PAIRS}
