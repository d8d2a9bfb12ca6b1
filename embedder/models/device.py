"""The device a model runs on: memory that a CPU process keeps, and the fastest matrix product there is.

The rate of that product is the measure of what a model reaches on its device.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from embedder.models.onednn import has_onednn, pack_weight, packed_linear

SIZE = {"cpu": 1536, "cuda": 8192}
"""Side of the square matrices: large enough for the device's best rate."""
SECONDS = 0.3
LARGEST_KEPT = 32 * 2**20
"""Bytes: the largest that glibc lets come from memory it keeps; larger blocks go back to the system when freed."""
MMAP_THRESHOLD, TRIM_THRESHOLD, TOP_PAD = -3, -1, -2
"""Numbers of the settings in glibc's malloc.h."""


def keep_freed_memory() -> None:
    """Where malloc is glibc's, have it keep freed blocks of up to 32 MiB instead of returning them to the system.

    A layer's results are some MiB each. By default they are returned and asked for again at every operation, and the
    system clears each page of them anew: a sixth of a layer's time (SmolLM2-135M, float32, 1,680 tokens, one thread).
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(MMAP_THRESHOLD, LARGEST_KEPT)
    # As large as its type allows: never return the free end of the heap, which the next layer would ask for again.
    mallopt(TRIM_THRESHOLD, 2**31 - 1)
    # The heap grows by many results at once, because each time that it grows costs a call of the system.
    mallopt(TOP_PAD, 2 * LARGEST_KEPT)


def device_kind(device: torch.device, dtype: torch.dtype) -> str:
    """What the last digits of a result depend on beside the model, such as "cuda NVIDIA H100 80GB HBM3, bfloat16"."""
    name = f" {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    return f"{device.type}{name}, {str(dtype).removeprefix('torch.')}"


@torch.inference_mode()
def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of the fastest matrix product at hand, over about 0.3 s."""
    size = SIZE.get(device.type, 4096)
    left = torch.randn((size, size), device=device, dtype=dtype)
    # The product that a loaded LLM uses there, or else the share of the peak that it reaches could exceed 1.
    if device.type == "cpu" and dtype == torch.float32 and has_onednn():
        packed = pack_weight(left)
        return _rate(lambda: packed_linear(left, packed, None), device, size)
    return _rate(lambda: F.linear(left, left), device, size)


def _rate(product: Callable[[], torch.Tensor], device: torch.device, size: int) -> float:
    # The first call is left out, because it chooses a kernel and allocates its workspace.
    product()
    _wait(device)
    began, rounds = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        product()
        _wait(device)
        rounds += 1
    return rounds * 2.0 * size**3 / (time.perf_counter() - began)


def _wait(device: torch.device) -> None:
    # A GPU's product has only been queued when the call returns.
    if device.type == "cuda":
        torch.cuda.synchronize(device)
