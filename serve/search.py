"""Deployment: one index shard of the bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from embedder.index.opened import OpenIndex, Rankings
from embedder.index.settings import SearchOptions


class ShardReplica:
    """Searches the collections of one shard. Any replica of the shard gives the same answer."""

    def __init__(self, bundle: str, state: str, shard: int) -> None:
        self.index = OpenIndex.open(Path(bundle), Path(state), [shard])

    def rank(self, task: str, options: SearchOptions, query_QD: np.ndarray, texts: Sequence[str]) -> Rankings:
        """What this shard adds to the answer; the ingress combines it with the others'."""
        return self.index.rank(task, options, query_QD, texts)

    def check_health(self) -> None:
        """A real search of every collection; an exception has the replica replaced."""
        probe = np.ones((1, self.index.manifest.dimension), dtype=np.float32)
        for task in self.index.collections:
            self.index.rank(task, SearchOptions(k=1), probe, None)
