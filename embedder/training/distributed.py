"""Gathering over workers with gradient; with one process everything is the identity.

Tensors are gathered where they are. Numbers of the host go from host to host, so that nobody waits for a GPU: the
process group needs a backend for the CPU too (`group_backend`).
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import Tensor


def join_workers(device: torch.device) -> None:
    """Make a process that belongs to no group the only worker of one, which DeepSpeed needs."""
    # DeepSpeed refuses to start without this, and computes on the GPU of this number. A launcher numbers the workers of
    # a machine, which is another number where some share a GPU.
    if device.type == "cuda":
        os.environ["LOCAL_RANK"] = str(device.index)
    os.environ.setdefault("LOCAL_RANK", "0")
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]


def group_backend(gpus_per_worker: float) -> str:
    """The backend of the process group of several workers, each with so many GPUs or such a share of one."""
    if not gpus_per_worker:
        return "gloo"
    # NCCL refuses two workers on one GPU. Through gloo, by way of the host, they work as on several, only slower.
    return "cpu:gloo,cuda:gloo" if gpus_per_worker < 1 else "cpu:gloo,cuda:nccl"


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
        # torch.distributed's own all-gather has no gradient. The sum counts what the losses of the other workers say of
        # this worker's vectors; it is not divided, because the update divides the weights' gradients by the workers.
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def gather(local: Tensor) -> Tensor:
    """Tensors of all workers, joined along the first axis in rank order; same shape everywhere; keeps the gradient."""
    return _Gather.apply(local) if world_size() > 1 else local


def share_first(value: Tensor) -> None:
    """Overwrite a tensor of every worker with that of the first."""
    if world_size() > 1:
        dist.broadcast(value, 0)


def greatest_over_workers(values: list[int]) -> list[int]:
    """The greatest of each value over the workers."""
    greatest = torch.tensor(values)
    if world_size() > 1:
        dist.all_reduce(greatest, dist.ReduceOp.MAX)
    return [int(value) for value in greatest.tolist()]


def sum_over_workers(values: list[float]) -> list[float]:
    """The sum of each value over the workers, in double precision."""
    total = torch.tensor(values, dtype=torch.float64)
    if world_size() > 1:
        dist.all_reduce(total)
    return [float(value) for value in total.tolist()]
