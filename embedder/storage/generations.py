"""Which files stand for a log up to a number, so that who opens it need not take in all commits.

    FOLDER/current/000000000007.json   a generation: its number, names and SHA-256 of its files; the highest counts
    FOLDER/files/NAME                  files under names that are used once

Anybody builds one. Of two that are built at once one counts and the other one's files are removed later, so that it
needs neither lock nor owner. A file that is missing or altered makes its generation void, and what it was built from
stands in for it.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass

from embedder.errors import BundleError
from embedder.storage.connect import store_time
from embedder.storage.position import RETENTION, Position, Retention
from embedder.storage.revisions import Revisions
from embedder.storage.store import Store


@dataclass(frozen=True)
class Generation:
    """The files that stand for a log up to a number."""

    number: int
    """Of the last commit in it."""
    files: dict[str, str]
    """SHA-256 by name."""

    @classmethod
    def parse(cls, content: bytes) -> Generation:
        """Read a revision.

        Raises:
            BundleError: it is damaged.
        """
        try:
            raw = json.loads(content)
            return cls(int(raw["number"]), {str(name): str(digest) for name, digest in raw["files"].items()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"a generation is damaged ({error}); remove it, and the one before counts") from error


class Generations:
    """The generations in one folder of a store; arguments as of `CommitLog`."""

    def __init__(
        self,
        store: Store,
        folder: str,
        clock: Callable[[], float],
        make_mark: Callable[[int], bytes] = secrets.token_bytes,
        retention: Retention = RETENTION,
    ) -> None:
        self._store, self._make_mark, self._retention = store, make_mark, retention
        self._files = f"{folder}/files"
        self._revisions = Revisions(store, f"{folder}/current", clock, make_mark, retention)

    def newest(self) -> tuple[Position, Generation | None]:
        """The generation that counts, with the number of its revision.

        Raises:
            BundleError: it is damaged.
            StorageError: the store does not answer.
        """
        known, content = self._revisions.newest()
        return known, None if content is None else Generation.parse(content)

    def publish(self, known: Position, current: Generation | None, new: Generation) -> bool:
        """Let a generation, whose files are stored, count after the one that `newest` gave; False: too late.

        Raises:
            StorageError: the store does not answer, or not in time. It may count, or may yet.
        """
        # One that stands for less would make everybody read the commits between the two again.
        if current is not None and new.number <= current.number:
            return False
        return self._revisions.replace(known, json.dumps(asdict(new)).encode())

    def new_name(self, file: str) -> str:
        """A name for a file within the store, used once."""
        return f"{self._files}/{self._make_mark(16).hex()}-{file}"

    def clean(self) -> int:
        """Remove generations that were replaced long enough ago, and files of none that are as old; returns how many.

        Raises:
            BundleError: a generation is damaged.
            StorageError: the store does not answer.
        """
        removed = self._revisions.clean()
        now = store_time(self._store, self._make_mark)
        # Listed before the revisions are read, so that one that is published meanwhile has its files left.
        old = [e.name for e in self._store.entries(self._files) if now - e.stored_s >= self._retention.kept_s]
        named = {name for content in self._revisions.kept() for name in Generation.parse(content).files}
        unnamed = [name for name in old if f"{self._files}/{name}" not in named]
        for name in unnamed:
            self._store.remove(f"{self._files}/{name}")
        return removed + len(unnamed)
