"""A document that any process replaces without locks, on any store: its revisions are numbered objects.

    FOLDER/000000000007.json   a revision; the one with the highest number counts

Of two that replace the same revision one succeeds, and the other one sees what it replaced. So a change is never lost
to another one that was made at the same time.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

from embedder.errors import StorageError
from embedder.storage.connect import store_time
from embedder.storage.numbered import NumberedObjects
from embedder.storage.position import RETENTION, Position, Retention, newest, replaced
from embedder.storage.store import Store

SUFFIX = ".json"


class Revisions:
    """The revisions in one folder of a store; arguments as of `CommitLog`."""

    def __init__(
        self,
        store: Store,
        folder: str,
        clock: Callable[[], float],
        make_mark: Callable[[int], bytes] = secrets.token_bytes,
        retention: Retention = RETENTION,
    ) -> None:
        self._store, self._folder, self._clock, self._make_mark = store, folder, clock, make_mark
        self._objects = NumberedObjects(store, folder, SUFFIX)
        self._retention = retention

    def newest(self) -> tuple[Position, bytes | None]:
        """The revision that counts; (0, None) where there is none.

        Raises:
            StorageError: the store does not answer.
        """
        return newest(self._objects, self._clock)

    def replace(self, known: Position, content: bytes) -> bool:
        """Put the revision after one that is known; returns False if another process has replaced that one.

        Raises:
            StorageError: the store does not answer, or not in time. The revision may have counted, or may yet.
        """
        number = known.number + 1
        is_mine = self._objects.put(number, content, self._make_mark)
        is_late = self._clock() - known.since > self._retention.trusted_s
        # Who is late may have taken a number that others have replaced and removed.
        if is_late and self._objects.latest() > number:
            raise StorageError(
                f"{self._store}/{self._folder}: a change took longer than {self._retention.trusted_s:g} s, so that it "
                "is not known whether it counted; see what is there now and make it again"
            )
        return is_mine

    def change(self, change: Callable[[bytes | None], bytes]) -> None:
        """Put the revision that a function makes of the one that counts, again until no other process came between.

        One that says the same is not put.

        Raises:
            StorageError: as of `replace`.
        """
        known, content = self.newest()
        while (changed := change(content)) != content and not self.replace(known, changed):
            known, content = self.newest()

    def clean(self) -> int:
        """Remove the revisions that were replaced long enough ago; returns how many.

        Raises:
            StorageError: the store does not answer.
        """
        now = store_time(self._store, self._make_mark)
        _, old = replaced(self._objects.stored(), now, self._retention)
        for number in old:
            self._objects.remove(number)
        return len(old)
