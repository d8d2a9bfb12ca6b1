"""The documents of a task in one shard: a collection on disk, and in memory what was written since.

    GENERATIONS/N/    the collection with all that was written up to commit N; absent: that of the bundle

A generation is made of bundle and log, so that it can be removed, as one that is damaged is. It appears as
a whole, under the number of a commit. So no two that differ have one name, and the highest number counts.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from embedder.errors import BundleError
from embedder.index.collection import Collection, CollectionIdentity, History
from embedder.index.compaction import write_compacted
from embedder.index.memtable import Memtable, MemtableView
from embedder.storage.durable import UNFINISHED, appearing, remove_unfinished

logger = logging.getLogger(__name__)

BUILDING_S = 600.0
"""For so long one that a process has begun to build is its own; while it lives it says so."""


@contextmanager
def kept_young(folder: Path) -> Iterator[None]:
    """Set the time of a folder anew every minute: to fill an index takes long, and nothing appears in it meanwhile."""
    ended = threading.Event()

    def keep() -> None:
        while not ended.wait(BUILDING_S / 10):
            with suppress(FileNotFoundError):
                os.utime(folder)

    keeper = threading.Thread(target=keep, daemon=True)
    keeper.start()
    try:
        yield
    finally:
        ended.set()
        keeper.join()


class Shard:
    """One shard; the caller keeps threads apart."""

    def __init__(self, bundled: Path, generations: Path, identity: CollectionIdentity, space: str, end: int) -> None:
        """Open the newest generation that goes no further than the log, which ends at `end`, or else the bundle's.

        Raises:
            BundleError: the bundle's collection is damaged or belongs elsewhere.
        """
        self._generations, self._identity, self._space = generations, identity, space
        self._taken: list[pa.Table] = []
        self.number = 0
        # Of a log that was brought back from a copy: its numbers come again, and stand for something else then.
        for number in [each for each in self._numbers() if each > end]:
            self._remove(number)
        self.number, base = self.newer(end) or (0, Collection.load(bundled, identity, check=False))
        self.memtable = Memtable(base, space)

    def apply(self, operations: pa.Table) -> None:
        """Take in operations of this shard; what the collection holds already is passed over."""
        new = operations.filter(pc.greater(operations["number"], self.number))
        if new.num_rows:
            self._taken.append(new)
            self.memtable.apply(new)

    def newer(self, end: int) -> tuple[int, Collection] | None:
        """Number and collection of a newer generation that goes no further than `end`, the newest that is whole."""
        for number in sorted(self._numbers(), reverse=True):
            if self.number < number <= end:
                try:
                    return number, Collection.load(self._generations / str(number), self._identity, check=True)
                except BundleError as error:
                    logger.error("a generation is removed: %s", error)
                    # Else the next one of its number would find its place taken.
                    self._remove(number)
        return None

    def rebase(self, number: int, base: Collection) -> bool:
        """Go over to a newer generation, if it is newer still; what came after it stays in memory."""
        if number <= self.number:
            return False
        self.number, self.memtable = number, Memtable(base, self._space)
        taken, self._taken = self._taken, []
        for operations in taken:
            self.apply(operations)
        return True

    @property
    def may_compact(self) -> bool:
        """Whether there is something to compact, and all of it can be."""
        # What waits for its vector would be passed over by who opens the generation.
        return self.memtable.num_operations > 0 and not self.memtable.waiting

    def freeze(self, number: int) -> tuple[MemtableView, History]:
        """All there is at this moment, at which everything up to a commit has been taken in."""
        return self.memtable.view(), History(number, self.memtable.base.writes.updated(dict(self.memtable.writes)))

    def write_generation(self, view: MemtableView, history: History) -> bool:
        """Build a generation of what was frozen; no lock need be held. False: another process is at it."""
        if self._is_building():
            return False
        remove_unfinished(self._generations)
        # What a full disk cuts short is removed at once, because it takes the room that writes need.
        with appearing(self._generations / str(history.generation)) as folder, kept_young(folder):
            write_compacted(view, history, folder)
        return True

    def remove_before(self, number: int) -> None:
        """Remove generations that are older than one which somebody may still be reading."""
        for old in self._numbers():
            if old < number:
                self._remove(old)

    def _remove(self, number: int) -> None:
        shutil.rmtree(self._generations / str(number), ignore_errors=True)

    def _numbers(self) -> Iterator[int]:
        return (int(path.name) for path in list(self._generations.glob("*")) if path.name.isdecimal())

    def _is_building(self) -> bool:
        begun = self._generations.glob(f"{UNFINISHED}*")
        return any(time.time() - path.stat().st_mtime < BUILDING_S for path in begun)
