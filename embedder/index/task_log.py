"""The log of a task: what was written to its documents, through whatever version and process, in one order.

PLACE/TASK/log/000000000042.arrow          a commit: operations (embedder.index.operations)
PLACE/TASK/snapshots/000000004200.arrow    what the operations up to that commit come to
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from concurrent.futures import Future
from typing import NamedTuple

import pyarrow as pa

from embedder.index.operations import OPERATIONS, content_of, folded, operations_of
from embedder.storage.commit_log import CommitLog
from embedder.storage.connect import store_at
from embedder.storage.log_writer import Writer
from embedder.storage.object_store import AnyPath, ObjectPath
from embedder.storage.position import RETENTION, Position, Retention, clock

FOLD_COMMITS = 500
"""Commits after which a snapshot is made; a new reader takes in 400 of them in a second."""
FOLD_SHARE = 100
"""Rows of the last snapshot for each further commit that is waited for, because the next one writes them all again."""
COMMIT_BYTES = 8 * 2**20
"""Of the operations of one commit, unless one call has more."""
BUCKET_LOOK_S = 1.0
"""For so long a look at an object store holds, each of which is paid for; at a folder readers look each time."""


class NewOperations(NamedTuple):
    """What follows a position, or a part of it."""

    operations: pa.Table
    end: Position
    is_whole: bool


class TaskLog:
    """The log of one task in a store. Safe to use from several threads."""

    def __init__(self, place: AnyPath, task: str, retention: Retention = RETENTION) -> None:
        """Know where it is; nothing is asked of the store.

        Raises:
            ConfigError: a parameter of the URI is unknown.
        """
        self._name = f"{place}/{task}"
        self._log = CommitLog(store_at(place), task, clock, retention=retention)
        self._writer = Writer(self._log, Position(0, -1e9), clock, time.sleep, random.random)
        self.look_s = BUCKET_LOOK_S if isinstance(place, ObjectPath) else 0.0
        """How old a reader's view may be before it looks again."""
        self._snapshot_number = self._snapshot_rows = 0
        self._writing = threading.Lock()
        self._waiting: deque[tuple[pa.Table, Future[None]]] = deque()

    def snapshot(self) -> NewOperations:
        """The newest snapshot, as what follows the beginning.

        Raises:
            BundleError: it is damaged.
            StorageError: the store does not answer.
        """
        position, content = self._log.snapshot()
        operations = OPERATIONS.empty_table()
        if content is not None:
            operations = operations_of(content, position.number, f"{self._name}/snapshots")
        self._snapshot_number, self._snapshot_rows = position.number, operations.num_rows
        return NewOperations(operations, position, False)

    def end(self, after: Position) -> Position:
        """The last commit, looked for from a position on.

        Raises:
            StorageError: the store does not answer.
        """
        return self._log.end(after)

    def read(self, after: Position) -> NewOperations:
        """What follows a position; the newest snapshot as a whole where single commits may be gone.

        Raises:
            BundleError: a commit is damaged.
            StorageError: the store does not answer.
        """
        tail = self._log.read(after)
        if tail is None:
            return self.snapshot()
        parts = [
            operations_of(content, after.number + i, f"{self._name}/log")
            for i, content in enumerate(tail.commits, start=1)
        ]
        return NewOperations(pa.concat_tables([OPERATIONS.empty_table(), *parts]), tail.end, tail.is_whole)

    def append(self, operations: pa.Table, known: Position) -> None:
        """Write operations at the end, which is behind a known position.

        What several threads bring while a commit is written is the next commit.

        Raises:
            StorageError: the store takes nothing, or does not answer; they may be in the log all the same.
        """
        done: Future[None] = Future()
        self._waiting.append((operations, done))
        with self._writing:
            while not done.done():
                self._write_together(known, done)
        done.result()

    def _write_together(self, known: Position, own: Future[None]) -> None:
        """Write a commit of what waits, for all that wait; the lock is held. Raises what `own` is told alone."""
        batch = [self._waiting.popleft()]
        size = batch[0][0].nbytes
        while self._waiting and (size := size + self._waiting[0][0].nbytes) <= COMMIT_BYTES:
            batch.append(self._waiting.popleft())
        self._writer.learn(known)
        try:
            self._writer.commit(content_of(pa.concat_tables([operations for operations, _ in batch])))
        except Exception as error:
            # Told to all of them, of which the thread that writes may be none: its own are in a later commit.
            for _, done in batch:
                done.set_exception(error)
            if any(done is own for _, done in batch):
                raise
            return
        for _, done in batch:
            done.set_result(None)

    def append_next(self, operations: pa.Table, after: Position) -> bool:
        """Write operations that were made of all there is up to a position; False: others have written since.

        Raises:
            StorageError: as of `append`.
        """
        with self._writing:
            return self._writer.commit_next(content_of(operations), after) is not None

    def fold(self, end: int, *, at_once: bool = False) -> bool:
        """Store what the log comes to, if there are many commits up to `end`; returns whether it was done.

        Any process may do it; of two that do at once the first counts. What has been replaced for a day is removed.

        Raises:
            BundleError: a commit is damaged.
            StorageError: the store takes nothing, or does not answer.
        """
        most = 0 if at_once else max(FOLD_COMMITS, self._snapshot_rows // FOLD_SHARE)
        if end - self._snapshot_number <= most:
            return False
        # Asked anew, because another process may have made one.
        part = self.snapshot()
        if end - part.end.number <= most:
            return False
        parts = [part.operations]
        while not part.is_whole:
            part = self.read(part.end)
            parts.append(part.operations)
        self._log.put_snapshot(part.end.number, content_of(folded(parts)))
        self._snapshot_number = part.end.number
        self.clean()
        return True

    def clean(self) -> int:
        """Remove what a snapshot has stood for long enough; returns how many commits and snapshots.

        Raises:
            StorageError: the store takes nothing, or does not answer.
        """
        return self._log.clean()

    def stored_before(self, number: int) -> int:
        """How many commits up to a number, and snapshots before it, are still stored.

        Raises:
            StorageError: the store does not answer.
        """
        return self._log.stored_before(number)
