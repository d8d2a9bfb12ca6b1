"""Numbered objects: a folder of a store in which each number is given once, so that the highest one counts.

Who stores a number first has it, whatever the clocks say. A put whose answer is lost is tried again and then finds the
number taken, perhaps by itself: 16 random bytes at the end of each object tell whose it is.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable

from embedder.errors import StorageError
from embedder.storage.store import Store

DIGITS = 12
MARK_BYTES = 16
TRIES = 3
"""Of one put that gets no answer."""


class NumberedObjects:
    """The numbers of one folder."""

    def __init__(self, store: Store, folder: str, suffix: str) -> None:
        """`suffix` is that of the files, `.json`; numbers begin at 1."""
        self._store, self._folder, self._suffix = store, folder, suffix
        self._name = re.compile(rf"(\d{{{DIGITS}}}){re.escape(suffix)}")

    def put(self, number: int, content: bytes, make_mark: Callable[[int], bytes] = secrets.token_bytes) -> bool:
        """Take a number; returns False if another one has it.

        Raises:
            StorageError: the store does not answer. The object may yet appear, so that nothing else may be told of it
                than that it is not known.
        """
        signed = content + make_mark(MARK_BYTES)
        for attempt in range(1, TRIES + 1):
            try:
                if self._store.put_if_absent(self.name(number), signed):
                    return True
                # Not by the answer alone, which may be to a second sending of what was stored by the first.
                return self._store.get(self.name(number)) == signed
            except StorageError:
                if attempt == TRIES:
                    raise
        return False

    def get(self, number: int) -> bytes | None:
        """The content of a number; None: nobody has it."""
        signed = self._store.get(self.name(number))
        return None if signed is None else signed[:-MARK_BYTES]

    def stored(self, after: int = 0) -> dict[int, float]:
        """The numbers that are taken, ascending, and when each was stored by the store's clock."""
        entries = self._store.entries(self._folder, self.name(after).rpartition("/")[2] if after else "")
        found = [(self._name.fullmatch(entry.name), entry.stored_s) for entry in entries]
        return {int(match[1]): stored_s for match, stored_s in found if match}

    def numbers(self, after: int = 0) -> list[int]:
        """The numbers that are taken, ascending."""
        return list(self.stored(after))

    def latest(self) -> int:
        """The highest number that is taken; 0: none is."""
        return max(self.numbers(), default=0)

    def remove(self, number: int) -> None:
        """Remove an object. Its number must never be taken again: the caller keeps a higher one."""
        self._store.remove(self.name(number))

    def name(self, number: int) -> str:
        """The name of a number's object within the store."""
        return f"{self._folder}/{number:0{DIGITS}d}{self._suffix}"
