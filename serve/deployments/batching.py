"""Texts of many requests in one forward pass: as many tokens as fit, every request in turn, a poisoned one alone.

No waiting for more: while a batch is computed, what arrives waits for the next one. Needs neither Ray nor the web.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from embedder.models.encoder import TokenRow

Run = Callable[[list[TokenRow]], np.ndarray]
"""Token rows to vectors (N, D)."""
Observe = Callable[[int, int, float], None]
"""Told of each batch: rows, tokens, and how many seconds the request that waited longest for its first row did so."""

FAILURES = (RuntimeError, IndexError, ValueError, TypeError, MemoryError)
"""What a forward pass raises on rows it cannot take, and where memory is short (torch's own is a RuntimeError)."""


class Failure(NamedTuple):
    """Why a row has no vector."""

    reason: str
    is_of_the_model: bool
    """The model took the row, and gave a vector that is none."""


class NotEncodable(Exception):
    """A row that the model fails on even alone."""

    def __init__(self, row: int, failure: Failure) -> None:
        super().__init__(row, failure.reason)
        self.row, self.failure = row, failure


@dataclass(eq=False)
class _Job:
    """The rows of one request."""

    rows: list[TokenRow]
    done: asyncio.Future[np.ndarray]
    vectors: list[np.ndarray] = field(default_factory=list)
    """Vectors of the first rows, which are computed in their order."""
    taken: int = 0
    since: float = field(default_factory=time.perf_counter)

    def settle(self, outcome: np.ndarray | Failure) -> None:
        """Note the vector of the next row, or why there is none, which ends the request."""
        if self.done.done():
            return
        if isinstance(outcome, Failure):
            self.done.set_exception(NotEncodable(len(self.vectors), outcome))
            return
        self.vectors.append(outcome)
        if len(self.vectors) == len(self.rows):
            self.done.set_result(np.stack(self.vectors))


class TokenBatcher:
    """Runs the rows of all requests through one model, one batch at a time."""

    def __init__(self, run: Run, budget: int, executor: Executor, observe: Observe) -> None:
        """`budget`: tokens of a batch."""
        self._run, self._budget, self._executor, self._observe = run, budget, executor, observe
        self._jobs: deque[_Job] = deque()
        self._running: asyncio.Task[None] | None = None

    async def submit(self, rows: list[TokenRow]) -> np.ndarray:
        """The vectors (N, D) of one request. One that is cancelled is dropped before its next rows are computed.

        Raises:
            NotEncodable: the model fails on one of the rows, whichever others stand beside it.
        """
        job = _Job(rows, asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        if self._running is None:
            # Kept, because the event loop holds tasks weakly and one that nobody refers to may vanish.
            self._running = asyncio.create_task(self._work())
        return await job.done

    @property
    def waiting(self) -> int:
        """Rows that no batch has taken yet."""
        return sum(len(job.rows) - job.taken for job in self._jobs if not job.done.done())

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while batch := self._take():
                rows = [row for _, row in batch]
                now = time.perf_counter()
                waits = [now - job.since for job, row in batch if row is job.rows[0]]
                self._observe(len(rows), sum(map(len, rows)), max(waits, default=0.0))
                outcomes = await loop.run_in_executor(self._executor, run_apart, self._run, rows)
                for (job, _), outcome in zip(batch, outcomes, strict=True):
                    job.settle(outcome)
        finally:
            self._running = None

    def _take(self) -> list[tuple[_Job, TokenRow]]:
        """The rows of the next batch: one of each request in turn, so that a long request holds up no short one."""
        batch: list[tuple[_Job, TokenRow]] = []
        tokens = 0
        while self._jobs:
            job = self._jobs[0]
            if job.done.done() or job.taken == len(job.rows):
                self._jobs.popleft()
                continue
            row = job.rows[job.taken]
            # A row longer than the budget goes alone; it would never fit otherwise.
            if batch and tokens + len(row) > self._budget:
                break
            batch.append((job, row))
            tokens += len(row)
            job.taken += 1
            self._jobs.rotate(-1)
        return batch


def run_apart(run: Run, rows: Sequence[TokenRow]) -> list[np.ndarray | Failure]:
    """For each row its vector, or why it has none. Where a batch fails, its halves are tried, down to single rows."""
    try:
        vectors = run(list(rows))
    except FAILURES as error:
        if len(rows) == 1:
            return [Failure(f"the model failed on it ({type(error).__name__})", is_of_the_model=False)]
        # By halves: one poisoned row of n costs about 2 log n passes, row by row all n.
        middle = len(rows) // 2
        return run_apart(run, rows[:middle]) + run_apart(run, rows[middle:])
    bad = Failure("its vector is not finite", is_of_the_model=True)
    return [vector if np.isfinite(vector).all() else bad for vector in vectors]
