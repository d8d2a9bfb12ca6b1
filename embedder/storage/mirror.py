"""A run in an object store, worked on in a folder: what is there is fetched first, what the job writes is sent.

Jobs and libraries that rename, append and map files need a folder. `embedder.run.workspace` gives them one below
`paths.cache`, sends what changed every half minute and at the end, and fetches on another machine what is missing.

The store is the truth, except for what the folder that wrote last has not sent yet: `mirror.json` in the store names
that writer. It also names what a push is about to send: new files that may not all be there are never fetched, and
while files are being replaced nobody else fetches at all.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from uuid import uuid4

from embedder.console import console, progress
from embedder.credentials import is_secret_file
from embedder.errors import DataError
from embedder.storage.durable import write_durably
from embedder.storage.json_file import write_json
from embedder.storage.object_store import ObjectPath, download, upload

STATE = "mirror.json"
"""The file in the store that holds a State."""
RECORD = ".mirror.json"
"""The file in the folder that holds a Record."""
NOT_MIRRORED = ("indexes/states/", "indexes/writes/")
"""What a service makes on its machine, and what it writes to the store itself: neither sent nor fetched."""
AT_ONCE = 16
"""Files that are sent or fetched together."""
NOTED_AFTER = 1024
"""Files after which a fetch or push notes how far it is."""
STATE_READS = 10
YOUNG_S = 60.0
"""Stores tell the time of a change in whole seconds: an object younger than this may change again unseen."""
Stamp = tuple[int, int]
"""Size in bytes and time of the last change, in ns."""
Common = tuple[Stamp, Stamp]
"""The stamps of a file here and there at a time when both were the same."""


@dataclass(frozen=True)
class State:
    """The store's own note on who writes to it, and how far."""

    writer: str = ""
    """The folder that has sent last."""
    sending: list[str] = field(default_factory=list)
    """New files of a push that has not ended."""
    replacing: list[str] = field(default_factory=list)
    """Files that this push replaces."""

    @property
    def is_unfinished(self) -> bool:
        return bool(self.sending or self.replacing)


@dataclass
class Record:
    """The folder's own note on what it shares with the store."""

    writer: str
    """Its own name."""
    files: dict[str, Common] = field(default_factory=dict)
    """The files that are the same here and in the store."""

    def changed(self, here: dict[str, Stamp]) -> list[str]:
        """Files that are not as they were last sent or fetched, the oldest first."""
        changed = [name for name, stamp in here.items() if name not in self.files or self.files[name][0] != stamp]
        return sorted(changed, key=lambda name: here[name][1])

    def gone(self, here: dict[str, Stamp]) -> set[str]:
        """Files that were sent or fetched and are there no more."""
        return self.files.keys() - here.keys()


