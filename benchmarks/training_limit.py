"""What the machine's matrix products allow a training step at most, and where its time goes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import torch
from torch import nn

from embedder.config.tasks import TaskSpec
from embedder.models.encoder import TextEncoder
from embedder.training.token_batches import distinct_rows
from embedder.training.training_rows import Batch

PARTS = {
    "matrix products": ("mkldnn::", "aten::mm", "aten::addmm", "aten::bmm"),
    "attention": ("scaled_dot_product", "flash_attention"),
    "norms": ("layer_norm",),
    "activations": ("gelu",),
    "optimiser": ("_foreach", "adam", "aten::lerp", "aten::addcdiv", "aten::addcmul"),
    "sums, copies, elementwise": ("aten::",),
}
"""What an operation's name begins with or holds; the first that fits counts."""


def necessary_flops(encoder: TextEncoder, batch: Batch, tasks: dict[str, TaskSpec]) -> float:
    """6 x weights of linear layers x real tokens, each distinct text once: forward, and backward by rows and weights.

    Attention, norms and the update are not in it, so the share of the limit is what products alone would allow.
    """
    rows, _ = distinct_rows(encoder.tokenize(batch.prompted(tasks)))
    return 6.0 * linear_weights(encoder) * sum(map(len, rows))


def linear_weights(encoder: TextEncoder) -> int:
    """Weights that every token is multiplied with; not those of a pooler, whose output is not used."""
    layers = [(name, layer) for name, layer in encoder.backbone.named_modules() if isinstance(layer, nn.Linear)]
    return sum(layer.weight.numel() for name, layer in layers if "pooler" not in name)


def time_shares(step: Callable[[], object]) -> dict[str, float]:
    """Shares of a step's wall time by kind of operation; the rest is Python, DeepSpeed and waiting."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        began = time.perf_counter()
        step()
        whole = 1e6 * (time.perf_counter() - began)
    spent: Counter[str] = Counter()
    for event in profile.key_averages():
        part = _part(event.key)
        if part is not None:
            spent[part] += event.self_cpu_time_total / whole
    shares = {part: float(spent[part]) for part in PARTS}
    return shares | {"rest": 1 - sum(shares.values())}


def _part(name: str) -> str | None:
    lowered = name.lower()
    return next((part for part, marks in PARTS.items() if any(mark in lowered for mark in marks)), None)
