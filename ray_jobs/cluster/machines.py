"""The machines of the cluster, and whether the GPUs that a stage asks for are there and can be used."""

from __future__ import annotations

import ray

from embedder.config.run import RunConfig
from embedder.run.gpu_shares import Node, check_gpus, stage_shares
from embedder.run.ray_token import is_own_ray


def machines() -> list[Node]:
    """CPUs, GPUs and more of each living machine of the cluster, by the names of Ray."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def gpu_lines(stage: str, config: RunConfig) -> list[str]:
    """What `check_gpus` says of the GPUs that a stage leaves unused or waits for.

    Raises:
        DeviceError: it asks for GPUs that this machine does not have.
    """
    # To a Ray that this process has started nothing joins; of another one nobody tells whether it can grow.
    return check_gpus(stage_shares(stage, config), machines(), can_grow=not is_own_ray())


def try_gpu(gpus: float) -> None:
    """Try a GPU of the cluster in a process of its own, which ends with it.

    Raises:
        DeviceError: it cannot be used.
    """
    from embedder.models.device import resolve_device  # not above: a driver may need no torch

    ray.get(ray.remote(num_gpus=gpus, num_cpus=0)(resolve_device).remote(gpus))
