"""The GPUs of the encoder's replicas are tried before anything is deployed: Ray starts a replica that fails anew."""

from __future__ import annotations

import ray
from rich.console import Console

from embedder.config.run import RunConfig
from embedder.models.device import resolve_device
from embedder.run.gpu_shares import check_gpus, stage_shares


def check_replica_gpus(config: RunConfig, out: Console, *, can_grow: bool) -> None:
    """Print which GPUs stay unused, or are waited for where machines may join; try one in a process of its own.

    Raises:
        DeviceError: no machine has as many as a replica asks for, or it cannot be used.
    """
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for line in check_gpus(stage_shares("serve", config), machines, can_grow=can_grow):
        out.print(line, markup=False)
    if gpus := config.serve.gpus_per_replica:
        ray.get(ray.remote(num_gpus=gpus, num_cpus=0)(resolve_device).remote(gpus))
