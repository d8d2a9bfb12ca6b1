"""The device a model runs on: which one, memory that a CPU process keeps, and the fastest matrix product there is.

A device is given and never found: whoever starts a process says how many GPUs it has, and the models are told which.
The rate of the fastest product is the measure of what a model reaches on its device.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from embedder.errors import DeviceError
from embedder.models.onednn import has_onednn, pack_weight, packed_linear

CPU = torch.device("cpu")
CONTEXT_BYTES = 2**30
"""Memory of a GPU left to what torch does not count of a process: CUDA itself and its kernels."""
SIZE = {"cpu": 1536, "cuda": 8192}
"""Side of the square matrices: large enough for the device's best rate."""
SECONDS = 0.3
LARGEST_KEPT = 32 * 2**20
"""Bytes: the largest that glibc lets come from memory it keeps; larger blocks go back to the system when freed."""
MMAP_THRESHOLD, TRIM_THRESHOLD, TOP_PAD = -3, -1, -2
"""Numbers of the settings in glibc's malloc.h."""


def resolve_device(gpus: float) -> torch.device:
    """The device of a process that was given so many GPUs, or a share of one.

    Raises:
        DeviceError: it was given a GPU that torch cannot use, or has fewer of them.
    """
    if not gpus:
        return CPU
    try:
        # A product too, because a GPU that torch has no kernels for can be found and asked for memory.
        torch.ones(1, device="cuda").sum().item()
    # An AssertionError where torch was built without CUDA; the last one of a GPU that fails as CUDA begins.
    except (RuntimeError, AssertionError, torch.cuda.DeferredCudaCallError) as error:
        raise DeviceError(
            f"a GPU was asked for ({gpus:g}), but this process cannot use one ({str(error).partition(chr(10))[0]}; "
            f"{cuda_versions()}); repair the driver, install a torch for it, or set the number of GPUs to 0 for the CPU"
        ) from error
    if (there := torch.cuda.device_count()) < gpus:
        raise DeviceError(
            f"{gpus:g} GPUs were asked for, but this process has {there}; ask for fewer, or take a machine with more"
        )
    prepare_cuda(gpus)
    return torch.device("cuda", torch.cuda.current_device())


def check_bfloat16(setting: str) -> None:
    """Refuse bfloat16, for which a setting asks, on a GPU that would only imitate it.

    Raises:
        DeviceError: it has no bfloat16.
    """
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        raise DeviceError(f"{setting} is bfloat16, which {torch.cuda.get_device_name()} does not have; take float32")


def prepare_cuda(gpus: float) -> None:
    """Settings of a process that has a GPU or, below 1, a share of one."""
    # cuDNN's attention takes about 50 ms for each new shape, and batches of texts are of ever new shapes.
    torch.backends.cuda.enable_cudnn_sdp(False)
    if gpus < 1:
        # Or else the first of the processes that share a GPU would take what the others need.
        whole = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        torch.cuda.set_per_process_memory_fraction(max(gpus - CONTEXT_BYTES / whole, gpus / 2))


def cuda_versions() -> str:
    """The versions of torch, of its CUDA and of the driver, as far as there are any."""
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    try:
        driver = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").splitlines()[0]
    except OSError:
        driver = "no NVIDIA driver on this machine"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    shown = "" if visible is None else f", CUDA_VISIBLE_DEVICES={visible!r}"
    return f"torch {torch.__version__} {built}, {driver}{shown}"


def check_format(device: torch.device, dtype: torch.dtype, setting: str) -> None:
    """Refuse bfloat16 on a GPU that would compute it in float32, a piece at a time.

    Raises:
        DeviceError: it is such a GPU.
    """
    if device.type == "cuda" and dtype == torch.bfloat16:
        check_bfloat16(setting)


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


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of the fastest matrix product at hand, over about 0.3 s."""
    rate = _square_rate(device, dtype)
    # The matrices are freed by now. Kept for later, their memory would be missing in this one of the processes that
    # share an LLM, all of which must run short of it at the same time.
    torch.cuda.empty_cache()
    return rate


@torch.inference_mode()
def _square_rate(device: torch.device, dtype: torch.dtype) -> float:
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
