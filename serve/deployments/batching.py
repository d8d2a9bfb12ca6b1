"""Texts of many requests in one forward pass: small requests first, then large ones by age, a poisoned text alone.

No waiting for more: while a batch is computed, what arrives waits for the next one. Large requests always keep a
share, and may have a thread of their own. Needs neither Ray nor the web.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

import numpy as np
import torch

from embedder.models.encoder import TokenRow
from embedder.models.memory import is_memory_error

Run = Callable[[list[TokenRow]], np.ndarray]
"""Token rows to vectors (N, D)."""
Observe = Callable[[int, int, float], None]
"""Told of each batch: rows, tokens, and how many seconds the request that waited longest for its first row did so."""

LARGE_PER_SMALL = 1 / 3
"""Tokens of large requests for each token of small ones, at least: small ones alone must not starve them."""
URGENT_PER_SMALL, URGENT_S = 2.0, 10.0
"""The same of one whose deadline is so many seconds away: it was let in, so it is to end in time, also where more small
ones came than there were then."""

FAILURES = (RuntimeError, IndexError, ValueError, TypeError, MemoryError)
"""What a forward pass raises on rows it cannot take, and where memory is short (torch's own is a RuntimeError)."""


class Cause(Enum):
    """A failure is due to one of these three."""

    ROW = "row"
    """The model does not take the row."""
    MODEL = "model"
    """The model took the row, and gave a vector that is none."""
    MEMORY = "memory"
    """There was no memory for the row; later there may be."""


class Failure(NamedTuple):
    """Why a row has no vector."""

    reason: str
    cause: Cause


class NotEncodable(Exception):
    """A row that the model fails on even alone."""

    def __init__(self, row: int, failure: Failure) -> None:
        super().__init__(row, failure.reason)
        self.row, self.failure = row, failure


@dataclass(eq=False)
class _Job:
    """The rows of one request, or of a part of it."""

    rows: list[TokenRow]
    deadline: float
    done: asyncio.Future[np.ndarray]
    order: list[int]
    """Positions of the rows as they are computed: by length, so that those of a batch need little padding."""
    vectors: dict[int, np.ndarray] = field(default_factory=dict)
    taken: int = 0
    since: float = field(default_factory=time.perf_counter)

    def settle(self, row: int, outcome: np.ndarray | Failure) -> None:
        """Note the vector of a row, or why there is none, which ends the request."""
        if self.done.done():
            return
        if isinstance(outcome, Failure):
            self.done.set_exception(NotEncodable(row, outcome))
            return
        self.vectors[row] = outcome
        if len(self.vectors) == len(self.rows):
            self.done.set_result(np.stack([self.vectors[i] for i in range(len(self.rows))]))


Batch = list[tuple[_Job, int]]
"""Requests, and for each the number of the row that is computed next."""
Take = Callable[[], Batch]


class TokenBatcher:
    """Runs the rows of all requests through one model, one batch at a time in each thread."""

    def __init__(
        self,
        run: Run,
        budget: int,
        step: int,
        executors: Sequence[Executor],
        observe: Observe,
        behind: Sequence[Executor] = (),
    ) -> None:
        """`budget`: tokens of a batch; `step`: of one of large requests alone, for which a small one may wait.

        `executors` have a thread each. `behind`: those in which large requests are computed beside small ones. None:
        in `executors`, while no small one waits.
        """
        self._run, self._budget, self._step = run, budget, step
        self._executors, self._observe, self._behind = executors, observe, behind
        self._small: deque[_Job] = deque()
        self._large: deque[_Job] = deque()
        self._earned = 0.0
        """Tokens of large requests that are due beside small ones."""
        # Kept, because the event loop holds tasks weakly and one that nobody refers to may vanish.
        self._running: dict[Executor, asyncio.Task[None]] = {}
        self._computing: set[Executor] = set()

    async def submit(self, rows: list[TokenRow], deadline: float = math.inf, *, is_small: bool = True) -> np.ndarray:
        """The vectors (N, D) of one request. One that is cancelled is dropped before its next rows are computed.

        Raises:
            NotEncodable: the model fails on one of the rows, whichever others stand beside it.
            TimeoutError: by `time.monotonic` the deadline passed before all rows were computed.
        """
        job = _Job(
            rows,
            deadline,
            asyncio.get_running_loop().create_future(),
            sorted(range(len(rows)), key=lambda i: len(rows[i])),
        )
        (self._small if is_small else self._large).append(job)
        if is_small or not self._behind:
            self._start(self._executors, self._take, len(rows))
        else:
            self._start(self._behind, self._take_large, len(rows))
        return await job.done

    @property
    def waiting(self) -> int:
        """Rows that no batch has taken yet."""
        jobs = (*self._small, *self._large)
        return sum(len(job.rows) - job.taken for job in jobs if not job.done.done())

    def _start(self, executors: Sequence[Executor], take: Take, rows: int) -> None:
        """Have as many executors as there are new rows begin, of those that have nothing to do."""
        for executor in [one for one in executors if one not in self._running][:rows]:
            self._running[executor] = asyncio.create_task(self._work(executor, take))

    async def _work(self, executor: Executor, take: Take) -> None:
        loop = asyncio.get_running_loop()
        try:
            while batch := take():
                rows = [job.rows[i] for job, i in batch]
                now = time.perf_counter()
                waits = [now - job.since for job, i in batch if i == job.order[0]]
                self._observe(len(rows), sum(map(len, rows)), max(waits, default=0.0))
                self._computing.add(executor)
                outcomes = await loop.run_in_executor(executor, run_apart, self._run, rows)
                self._computing.discard(executor)
                for (job, i), outcome in zip(batch, outcomes, strict=True):
                    job.settle(i, outcome)
        finally:
            self._computing.discard(executor)
            del self._running[executor]

    def _take_large(self) -> Batch:
        """The rows of the next batch of large requests alone."""
        return _rows(self._large, self._step, time.monotonic(), at_least=1)

    def _take(self) -> Batch:
        """The rows of the next batch: small requests first, and of large ones as much as they have earned meanwhile."""
        now = time.monotonic()
        batch = _rows(self._small, self._fair_budget(), now, at_least=1)
        if not batch:
            self._earned = 0.0
            return [] if self._behind else self._take_large()
        if self._large:
            # By tokens and not a part of each batch: queries come in twos and threes, and each would wait for the part.
            share = URGENT_PER_SMALL if self._large[0].deadline - now < URGENT_S else LARGE_PER_SMALL
            self._earned += share * _tokens(batch)
            large = _rows(self._large, int(self._earned), now, at_least=0)
            self._earned -= _tokens(large)
            batch += large
        return batch

    def _fair_budget(self) -> int:
        """Tokens of the next batch: what waits is shared out among those who could compute it now."""
        idle = sum(executor not in self._computing for executor in self._executors)
        if idle < 2:
            return self._budget
        waiting = sum(len(job.rows[i]) for job in self._small if not job.done.done() for i in job.order[job.taken :])
        return min(self._budget, -(-waiting // idle))


def _tokens(batch: Batch) -> int:
    return sum(len(job.rows[i]) for job, i in batch)


def _rows(jobs: deque[_Job], budget: int, now: float, *, at_least: int) -> Batch:
    """The next rows of the jobs, those of the oldest one first: of equal ones some then end early, not all late."""
    batch: Batch = []
    while jobs:
        job = jobs[0]
        if now > job.deadline and not job.done.done():
            job.done.set_exception(TimeoutError())
        if job.done.done() or job.taken == len(job.rows):
            jobs.popleft()
            continue
        row = job.order[job.taken]
        # A row longer than the budget goes nevertheless where one must; it would never fit otherwise.
        if len(batch) >= at_least and len(job.rows[row]) > budget:
            break
        batch.append((job, row))
        budget -= len(job.rows[row])
        job.taken += 1
    return batch


def run_apart(run: Run, rows: Sequence[TokenRow]) -> list[np.ndarray | Failure]:
    """For each row its vector, or why it has none. Where a batch fails, its halves are tried, down to single rows.

    So it is too where memory is short for one row alone: `run` itself halves what is too much together.
    """
    bad = Failure("its vector is not finite", Cause.MODEL)
    try:
        vectors = run(list(rows))
    except FAILURES as error:
        failure = Failure(f"the model failed on it ({type(error).__name__})", Cause.ROW)
        if is_memory_error(error):
            failure = Failure("there was no memory for it", Cause.MEMORY)
    else:
        return [vector if np.isfinite(vector).all() else bad for vector in vectors]
    if failure.cause is Cause.MEMORY:
        # Outside `except`, because until its end the error's traceback keeps the tensors of the batch alive.
        torch.cuda.empty_cache()
    if len(rows) == 1:
        return [failure]
    # By halves: one poisoned row of n costs about 2 log n passes, row by row all n.
    middle = len(rows) // 2
    return run_apart(run, rows[:middle]) + run_apart(run, rows[middle:])
