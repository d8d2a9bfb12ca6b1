"""Copies between the host and a GPU that the host does not wait for; elsewhere they are plain copies."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def pinned(values: Tensor, device: torch.device) -> Tensor:
    """The values in memory that a GPU copies from while the host goes on; as they are where there is no such GPU."""
    # A copy from other memory makes the host wait for all that was queued before it.
    return values.pin_memory() if device.type == "cuda" and values.device.type == "cpu" else values


def upload(values: Tensor, device: torch.device) -> Tensor:
    """The values on a device; a GPU copies them when it comes to it, and the host goes on."""
    return pinned(values, device).to(device, non_blocking=device.type == "cuda")


def upload_numbers(values: object, device: torch.device) -> Tensor:
    """The same of numbers that are no tensor yet."""
    return upload(torch.as_tensor(values), device)


def begin_reading(values: Tensor) -> Callable[[], list[float]]:
    """Begin to copy a row of numbers to the host; the call that it returns waits for that copy alone.

    `tolist` would wait for all that a GPU was given until then.
    """
    if values.device.type != "cuda":
        return values.tolist
    copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    copy.copy_(values, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def read() -> list[float]:
        copied.synchronize()
        numbers: list[float] = copy.tolist()
        return numbers

    return read
