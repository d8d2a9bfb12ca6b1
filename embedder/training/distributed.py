"""Gathering over workers with gradient; with one process everything is the identity."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of training processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


class _Gather(torch.autograd.Function):
    """All-gather along the first axis; backward sums each worker's gradient over all workers and keeps its own part.

    Together with the mean of the parameters' gradients over workers this gives the gradient of the mean loss.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, local: Tensor) -> Tensor:
        parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def gather(local: Tensor) -> Tensor:
    """Tensors of all workers, joined along the first axis in rank order; same shape everywhere; keeps the gradient."""
    return _Gather.apply(local) if world_size() > 1 else local


def mean_over_workers(value: Tensor) -> float:
    """Mean of a scalar over workers, without gradient."""
    total = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return float(total) / world_size()
