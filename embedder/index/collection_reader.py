"""How far a process has read a collection: which generation, and how much of the log on top of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from embedder.errors import BundleError
from embedder.index.collection import Collection, CollectionIdentity
from embedder.index.log import Log
from embedder.index.manifest import REMEDY
from embedder.index.memtable import Memtable
from embedder.index.state_folder import StateFolder
from embedder.storage.durable import locked


@dataclass
class Reading:
    """How far one generation and its log have been read."""

    generation: int
    base: Collection
    memtable: Memtable
    segment: int
    """Number of the log segment that is read; one below the generation while there is none."""
    log: Log | None = None
    position: int = 0


class Reader:
    """What is read of a collection; the caller keeps threads apart."""

    def __init__(self, bundled: Path, files: StateFolder, identity: CollectionIdentity) -> None:
        """Read all there is.

        Raises:
            BundleError: a file is missing or damaged, or belongs elsewhere.
        """
        self.identity, self._bundled, self._files = identity, bundled, files
        self.current = self.open()
        self._is_recovered = self._recover()
        self.catch_up()

    def catch_up(self) -> None:
        """Take in what has been written since, by any process."""
        while True:
            reading = self.current
            following = self._files.segment(reading.segment + 1)
            # Before the log is read: with a successor it grows no more. Asked afterwards, a write in between is lost.
            has_successor = following.exists()
            if reading.log is not None:
                batches, reading.position = reading.log.read(reading.position)
                for batch in batches:
                    reading.memtable.apply(batch)
            if has_successor:
                reading.segment, reading.log = reading.segment + 1, Log(following, self.identity)
                reading.position = reading.log.start
                if not self._is_recovered:
                    reading.log.peek()
                continue
            if reading.log is not None and reading.log.path.exists():
                return
            if self._files.current()[0] == reading.generation:
                return
            # Others have compacted twice since, and removed the log that was read here: all is opened anew.
            self.current = self.open()

    def open(self) -> Reading:
        """The current generation, with none of its log read yet."""
        generation, digest = self._files.current()
        try:
            folder = self._files.generation(generation) if generation else self._bundled
            base = Collection.load(folder, self.identity, check=generation > 0)
            if generation and base.info.digest != digest:
                raise BundleError(f"{folder}: not the generation that {self._files.current_path} names; {REMEDY}")
            segments = self._files.segments()
            # A compaction begins its segment before it moves CURRENT; the bundle itself has none until the first write.
            for number in range(generation, max([generation or -1, *segments]) + 1):
                if number not in segments:
                    raise BundleError(f"{self._files.segment(number)}: missing; {REMEDY}")
        except BundleError:
            # A compaction may have removed the files while they were opened; then the new generation is to be read.
            if self._files.current()[0] == generation:
                raise
            return self.open()
        return Reading(generation, base, Memtable(base), generation - 1)

    def _recover(self) -> bool:
        """End what a kill cut short in the last segment; returns False where the disk is read-only or fails."""
        segments = self._files.segments()
        try:
            if segments:
                with locked(self._files.write_lock):
                    Log(self._files.segment(max(segments)), self.identity).recover()
        except OSError:
            # Searches are served all the same. What would be taken in is read where it stands.
            return False
        return True
