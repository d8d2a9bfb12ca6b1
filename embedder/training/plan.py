"""The global batch of every step, a pure function of (sizes, seed, step): it knows no workers and keeps no state."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from embedder.errors import ConfigError


class BatchPlan:
    """One-task batches: which task step s trains and which of its rows.

    Tasks are interleaved evenly in proportion to their weights. The rows of a task come as an endless row of seeded
    permutations, one an epoch.
    """

    def __init__(
        self, sizes: Mapping[str, int], weights: Mapping[str, float], *, batch_size: int, steps: int, seed: int
    ) -> None:
        """`sizes`: rows a task; `weights`: its share of the steps, empty for shares in proportion to `sizes`.

        Raises:
            ConfigError: no task has rows and weight.
        """
        share = {
            task: weights.get(task, 0.0) if weights else float(size) for task, size in sorted(sizes.items()) if size
        }
        self.tasks = [task for task, weight in share.items() if weight > 0]
        if not self.tasks:
            raise ConfigError(f"no task to train: rows {dict(sizes)}, train.task_weights {dict(weights)}")
        self.sizes, self.batch_size, self.seed = dict(sizes), batch_size, seed
        total = sum(share[task] for task in self.tasks)
        offsets = np.random.default_rng([seed, 0]).random(len(self.tasks))
        times, owners = [], []
        for i, task in enumerate(self.tasks):
            count = int(np.ceil(steps * share[task] / total)) + 1
            times.append((np.arange(count) + offsets[i]) * total / share[task])
            owners.append(np.full(count, i))
        order = np.argsort(np.concatenate(times), kind="stable")[:steps]
        self._task_of_step = np.concatenate(owners)[order]
        self._ordinal = np.zeros(steps, dtype=np.int64)
        for i in range(len(self.tasks)):
            mine = self._task_of_step == i
            self._ordinal[mine] = np.arange(mine.sum())

    def batch(self, step: int) -> tuple[str, list[int]]:
        """The task of a step and the row numbers within that task, in the order of the global batch."""
        number = int(self._task_of_step[step])
        size = self.sizes[self.tasks[number]]
        first = int(self._ordinal[step]) * self.batch_size
        places = range(first, first + self.batch_size)
        rows = [int(_permutation(self.seed, number, place // size, size)[place % size]) for place in places]
        return self.tasks[number], rows

    def steps_of(self, task: str) -> int:
        """How many steps train a task."""
        return int((self._task_of_step == self.tasks.index(task)).sum()) if task in self.tasks else 0


@lru_cache(maxsize=32)
def _permutation(seed: int, number: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng([seed, 1, number, epoch]).permutation(size)
