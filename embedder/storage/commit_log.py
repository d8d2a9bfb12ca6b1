"""A log that processes append to without locks, on any store: its commits are numbered objects in their one order.

    FOLDER/log/000000000042.arrow         a commit, whatever the caller makes of it
    FOLDER/snapshots/000000004200.arrow   what the commits up to that number come to

Who opens a log takes the newest snapshot and the commits after it. Snapshots are made by anybody, of the same commits
and so with the same content. `clean` removes the commits that a snapshot has stood for long enough
(embedder.storage.position). Neither threads nor waiting are here.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import NamedTuple

from embedder.errors import StorageError
from embedder.storage.connect import store_time
from embedder.storage.numbered import NumberedObjects
from embedder.storage.position import RETENTION, Position, Retention, newest, replaced
from embedder.storage.store import Store

SUFFIX = ".arrow"
COMMITS_AT_ONCE = 100
"""Read by one call, so that a long log is taken in part by part."""


class Tail(NamedTuple):
    """Commits that follow a position."""

    commits: list[bytes]
    end: Position
    """Of the last of them."""
    is_whole: bool
    """There was no further commit at some moment of the call."""


class CommitLog:
    """The log of one folder of a store.

    `clock` tells seconds that pass while the machine sleeps too; `make_mark` makes random bytes.
    """

    def __init__(
        self,
        store: Store,
        folder: str,
        clock: Callable[[], float],
        make_mark: Callable[[int], bytes] = secrets.token_bytes,
        retention: Retention = RETENTION,
    ) -> None:
        self._store, self._folder, self._clock, self._make_mark = store, folder, clock, make_mark
        self._commits = NumberedObjects(store, f"{folder}/log", SUFFIX)
        self._snapshots = NumberedObjects(store, f"{folder}/snapshots", SUFFIX)
        self._retention = retention

    def end(self, after: Position) -> Position:
        """The number of the last commit, looked for from a position on.

        Raises:
            StorageError: the store does not answer.
        """
        began = self._clock()
        last = max(self._commits.numbers(after.number), default=after.number)
        # Asked after the listing: what was listed below the snapshot may be a put that came too late.
        return Position(last if self._is_trusted(after) else max(last, self._snapshots.latest()), began)

    def append(self, content: bytes, after: Position) -> Position:
        """Write a commit at the end of the log, which is looked for from a position on; returns where it stands.

        Raises:
            StorageError: the store does not answer, or not in time. The commit may be in the log or may yet be.
        """
        after = after if self._is_trusted(after) else self.end(after)
        while (written := self.append_next(content, after)) is None:
            after = self.end(after)
        return written

    def append_next(self, content: bytes, after: Position) -> Position | None:
        """Write a commit right after a position; None: another one stands there.

        Raises:
            StorageError: as of `append`.
        """
        if not self._is_trusted(after):
            end = self.end(after)
            if end.number > after.number:
                return None
            after = end
        # Taken before the first try: of a put whose answer is lost the next one finds the object.
        began = self._clock()
        is_mine = self._commits.put(after.number + 1, content, self._make_mark)
        # Also where another commit has the number: ours may have been there, and been folded and removed since.
        if self._confirmed(after) is None:
            raise StorageError(
                f"{self._store}/{self._folder}: a commit took longer than {self._retention.trusted_s:g} s, so that "
                "it is not known whether it was stored; send it again"
            )
        return Position(after.number + 1, began) if is_mine else None

    def read(self, after: Position) -> Tail | None:
        """The commits that follow a position, or some of them; None: they may be gone, so that all is opened anew.

        Raises:
            StorageError: the store does not answer.
        """
        commits: list[bytes] = []
        began, is_whole = self._clock(), False
        while len(commits) < COMMITS_AT_ONCE and not is_whole:
            content = self._commits.get(after.number + len(commits) + 1)
            is_whole = content is None
            if content is not None:
                commits.append(content)
        # After the reading: what was trusted then is what the log holds, and not what came too late.
        confirmed = self._confirmed(after)
        if confirmed is None:
            return None
        return Tail(commits, Position(after.number + len(commits), began if is_whole else confirmed.since), is_whole)

    def snapshot(self) -> tuple[Position, bytes | None]:
        """The newest snapshot, and the number of the last commit in it; (0, None) where there is none.

        Raises:
            StorageError: the store does not answer.
        """
        return newest(self._snapshots, self._clock)

    def put_snapshot(self, number: int, content: bytes) -> None:
        """Store what the commits up to a number come to, unless somebody has.

        Raises:
            StorageError: the store does not answer.
        """
        self._snapshots.put(number, content, self._make_mark)

    def clean(self) -> int:
        """Remove the commits and snapshots that a newer snapshot has stood for long enough; returns how many.

        Raises:
            StorageError: the store does not answer.
        """
        now = store_time(self._store, self._make_mark)
        kept, old = replaced(self._snapshots.stored(), now, self._retention)
        commits = [number for number in self._commits.numbers() if number <= kept] if kept else []
        for number in commits:
            self._commits.remove(number)
        for number in old:
            self._snapshots.remove(number)
        return len(commits) + len(old)

    def stored_before(self, number: int) -> int:
        """How many commits up to a number, and snapshots before it, are still stored.

        Raises:
            StorageError: the store does not answer.
        """
        commits = sum(each <= number for each in self._commits.numbers())
        return commits + sum(each < number for each in self._snapshots.stored())

    def _is_trusted(self, position: Position) -> bool:
        return self._clock() - position.since <= self._retention.trusted_s

    def _confirmed(self, position: Position) -> Position | None:
        """The position, with a later time if it had to be asked for; None: a snapshot has overtaken it."""
        if self._is_trusted(position):
            return position
        began = self._clock()
        return Position(position.number, began) if self._snapshots.latest() <= position.number else None
