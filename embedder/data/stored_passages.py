"""The passages of a source while it is read, in a file: memory does not grow with the corpus."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from urllib.parse import quote

from embedder.data.fields import Row
from embedder.errors import StorageError
from embedder.storage.durable import storage_failures


class StoredPassages(MutableMapping[str, Row]):
    """Rows of records.PASSAGE by id, in the order in which they came.

    A row that is read is a copy: a change counts once it is set again. The file is for one process and for the time of
    reading, so nothing is made durable.
    """

    def __init__(self, path: Path) -> None:
        """Begin with none, in place of what a killed process left."""
        self._path = path
        with storage_failures(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
        try:
            # Without locks, which some network file systems lack; nobody else opens the file.
            self._rows = sqlite3.connect(f"file:{quote(str(path))}?nolock=1", uri=True, isolation_level=None)
        except sqlite3.OperationalError as error:
            raise StorageError(f"{path}: {error}; correct paths.work, or make room there") from error
        for setting in ("journal_mode = OFF", "synchronous = OFF"):
            self._rows.execute(f"PRAGMA {setting}")
        self._execute("CREATE TABLE passages (number INTEGER PRIMARY KEY, id TEXT UNIQUE, row TEXT)")
        self._execute("BEGIN")
        self._count = 0

    def close(self) -> None:
        """Remove the file."""
        self._rows.close()
        self._path.unlink(missing_ok=True)

    def __getitem__(self, key: str) -> Row:
        found = self._execute("SELECT row FROM passages WHERE id = ?", (key,)).fetchone()
        if found is None:
            raise KeyError(key)
        row: Row = json.loads(found[0])
        return row

    def __setitem__(self, key: str, row: Row) -> None:
        text = json.dumps(row, ensure_ascii=False)
        if self._execute("UPDATE passages SET row = ? WHERE id = ?", (text, key)).rowcount == 0:
            self._insert(key, text)

    def setdefault(self, key: str, row: Row) -> Row:
        """The row that is known by an id, or else this one, which then is."""
        known = self._execute("SELECT row FROM passages WHERE id = ?", (key,)).fetchone()
        if known is None:
            self._insert(key, json.dumps(row, ensure_ascii=False))
            return row
        found: Row = json.loads(known[0])
        return found

    def __delitem__(self, key: str) -> None:
        if self._execute("DELETE FROM passages WHERE id = ?", (key,)).rowcount == 0:
            raise KeyError(key)
        self._count -= 1

    def __contains__(self, key: object) -> bool:
        return self._execute("SELECT 1 FROM passages WHERE id = ?", (key,)).fetchone() is not None

    def __iter__(self) -> Iterator[str]:
        return (key for (key,) in self._execute("SELECT id FROM passages ORDER BY number"))

    def __len__(self) -> int:
        return self._count

    def _insert(self, key: str, text: str) -> None:
        self._execute("INSERT INTO passages (id, row) VALUES (?, ?)", (key, text))
        self._count += 1

    def _execute(self, command: str, values: tuple[object, ...] = ()) -> sqlite3.Cursor:
        """Run one command.

        Raises:
            StorageError: the file cannot be written or read.
        """
        try:
            return self._rows.execute(command, values)
        except sqlite3.OperationalError as error:
            raise StorageError(f"{self._path}: {error}; make room there, and run prepare again") from error
