"""One process's appending to a log, which gives way to others so that none of them waits for long.

A writer that goes on without a pause puts its next commit before a rival has learned of the last one, again and again.
So whoever has lost a race, and now and then everybody, waits a little after a commit of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from embedder.storage.commit_log import CommitLog
from embedder.storage.position import Position

CONTESTED_S = 5.0
"""After a lost race a writer waits after each of its commits for so long."""
SHARE = 0.1
"""Of the commits after which it waits otherwise."""
PAUSE = (1.0, 4.0)
"""How long it waits, in times of the last put."""


class Writer:
    """The one that appends in a process; not to be used by two threads at once.

    `start` is where it looks for the end of the log; `sleep` waits for so many seconds; `draw` gives random numbers
    from 0 to 1.
    """

    def __init__(
        self,
        log: CommitLog,
        start: Position,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
        draw: Callable[[], float],
    ) -> None:
        self._log, self._clock, self._sleep, self._draw = log, clock, sleep, draw
        self._end = start
        self._lost_at = self._next_at = -inf

    def learn(self, end: Position) -> None:
        """Look for the end of the log from a later position on, which this process has read to."""
        self._end = max(self._end, end)

    def commit(self, content: bytes) -> int:
        """Append a commit and return its number; it is durable, and in the log once, when this returns.

        Raises:
            StorageError: the store does not answer, or not in time. The commit may be in the log or may yet be.
        """
        self._sleep(max(0.0, self._next_at - self._clock()))
        first = self._end.number + 1
        self._end = self._log.append(content, self._end)
        self._take_turn(is_first=self._end.number == first)
        return self._end.number

    def commit_next(self, content: bytes, after: Position) -> int | None:
        """Append a commit right after a position; None: another one stands there, so that its maker looks again.

        Raises:
            StorageError: as of `commit`.
        """
        self._sleep(max(0.0, self._next_at - self._clock()))
        written = self._log.append_next(content, after)
        if written is None:
            self._lost_at = self._clock()
            return None
        self._end = written
        self._take_turn(is_first=True)
        return written.number

    def _take_turn(self, *, is_first: bool) -> None:
        now = self._clock()
        if not is_first:
            self._lost_at = now
        # Not before the answer: whoever waits for this commit need not wait for the pause.
        if now - self._lost_at < CONTESTED_S or self._draw() < SHARE:
            self._next_at = now + (PAUSE[0] + (PAUSE[1] - PAUSE[0]) * self._draw()) * (now - self._end.since)
