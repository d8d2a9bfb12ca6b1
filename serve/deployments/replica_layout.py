"""Whether a replica does all by itself, or encoder and index are deployments of their own: chosen by sizes.

Together a request makes no call between processes, each of which costs about as much as to encode a short query. Apart
each part is held, and scaled, for itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from embedder.config.serve import ServeConfig
from embedder.index.bundle import MODEL

SHARE = 0.5
"""Of a node's memory that models and indexes may take, all replicas that fit on it and all versions together."""
SESSIONS = 2
"""How often a replica that does all holds the weights of a model: once for many requests, once for a lone one."""


@dataclass(frozen=True)
class Node:
    """A machine on which replicas may run."""

    cpus: float
    memory: int
    """Bytes; 0: not known."""


@dataclass(frozen=True)
class Layout:
    """How a service is deployed."""

    is_together: bool
    reason: str

    def __str__(self) -> str:
        return f"layout: {'together' if self.is_together else 'apart'} ({self.reason})"


def choose_layout(settings: ServeConfig, sizes: Mapping[str, int], nodes: Sequence[Node]) -> Layout:
    """The layout on these nodes of a service of a bundle, whose files have these sizes by name."""
    if settings.layout != "auto":
        return Layout(settings.layout == "together", "serve.layout")
    if settings.gpus_per_replica > 0:
        return Layout(False, "encoders on GPUs are scaled for themselves")
    # The smallest one, because a replica may be started on any of them.
    node = min((node for node in nodes if node.memory), key=lambda node: node.memory, default=None)
    if node is None:
        return Layout(False, "the memory of the nodes is not known")
    replicas = max(1, min(settings.max_replicas, math.floor(node.cpus / settings.cpus_per_replica)))
    size = replica_bytes(sizes)
    needed, room = size * settings.max_versions * replicas, int(SHARE * node.memory)
    reason = (
        f"model and index of a version take {size / 2**20:,.0f} MiB; {settings.max_versions} versions in {replicas} "
        f"replicas of a node {'fit' if needed <= room else 'exceed'} {room / 2**20:,.0f} MiB, half of its memory"
    )
    return Layout(needed <= room, reason)


def replica_bytes(sizes: Mapping[str, int]) -> int:
    """What a replica that does all holds of a version, by the sizes of its files."""
    model = sum(size for name, size in sizes.items() if name.startswith(f"{MODEL}/"))
    return sum(sizes.values()) + (SESSIONS - 1) * model
