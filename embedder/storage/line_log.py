"""Lines that one process adds while others read them.

metrics.jsonl              a file; a kill may cut its last line
metrics.jsonl/00000001     in an object store, where nothing can be added to an object: some lines each
"""

from __future__ import annotations

import os
import time
from itertools import takewhile

from embedder.storage.object_store import AnyPath, ObjectPath, entries, replacing

PUT_EVERY_S = 5.0
"""Between two objects in a store."""


class LineWriter:
    """Adds lines; of one path there may be one at a time."""

    def __init__(self, path: AnyPath) -> None:
        self._path = path
        self._waiting: list[bytes] = []
        self._put_at = time.monotonic()
        self._number = int(max(each.name for each in entries(path, "*")) if self._in_store and path.is_dir() else 0)

    def add(self, line: bytes) -> None:
        """Add a line without its end; in a store that is done at intervals."""
        self._waiting.append(line + b"\n")
        if not self._in_store or time.monotonic() - self._put_at >= PUT_EVERY_S:
            self.put()

    def put(self) -> None:
        """Add what waits, now.

        Raises:
            DataError: the store does not answer, or refuses.
        """
        if not self._waiting:
            return
        if isinstance(self._path, ObjectPath):
            self._number += 1
            with replacing(self._path / f"{self._number:08d}") as file:
                file.write(b"".join(self._waiting))
        else:
            with self._path.open("a+b") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(0, end - 1))
                torn = b"\n" if end and file.read(1) != b"\n" else b""  # a line that a kill cut must not spoil this one
                file.write(torn + b"".join(self._waiting))
        self._waiting, self._put_at = [], time.monotonic()

    @property
    def _in_store(self) -> bool:
        return isinstance(self._path, ObjectPath)


class LineReader:
    """Reads lines while they are added, each once."""

    def __init__(self, path: AnyPath) -> None:
        self._path, self._read = path, 0
        self._known: set[str] = set()

    def new(self) -> list[bytes]:
        """The lines that were added since the last call, in their order.

        Raises:
            DataError: the store does not answer, or refuses.
        """
        if isinstance(self._path, ObjectPath):
            added = [each for each in entries(self._path, "*") if each.name not in self._known]
            found = [line for each in added for line in each.read_text().encode().splitlines()]
            self._known.update(each.name for each in added)
            return found
        if not self._path.is_file():
            return []
        with self._path.open("rb") as file:
            file.seek(self._read)
            # A line without its end is still being written: it is read by the next call.
            lines = list(takewhile(lambda line: line.endswith(b"\n"), file))
        self._read += sum(map(len, lines))
        return lines
