"""The global batch of every step, a pure function of (sizes, seed, step): it knows no workers and keeps no state.

Nothing is computed step by step: the batch of the millionth step costs what that of the first one costs, in memory
that depends on the number of tasks and the batch size alone.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Literal, NamedTuple

import numpy as np

from embedder.config.train import TrainConfig
from embedder.errors import ConfigError
from embedder.hashing import row_seed

SHARE_UNITS = 2**40
"""Shares are rounded to this part of the whole, so that all later arithmetic is exact in integers."""
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""The step of splitmix64 from one of its states to the next."""
ROUNDS = 8
"""Of the Feistel network; four already pass for random on large tables, small ones want more."""


class BatchPart(NamedTuple):
    """The rows of one task in a batch."""

    task: str
    rows: list[int]
    """Row numbers within the task."""


@dataclass(frozen=True)
class TaskMix:
    """Which task gets how much of the training."""

    weights: Mapping[str, float] = field(default_factory=dict)
    """Share of each task, relative to the others; empty: by size."""
    temperature: float = 1.0
    """T of the shares by size, size ** (1 / T): 1 in proportion, larger ones lift the small tasks."""
    batches: Literal["one_task", "mixed"] = "one_task"
    """one_task: the rows of a global batch are of one task; mixed: of all, by their shares."""
    exhausted: Literal["repeat", "drop"] = "repeat"
    """What a task does when its rows are used up: begin again in a new order, or leave the mix to the others."""

    @classmethod
    def of(cls, config: TrainConfig) -> TaskMix:
        """The mix of a run file."""
        return cls(config.task_weights, config.mix_temperature, config.batches, config.exhausted)

    def shares(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Share of each task with rows and weight in SHARE_UNITS, by name.

        Raises:
            ConfigError: no task has rows and weight.
        """
        wanted = {task: self.weights.get(task, 0.0) if self.weights else size for task, size in sizes.items() if size}
        wanted = {task: float(weight) for task, weight in sorted(wanted.items()) if weight > 0}
        if not wanted:
            raise ConfigError(f"no task to train: rows {dict(sizes)}, train.task_weights {dict(self.weights)}")
        top = max(wanted.values())
        parts = {task: (weight / top) ** (1 / self.temperature) for task, weight in wanted.items()}
        total = sum(parts.values())
        return {task: max(1, round(SHARE_UNITS * part / total)) for task, part in parts.items()}


class BatchPlan:
    """Which rows of which tasks each step trains.

    The training is a row of slots, dealt to the tasks by `Interleaving`: a slot is a step (one-task batches) or a row
    (mixed ones). Where exhausted tasks leave the mix, the slots fall into stretches, at most one a task, in each of
    which the tasks do not change. The rows of a task come as an endless row of seeded shuffles, one an epoch; a batch
    that reaches over the end of an epoch goes on in the next one.
    """

    def __init__(self, sizes: Mapping[str, int], mix: TaskMix, *, batch_size: int, steps: int, seed: int) -> None:
        """`sizes`: rows a task.

        Raises:
            ConfigError: no task has rows and weight, or all tasks have left before the last step.
        """
        shares = mix.shares(sizes)
        self.tasks = list(shares)
        self.sizes, self.batch_size, self.steps, self.seed = dict(sizes), batch_size, steps, seed
        self._slot_rows = batch_size if mix.batches == "one_task" else 1
        self._slots_a_step = batch_size // self._slot_rows
        slots = steps * self._slots_a_step
        if mix.exhausted == "repeat":
            self._stretches = [_Stretch(0, dict.fromkeys(shares, 0), Interleaving(shares, seed))]
            return
        capacity = {task: -(-sizes[task] // self._slot_rows) for task in shares}
        if sum(capacity.values()) < slots:
            raise ConfigError(
                f"train.exhausted is 'drop', and the rows of all tasks last for "
                f"{sum(capacity.values()) // self._slots_a_step:,} steps; lower train.steps ({steps:,}), or repeat them"
            )
        self._stretches = _stretches(shares, capacity, seed)

    @classmethod
    def of(cls, sizes: Mapping[str, int], config: TrainConfig) -> BatchPlan:
        """The plan of a run file."""
        return cls(sizes, TaskMix.of(config), batch_size=config.batch_size, steps=config.steps, seed=config.seed)

    def batch(self, step: int) -> list[BatchPart]:
        """The rows of a step, in the order of the global batch; one part a task."""
        first = step * self._slots_a_step
        places: dict[str, list[int]] = {}
        for slot in range(first, first + self._slots_a_step):
            stretch = self._stretches[bisect_right(self._stretches, slot, key=lambda one: one.first) - 1]
            task, number = stretch.order.owner(slot - stretch.first)
            start = (stretch.used[task] + number) * self._slot_rows
            places.setdefault(task, []).extend(range(start, start + self._slot_rows))
        return [BatchPart(task, self._rows(task, np.array(taken))) for task, taken in sorted(places.items())]

    def rows_of(self, task: str) -> int:
        """How many rows of a task all steps train, repeated ones included."""
        if task not in self.tasks:
            return 0
        slots = self.steps * self._slots_a_step
        stretch = self._stretches[bisect_left(self._stretches, slots, key=lambda one: one.first) - 1]
        count = stretch.order.count(task, slots - stretch.first) if task in stretch.order.tasks else 0
        return (stretch.used[task] + count) * self._slot_rows

    def _rows(self, task: str, places: np.ndarray) -> list[int]:
        """Row numbers at some places of the endless row of shuffles."""
        size = self.sizes[task]
        rows = np.empty_like(places)
        for epoch in np.unique(places // size).tolist():
            here = places // size == epoch
            rows[here] = shuffled(places[here] % size, size, row_seed(self.seed, "rows", task, epoch))
        numbers: list[int] = rows.tolist()
        return numbers


class Interleaving:
    """Deals an endless row of slots to tasks by their shares, evenly and at random access.

    The largest task takes its share of all slots as Bresenham draws a line: slot n is its own where
    floor((n a + phase) / total) steps up. The slots it leaves are numbered anew, and the next task takes its share of
    those, and so on. Who owns a slot, and how many a task had before, then takes one integer division a task.

    A task's count differs from its share by less than the number of tasks at every slot (`Balanced words` that meet
    the bound of 1 exist for three and more tasks only for special shares). The price is regularity: a task with half
    of the slots gets every second one. A seeded shuffle of fixed cycles would break that, but round the shares to the
    cycle's length; a credit schedule meets the bound of 1, but must be walked from the beginning.
    """

    def __init__(self, shares: Mapping[str, int], seed: int) -> None:
        self.tasks = sorted(shares, key=lambda task: (-shares[task], task))
        self._share = [shares[task] for task in self.tasks]
        self._rest = [sum(self._share[i:]) for i in range(len(self.tasks))]
        self._phase = [row_seed(seed, "phase", task) % rest for task, rest in zip(self.tasks, self._rest, strict=True)]

    def owner(self, slot: int) -> tuple[str, int]:
        """The task of a slot, and how many slots it had before."""
        for i, task in enumerate(self.tasks):
            before = self._before(i, slot)
            if self._before(i, slot + 1) > before:
                return task, before
            slot -= before
        raise AssertionError("the last task takes all slots that are left")

    def count(self, task: str, slots: int) -> int:
        """How many of the first slots a task has."""
        for i, other in enumerate(self.tasks):
            before = self._before(i, slots)
            if other == task:
                return before
            slots -= before
        raise KeyError(task)

    def _before(self, i: int, slot: int) -> int:
        """Of the first slots left by the tasks before i, how many i takes."""
        return (slot * self._share[i] + self._phase[i]) // self._rest[i]


class _Stretch(NamedTuple):
    """Slots over which the tasks of the mix do not change."""

    first: int
    used: dict[str, int]
    """Slots that each task had before."""
    order: Interleaving


def _stretches(shares: Mapping[str, int], capacity: Mapping[str, int], seed: int) -> list[_Stretch]:
    """The stretches until every task has had as many slots as it has rows for."""
    stretches: list[_Stretch] = []
    first, used, left = 0, dict.fromkeys(shares, 0), dict(shares)
    while left:
        order = Interleaving(left, seed)
        stretches.append(_Stretch(first, dict(used), order))
        rest = {task: capacity[task] - used[task] for task in left}
        bound = range(sum(rest.values()) + 1)
        length = min(bisect_left(bound, rest[task], key=partial(order.count, task)) for task in left)
        first += length
        for task in left:
            used[task] += order.count(task, length)
        left = {task: share for task, share in left.items() if used[task] < capacity[task]}
    return stretches


def shuffled(places: np.ndarray, size: int, seed: int) -> np.ndarray:
    """What stands at some places of a seeded shuffle of range(size), without the rest of it; `seed` is of 63 bits.

    A Feistel network permutes the next power of 4; images outside the range are sent through it again until they fall
    inside, which keeps it a permutation (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = _mixed(np.uint64(seed) + GOLDEN * np.arange(1, ROUNDS + 1, dtype=np.uint64))
    images = places.astype(np.uint64)
    outside = np.ones(len(images), dtype=bool)
    while outside.any():
        left, right = images[outside] >> half, images[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right ^ key) & mask)
        images[outside] = left << half | right
        outside = images >= size
    return images.astype(np.int64)


def _mixed(values: np.ndarray) -> np.ndarray:
    """Every bit of a result depends on every bit of its value (the finaliser of splitmix64)."""
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def share_of_batch(parts: Sequence[BatchPart], rank: int, workers: int) -> list[BatchPart]:
    """The rows of a global batch that one worker takes: every n-th, so that each worker gets some of every task.

    All workers get equally many where the batch is a multiple of `workers`.
    """
    rows = [(part.task, row) for part in parts for row in part.rows][rank::workers]
    return [BatchPart(task, [row for _, row in taken]) for task, taken in groupby(rows, key=lambda row: row[0])]
