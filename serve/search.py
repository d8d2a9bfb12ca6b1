"""Deployment: one index shard of the bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from embedder.bundle import load_shard, shard_folder, verify
from embedder.index import Hit


class ShardReplica:
    """Searches the collections of one shard. Stateless: any replica of the shard gives the same answer."""

    def __init__(self, bundle: str, shard: int) -> None:
        folder = Path(bundle)
        verify(folder, only=shard_folder(folder, shard).relative_to(folder).as_posix() + "/")
        self.collections = load_shard(folder, shard)

    def search(self, task: str, query_QD: np.ndarray, k: int) -> list[list[Hit]]:
        """The shard's k best passages of a task for each query; none where the shard has no passage of the task."""
        collection = self.collections.get(task)
        return collection.search(query_QD, k) if collection else [[] for _ in query_QD]

    def check_health(self) -> None:
        """A real search of every collection; an exception has the replica replaced."""
        for task, collection in self.collections.items():
            self.search(task, np.zeros((1, collection.index.d), dtype=np.float32), 1)