@dataclass(frozen=True)
class Mirror:
    """A path in an object store and the folder that stands for it."""

    remote: ObjectPath
    folder: Path
    only: str | None = None
    """The one object that counts; None: all."""

    def pull(self) -> int:
        """Bring the folder in line with the store, keeping its changes not yet sent; returns the files fetched.

        Raises:
            DataError: the store does not answer, or refuses; or another one's push was cut off as it replaced files.
        """
        record, state, stored, here = self._record(), read_state(self.remote), self._stored(), self._files()
        is_mine = state.writer == record.writer
        if state.replacing and not is_mine:
            raise DataError(
                f"{self.remote}: a push was cut off while it replaced {len(state.replacing)} files, first "
                f"{state.replacing[0]}; run the job again on the machine that sent it, or, to take the files as they "
                f"are, remove {self.remote / STATE}"
            )
        unfinished = set(state.sending)
        there = {name: stamp for name, stamp in stored.items() if name not in unfinished}
        changed = set(record.changed(here))
        kept = changed if is_mine else set()
        wanted = [
            name
            for name, stamp in there.items()
            if name not in kept and (name not in here or name in changed or stamp != record.files[name][1])
        ]
        self._all(wanted, "fetch", lambda name: self._fetch(name, there[name]), record)
        for name in here.keys() - stored.keys() - kept:
            self._forget(name)
        record.files = {name: stamps for name, stamps in record.files.items() if name in there}
        self._write_record(record)
        return len(wanted)

    def claim(self) -> None:
        """Become the folder that sends; to be called after `pull`. Another one that is at work cannot send any more."""
        record, state = self._record(), read_state(self.remote)
        if state.writer != record.writer:
            # The record first, because it holds the name by which the store will know this folder.
            self._write_record(record)
            self._write_state(replace(state, writer=record.writer))

    def push(self) -> int:
        """Send new and changed files, and delete removed ones; returns how many were sent.

        Raises:
            DataError: the store does not answer, or refuses; or another folder has claimed it since.
        """
        record, state, here, sent = self._record(), read_state(self.remote), self._files(), 0
        is_mine = state.writer == record.writer
        if not (record.changed(here) or record.gone(here) or (is_mine and state.is_unfinished)):
            return 0
        if not is_mine:
            raise DataError(f"{self.remote}: another machine works there now, so nothing is sent from {self.folder}")
        # New files first, and again until there are none: readers leave them out by name, so the job may write on.
        while new := [name for name in record.changed(here) if name not in record.files]:
            sending = sorted({*state.sending, *new})
            self._write_state(replace(state, sending=sending))
            self._all(new, "send", self._send, record)
            sent += len(new)
            here = self._files()
        self._remove(name for name in state.sending if name not in here)
        changed = record.changed(here)
        # From here on nobody else fetches: old and new content of one run must not be mixed.
        self._write_state(State(record.writer, replacing=changed))
        self._all(changed, "send", self._send, record)
        gone = record.gone(self._files())
        self._remove(gone)
        record.files = {name: stamps for name, stamps in record.files.items() if name not in gone}
        # The record before the state: after a kill between the two the push is ended by the next one.
        self._write_record(record)
        self._write_state(State(record.writer))
        return sent + len(changed)

    def _all(self, names: list[str], verb: str, act: Callable[[str], Common | None], record: Record) -> None:
        """Fetch or send files, and note them as common to both sides, some at a time."""
        if not names:
            return
        with progress(f"{verb}: {self.remote}", len(names), console()) as counter, ThreadPoolExecutor(AT_ONCE) as pool:
            for first in range(0, len(names), NOTED_AFTER):
                some = names[first : first + NOTED_AFTER]
                for name, common in zip(some, pool.map(act, some), strict=True):
                    if common is not None:
                        record.files[name] = common
                    counter.advance(1)
                self._write_record(record)

    def _fetch(self, name: str, there: Stamp) -> Common:
        download(self.remote / name, self.folder / name)
        return self._stamp(name), _settled(there)

    def _send(self, name: str) -> Common | None:
        """None: it was removed since it was listed. What is written to it meanwhile is sent the next time."""
        try:
            # Stamped before it is sent: what is written to it meanwhile then counts as changed.
            here = self._stamp(name)
            upload(self.folder / name, self.remote / name)
        except FileNotFoundError:
            return None
        return here, _settled((self.remote / name).stamp())

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            if (self.remote / name).is_file():
                (self.remote / name).unlink()

    def _forget(self, name: str) -> None:
        """Remove a file here, and the folders that it leaves empty."""
        path = self.folder / name
        path.unlink(missing_ok=True)
        with suppress(OSError):  # not empty
            while path.parent != self.folder:
                path = path.parent
                path.rmdir()

    def _stored(self) -> dict[str, Stamp]:
        """Every object of the run by its name."""
        if self.only is not None:
            return {self.only: (self.remote / self.only).stamp()}
        return {name: stamp for name, stamp in self.remote.walk() if is_mirrored(name)}

    def _files(self) -> dict[str, Stamp]:
        """Every finished file of the folder by its name."""
        stamps = {}
        for where, folders, files in os.walk(self.folder, onerror=_raise_unless_gone):
            folders[:] = [name for name in folders if not name.startswith(".")]
            names = (Path(where, name).relative_to(self.folder).as_posix() for name in files)
            for name in filter(is_mirrored, names):
                with suppress(FileNotFoundError):  # removed since it was listed
                    stamps[name] = self._stamp(name)
        return stamps

    def _stamp(self, name: str) -> Stamp:
        known = (self.folder / name).stat()
        return known.st_size, known.st_mtime_ns

    def _write_state(self, state: State) -> None:
        write_json(asdict(state), self.remote / STATE)

    def _record(self) -> Record:
        path = self.folder / RECORD
        if not path.is_file():
            return Record(uuid4().hex)
        raw = json.loads(path.read_text(encoding="utf-8"))
        files = {name: (tuple(here), tuple(there)) for name, (here, there) in raw["files"].items()}
        return Record(raw["writer"], files)

    def _write_record(self, record: Record) -> None:
        write_durably(self.folder / RECORD, json.dumps(asdict(record)).encode())


def read_state(run: ObjectPath) -> State:
    """What a run in the store says of itself; read again where another machine has just replaced it, half way through.

    Raises:
        DataError: it is damaged.
    """
    state = run / STATE
    for _ in range(STATE_READS):
        try:
            return State(**json.loads(state.read_text())) if state.is_file() else State()
        except (ValueError, TypeError):
            time.sleep(0.2)
    raise DataError(f"{state}: not readable; remove it, and run the job on the machine that has sent last")


def unsent(path: ObjectPath) -> list[str]:
    """Files at or below a path inside a run that a push of the run is sending, or was as it was cut off."""
    names, unfinished = path.key.split("/"), []
    for depth in range(1, len(names)):
        state = read_state(ObjectPath(path.store, "/".join(names[:depth])))
        inside = "/".join(names[depth:])
        unfinished += [name for name in state.sending + state.replacing if f"{name}/".startswith(f"{inside}/")]
    return unfinished


def is_mirrored(name: str) -> bool:
    """Whether a file of a run is sent and fetched: no scratch, lock or key, not the mirror's own, not a service's."""
    hidden = any(part.startswith(".") for part in name.split("/"))
    # By its own name alone, because folders of a run are named after datasets.
    is_secret = is_secret_file(PurePosixPath(PurePosixPath(name).name))
    return not (hidden or is_secret or name.endswith(".lock") or name == STATE or name.startswith(NOT_MIRRORED))


def _raise_unless_gone(error: OSError) -> None:
    """A folder that cannot be read must not pass for an empty one."""
    if not isinstance(error, FileNotFoundError):
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}); fix its permissions") from error


def _settled(stamp: Stamp) -> Stamp:
    """The stamp of an object; of a young one such that the next fetch takes it for another."""
    return stamp if stamp[1] < (time.time() - YOUNG_S) * 1e9 else (stamp[0], 0)
