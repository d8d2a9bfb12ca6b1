"""What a device can reach at most, as the measure of what a model reaches on it."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from embedder.models.onednn import has_onednn, pack_weight, packed_linear

SIZE = {"cpu": 1536, "cuda": 8192}
"""Side of the square matrices: large enough for the device's best rate."""
SECONDS = 0.3


@torch.inference_mode()
def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of the fastest matrix product at hand, over about 0.3 s."""
    size = SIZE.get(device.type, 4096)
    left = torch.randn((size, size), device=device, dtype=dtype)
    if device.type == "cpu" and dtype == torch.float32 and has_onednn():
        packed = pack_weight(left)
        return _rate(lambda: packed_linear(left, packed, None), device, size)
    return _rate(lambda: F.linear(left, left), device, size)


def _rate(product: Callable[[], torch.Tensor], device: torch.device, size: int) -> float:
    product()
    _wait(device)
    began, rounds = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        product()
        _wait(device)
        rounds += 1
    return rounds * 2.0 * size**3 / (time.perf_counter() - began)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
