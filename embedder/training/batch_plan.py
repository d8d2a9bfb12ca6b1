"""The global batch of every step, a pure function of (sizes, seed, step): it knows no workers and keeps no state.

The steps are dealt out to the tasks once, one byte a step; the rows of a task come in seeded shuffles, one an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from embedder.config.train import TrainConfig
from embedder.errors import ConfigError
from embedder.hashing import row_seed

CYCLE_SLOTS = 2**20
"""Slots after which the order of the tasks begins again, so that a plan of any length takes about 1 MB."""


class BatchPart(NamedTuple):
    """The rows of one task in a batch."""

    task: str
    rows: list[int]
    """Row numbers within the task."""


class BatchPlan:
    """Which rows of which tasks each step trains.

    The training is a sequence of slots: a slot is a step (one-task batches) or a row (mixed ones), and has one task.
    The rows of a task come as an endless sequence of shuffles, one an epoch; a batch that reaches over the end of an
    epoch goes on in the next one.
    """

    def __init__(self, sizes: Mapping[str, int], config: TrainConfig) -> None:
        """Deal out the slots; `sizes` holds the number of rows of each task.

        Raises:
            ConfigError: no task has rows and weight, or all tasks have left before the last step.
        """
        shares = task_shares(sizes, config)
        self.tasks = list(shares)
        self.sizes, self.steps, self.seed = dict(sizes), config.steps, config.seed
        self._slot_rows = config.batch_size if config.batches == "one_task" else 1
        self._slots_a_step = config.batch_size // self._slot_rows
        self._shuffles: dict[str, tuple[int, NDArray[np.int32]]] = {}
        slots = self.steps * self._slots_a_step
        if config.exhausted == "repeat":
            self._order = deal_slots(shares, min(slots, CYCLE_SLOTS), self.seed)
            return
        capacity = {task: -(-sizes[task] // self._slot_rows) for task in shares}
        if sum(capacity.values()) < slots:
            raise ConfigError(
                f"train.exhausted is 'drop', and the rows of all tasks last for "
                f"{sum(capacity.values()) // self._slots_a_step:,} steps; lower train.steps ({self.steps:,}), or "
                "repeat them"
            )
        self._order = deal_slots(shares, slots, self.seed, capacity)

    def batch(self, step: int) -> list[BatchPart]:
        """The rows of a step, in the order of the global batch; one part a task, sorted by name."""
        first = step * self._slots_a_step
        owners = np.take(self._order, np.arange(first, first + self._slots_a_step), mode="wrap")
        parts = []
        for number in np.unique(owners).tolist():
            start = self._slots_before(number, first) * self._slot_rows
            count = int(np.count_nonzero(owners == number)) * self._slot_rows
            parts.append(BatchPart(self.tasks[number], self._rows(self.tasks[number], start, start + count)))
        return parts

    def rows_of(self, task: str) -> int:
        """How many rows of a task all steps train, repeated ones included."""
        if task not in self.tasks:
            return 0
        return self._slots_before(self.tasks.index(task), self.steps * self._slots_a_step) * self._slot_rows

    def _slots_before(self, number: int, slot: int) -> int:
        """How many of the slots before `slot` belong to the task of this number."""
        cycles, rest = divmod(slot, len(self._order))
        before = int(np.count_nonzero(self._order[:rest] == number))
        return before + cycles * int(np.count_nonzero(self._order == number)) if cycles else before

    def _rows(self, task: str, start: int, stop: int) -> list[int]:
        """The row numbers at positions start..stop - 1 of the endless sequence of shuffles."""
        size = self.sizes[task]
        rows: list[int] = []
        for epoch in range(start // size, (stop - 1) // size + 1):
            first = epoch * size
            rows += self._shuffle(task, epoch)[max(start - first, 0) : stop - first].tolist()
        return rows

    def _shuffle(self, task: str, epoch: int) -> NDArray[np.int32]:
        """The order of a task's rows in one epoch; the last is kept, because the next step mostly needs it too."""
        kept = self._shuffles.get(task)
        if kept is None or kept[0] != epoch:
            order = _stream(self.seed, "rows", task, epoch).permutation(np.arange(self.sizes[task], dtype=np.int32))
            self._shuffles[task] = kept = (epoch, order)
        return kept[1]


def task_shares(sizes: Mapping[str, int], config: TrainConfig) -> dict[str, float]:
    """The share of the training of each task that has rows and weight, sorted by name.

    Raises:
        ConfigError: no task has rows and weight.
    """
    given = config.task_weights
    wanted = {task: given.get(task, 0.0) if given else float(size) for task, size in sorted(sizes.items()) if size}
    wanted = {task: weight for task, weight in wanted.items() if weight > 0}
    if not wanted:
        raise ConfigError(f"no task to train: rows {dict(sizes)}, train.task_weights {given}")
    top = max(wanted.values())
    parts = {task: (weight / top) ** (1 / config.mix_temperature) for task, weight in wanted.items()}
    total = sum(parts.values())
    # Rounded, because the last bit of a power differs between machines, and all workers must deal alike.
    return {task: max(1e-12, round(part / total, 12)) for task, part in parts.items()}


def deal_slots(
    shares: Mapping[str, float], slots: int, seed: int, capacity: Mapping[str, int] | None = None
) -> NDArray[np.unsignedinteger]:
    """The number of the task of each slot, in the order of `shares`, evenly mixed.

    The k-th slot of a task comes at a random time in [k, k + 1) / share, and the slots are sorted by time. So a task's
    count differs from its share by less than the number of tasks after any slot, and a task that has no more slots
    (`capacity`) leaves the others their shares of one another.
    """
    dtype = np.min_scalar_type(len(shares) - 1)
    times, owners = [], []
    for number, (task, share) in enumerate(shares.items()):
        # All slots are dealt by the time slots + tasks, because each task is less than one slot behind its share.
        count = math.ceil((slots + len(shares)) * share) + 1 if capacity is None else min(capacity[task], slots)
        times.append((np.arange(count) + _stream(seed, "slots", task).random_sample(count)) / share)
        owners.append(np.full(count, number, dtype))
    order = np.argsort(np.concatenate(times), kind="stable")[:slots]
    return np.concatenate(owners)[order]


def _stream(seed: int, *parts: object) -> np.random.RandomState:
    """Random numbers that depend on these values alone.

    `RandomState` and not `Generator`, because NumPy freezes its streams (NEP 19), so that a training that is resumed
    under another version of NumPy goes on with the plan it began with.
    """
    return np.random.RandomState(row_seed(seed, *parts) % 2**32)


def share_of_batch(parts: Sequence[BatchPart], rank: int, workers: int) -> list[BatchPart]:
    """The rows of a global batch that one worker takes: every n-th, so that each worker gets some of every task.

    All workers get equally many where the batch is a multiple of `workers`.
    """
    rows = [(part.task, row) for part in parts for row in part.rows][rank::workers]
    return [BatchPart(task, [row for _, row in taken]) for task, taken in groupby(rows, key=lambda row: row[0])]
