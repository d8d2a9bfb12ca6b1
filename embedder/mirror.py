"""A run in an object store, worked on in a folder: what is there is fetched first, what the job writes is sent.

Jobs and libraries that rename, append and map files need a folder. `workplace` gives them one below `paths.cache`,
sends what changed every half minute and at the end, and fetches on another machine what is missing there. A push that
is cut off is never fetched by halves: new files count once all of them are there (`mirror.json` in the store names
those that may not be), and only then files that were there before are replaced, the oldest first.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

from embedder.config import RunConfig
from embedder.durable import locked, write_durably
from embedder.errors import ConfigError, DataError
from embedder.progress import progress
from embedder.records import content_id, write_json
from embedder.reports import console
from embedder.storage import ObjectPath, download, upload

logger = logging.getLogger(__name__)

STATE = "mirror.json"
"""In the store: the names of new files of a push that was begun and not ended."""
RECORD = ".mirror.json"
"""In the folder: what it had in common with the store at the last fetch or push."""
AT_ONCE = 16
"""Files that are sent or fetched together."""
PUSH_S = 30.0
"""Between two pushes while a job runs."""
YOUNG_S = 60.0
"""Stores tell the time of a change in whole seconds: an object younger than this may change again unseen."""
Stamp = tuple[int, int]
"""Size in bytes and time of the last change, in ns."""


@dataclass(frozen=True)
class Mirror:
    """A place in an object store and the folder that stands for it."""

    place: ObjectPath
    folder: Path

    @classmethod
    def of(cls, config: RunConfig) -> Mirror | None:
        """The mirror of a run; None for a run in a folder."""
        work = config.paths.work
        if not isinstance(work, ObjectPath):
            return None
        return cls(work, config.paths.cache / "mirrors" / content_id(work.uri)[:16] / work.name)

    def pull(self) -> int:
        """Fetch what the store has and the folder lacks, and forget what was removed there; returns the files fetched.

        What the folder changed or removed since the last push stays so.

        Raises:
            DataError: the store does not answer, or refuses.
        """
        record, there = self._record(), self._stored()
        for name in self._unfinished():
            there.pop(name, None)
        here = self._files()
        wanted = [
            name
            for name, stamp in there.items()
            if (name not in record and name not in here)
            or (name in record and here.get(name) == record[name][0] and stamp != record[name][1])
        ]
        self._each("fetch", wanted, lambda name: download(self._object(name), self.folder / name))
        for name in record.keys() - there.keys():
            if here.get(name) == record[name][0]:
                (self.folder / name).unlink(missing_ok=True)
                del here[name]
        here |= {name: stamp for name, stamp in self._files().items() if name in wanted}
        kept = {name: record[name] for name in record.keys() & there.keys()}
        self._write_record(kept | {name: (here[name], _settled(there[name])) for name in wanted})
        return len(wanted)

    def push(self) -> int:
        """Send what the folder has anew, and remove what it has removed; returns the files sent.

        Raises:
            DataError: the store does not answer, or refuses.
        """
        record, here = self._record(), self._files()
        changed = [name for name, stamp in here.items() if name not in record or record[name][0] != stamp]
        gone = record.keys() - here.keys()
        if not changed and not gone:
            return 0
        new = [name for name in changed if name not in record]
        if new:
            write_json({"unfinished": sorted({*self._unfinished(), *new})}, self.place / STATE)
            self._each("send", new, self._send)
            write_json({"unfinished": []}, self.place / STATE)
        for name in sorted(set(changed) - set(new), key=lambda name: here[name][1]):
            self._send(name)
        for name in gone:
            with suppress(DataError):  # it is gone there too
                self._object(name).unlink()
        there = self._stored()
        sent = {name: (here[name], _settled(there[name])) for name in changed if name in there}
        self._write_record({name: stamps for name, stamps in record.items() if name not in gone} | sent)
        return len(changed)

    def _send(self, name: str) -> None:
        with suppress(FileNotFoundError):  # removed since it was listed
            upload(self.folder / name, self._object(name))

    def _each(self, verb: str, names: list[str], act: Callable[[str], None]) -> None:
        if not names:
            return
        with progress(f"{verb}: {self.place}", len(names), console()) as counter, ThreadPoolExecutor(AT_ONCE) as pool:
            for _ in pool.map(act, names):
                counter.advance(1)

    def _object(self, name: str) -> ObjectPath:
        return ObjectPath(self.place.store, f"{self.place.key}/{name}")

    def _stored(self) -> dict[str, Stamp]:
        """Every object of the run by its name."""
        return {name: stamp for name, stamp in self.place.walk() if name != STATE}

    def _files(self) -> dict[str, Stamp]:
        """Every finished file of the folder by its name; dot files and locks stay here."""
        found = {}
        for path in self.folder.rglob("*"):
            inside = path.relative_to(self.folder)
            if path.suffix == ".lock" or any(part.startswith(".") for part in inside.parts):
                continue
            with suppress(FileNotFoundError):  # removed while they are listed
                if path.is_file():
                    known = path.stat()
                    found[inside.as_posix()] = (known.st_size, known.st_mtime_ns)
        return found

    def _unfinished(self) -> list[str]:
        state = self.place / STATE
        return list(json.loads(state.read_text())["unfinished"]) if state.is_file() else []

    def _record(self) -> dict[str, tuple[Stamp, Stamp]]:
        path = self.folder / RECORD
        raw = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return {name: (tuple(here), tuple(there)) for name, (here, there) in raw.items()}

    def _write_record(self, record: dict[str, tuple[Stamp, Stamp]]) -> None:
        write_durably(self.folder / RECORD, json.dumps(record).encode())


def _settled(stamp: Stamp) -> Stamp:
    """The stamp of an object; of a young one such that the next fetch takes it for another."""
    return stamp if stamp[1] < (time.time() - YOUNG_S) * 1e9 else (stamp[0], 0)


@contextmanager
def workplace(config: RunConfig, *, writes: bool) -> Iterator[RunConfig]:
    """The same run with `paths.work` in a folder; of a run in an object store what is there is fetched, and sent after.

    On a cluster every node must mount `paths.cache`. Without `writes` nothing is sent, and nothing fetched while a job
    is at work in the same mirror.

    Raises:
        ConfigError: another job is at work in the same mirror.
        DataError: the store does not answer, or refuses.
    """
    mirror = Mirror.of(config)
    if mirror is None:
        yield config
        return
    with locked(mirror.folder.parent / "mirror.lock", wait=False) as is_mine:
        if writes and not is_mine:
            raise ConfigError(f"{mirror.folder}: another job works on {mirror.place} here; wait for its end")
        if is_mine:
            mirror.pull()
        local = config.model_copy(update={"paths": config.paths.model_copy(update={"work": mirror.folder})})
        if not writes:
            yield local
            return
        ended = Event()
        pusher = Thread(target=_push_on, args=(mirror, ended), daemon=True)
        pusher.start()
        try:
            yield local
        finally:
            ended.set()
            pusher.join()
            mirror.push()


def _push_on(mirror: Mirror, ended: Event) -> None:
    """Push at intervals until the job ends; what fails is tried again the next time."""
    while not ended.wait(PUSH_S):
        try:
            mirror.push()
        except DataError as error:
            logger.warning("%s", error)
