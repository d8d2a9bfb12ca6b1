"""What the machine's matrix products allow at most, and where the scorer's time goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from embedder.labelling.backends import LlmBackend
from embedder.labelling.compute_cost import ModelSize
from embedder.labelling.prefix_tree import PackedPrompt, build_tree, predictions
from embedder.labelling.tree_attention import ATTENTION, tree_attention
from embedder.labelling.tree_backend import TreeBackend, in_lanes
from embedder.models.onednn import has_onednn, pack_weight, packed_linear

SECONDS = 0.15
"""Over which each product's rate is taken."""
SQUARES = (1536, 4096)
LIKE_A_LAYER = (1024, 576, 960)
"""Rows, inputs and outputs of a product of SmolLM2-135M that stays within the caches."""
TIMED_NAME = "prefix_tree_timed"


def necessary_flops(size: ModelSize, prompts: Sequence[PackedPrompt]) -> float:
    """2 x weights x tokens that must be read, and x tokens that must predict one, each shared one once."""
    tree = build_tree(prompts)
    return 2.0 * (size.layers * len(tree.tokens) + size.head * len(predictions(tree).tokens))


@torch.inference_mode()
def product_rates(lanes: int) -> dict[str, float]:
    """Operations a second of float32 matrix products on the CPU, by kind."""
    rates = {f"torch.mm {size}": _mm_rate(size) for size in SQUARES}
    if has_onednn():
        shapes = {f"oneDNN {size}": (size, size, size) for size in SQUARES}
        shapes[f"oneDNN {'x'.join(map(str, LIKE_A_LAYER))}"] = LIKE_A_LAYER
        rates |= {name: _packed_rate(shape) for name, shape in shapes.items()}
        if lanes > 1:
            alone = in_lanes(_packed_rate, [LIKE_A_LAYER] * lanes, lanes)
            rates[f"oneDNN, {lanes} products at once"] = sum(alone)
    return rates


def _mm_rate(size: int) -> float:
    left, right, out = (torch.randn(size, size) for _ in range(3))
    return _rate(lambda: torch.mm(left, right, out=out), 2.0 * size**3)


@torch.inference_mode()
def _packed_rate(shape: tuple[int, int, int]) -> float:
    rows, inputs, outputs = shape
    left, packed = torch.randn(rows, inputs), pack_weight(torch.randn(outputs, inputs))
    return _rate(lambda: packed_linear(left, packed, None), 2.0 * rows * inputs * outputs)


def _rate(product: Callable[[], object], flops: float) -> float:
    product()
    began, times = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        product()
        times += 1
    return times * flops / (time.perf_counter() - began)


class Stopwatch:
    """Seconds spent in wrapped functions, of all threads together."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._lock = Lock()

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its time entered under `part`."""

        def timed(*given: Any, **named: Any) -> Any:  # noqa: ANN401
            began = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                with self._lock:
                    self.seconds[part] += time.perf_counter() - began

        return timed


def time_shares(backend: LlmBackend, prompts: Sequence[PackedPrompt]) -> dict[str, float]:
    """Shares of the scorer's time by part of the model; the rest is positions, residual sums, Python and waiting."""
    if not isinstance(backend, TreeBackend):
        return {}
    watch = Stopwatch()
    with _watched(watch, backend):
        backend.score(prompts)
        watch.seconds.clear()
        began = time.perf_counter()
        backend.score(prompts)
        whole = backend.lanes * (time.perf_counter() - began)
    shares = {part: seconds / whole for part, seconds in watch.seconds.items()}
    return shares | {"rest": 1 - sum(shares.values())}


@contextmanager
def _watched(watch: Stopwatch, backend: TreeBackend) -> Iterator[None]:
    AttentionInterface.register(TIMED_NAME, watch.around("attention", tree_attention))
    AttentionMaskInterface.register(TIMED_NAME, sdpa_mask)
    model, head = backend.lm.model, backend.lm.model.get_output_embeddings()
    watched = [(module, part) for module in model.modules() if module is not head and (part := _part(module))]
    for module, part in watched:
        module.forward = watch.around(part, module.forward)
    for name in ("log_normalisers", "logits"):
        setattr(backend.head, name, watch.around("output layer", getattr(backend.head, name)))
    model.set_attn_implementation(TIMED_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(ATTENTION)
        for module, _ in watched:
            del module.forward
        del backend.head.log_normalisers, backend.head.logits


def _part(module: nn.Module) -> str | None:
    kind = type(module)
    if kind.__name__ in {"Linear", "PackedLinear"}:
        return "linear layers"
    if kind.__name__.endswith("Norm") or kind.__module__ in {"transformers.activations", "torch.nn.modules.activation"}:
        return "norms and activations"
    return None
