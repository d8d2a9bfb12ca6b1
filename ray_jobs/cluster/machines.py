"""The machines of the cluster, and whether the GPUs and the memory that a stage asks for are there."""

from __future__ import annotations

import ray

from embedder.config.run import RunConfig
from embedder.errors import ConfigError
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


def memory_request(needed: float, what: str) -> int:
    """Bytes of memory to ask Ray for.

    Raises:
        ConfigError: no machine gives its processes so much, and none can join.
    """
    most = max((node.get("memory", 0.0) for node in machines()), default=0.0)
    if is_own_ray() and needed > most:
        raise ConfigError(
            f"{what} needs {needed / 1e9:,.1f} GB of memory, but this machine gives processes {most / 1e9:,.1f} GB; "
            "take a larger machine, or a cluster"
        )
    return int(needed)


def try_gpu(gpus: float) -> None:
    """Try a GPU of the cluster in a process of its own, which ends with it.

    Raises:
        DeviceError: it cannot be used.
    """
    from embedder.models.device import resolve_device  # not above: a driver may need no torch

    ray.get(ray.remote(num_gpus=gpus, num_cpus=0)(resolve_device).remote(gpus))
