"""Files and folders in an object store, as files of this machine: each machine fetches what it needs once.

A folder that one of our jobs has sent is known by the hashes of its files, and one that is being replaced is refused.
Of any other, such as sources and models, a process looks once at what has changed; a new process replaces that, so give
new content a new name while jobs read the old.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path, PurePosixPath

from embedder.console import console, progress
from embedder.credentials import is_secret_file
from embedder.errors import DataError, UnfinishedError
from embedder.hashing import content_id, file_sha256
from embedder.storage.durable import appearing, write_durably
from embedder.storage.folders import at_once, is_young, sent_hashes
from embedder.storage.node_cache import filling, used_entry
from embedder.storage.object_store import AnyPath, ObjectPath, download

RECORD = ".fetched.json"
"""Of what has no hashes, size and time of each object as it was fetched."""


def local_copy(path: AnyPath, *, changes: bool = True) -> Path:
    """A file or folder of this machine that is, or has the content of, what a path names.

    `changes`: false where what has been written to a name of the folder stays.

    Raises:
        UnfinishedError: not all of a folder that a job sends is there.
        DataError: there is nothing in the store, or the store does not answer or refuses.
    """
    if not isinstance(path, ObjectPath):
        return path
    hashes = sent_hashes(path)
    return _followed(path, changes) if hashes is None else _whole(path, hashes)


def whole_copy(path: AnyPath) -> Path:
    """The same of a folder that a job has sent, and of nothing else.

    Raises:
        UnfinishedError: it is not there, or not all of it, or its files are not as they were sent.
        DataError: the store does not answer, or refuses.
    """
    if not isinstance(path, ObjectPath):
        return path
    hashes = sent_hashes(path)
    if hashes is None:
        raise _unfinished(path)
    return _whole(path, hashes)


def _whole(path: ObjectPath, hashes: Mapping[str, str]) -> Path:
    if hashes.keys() - {name for name, _ in path.walk()}:
        raise _unfinished(path)
    entry = used_entry(content_id(path.name, hashes)[:16])
    with filling(entry):
        if not (entry / path.name).is_dir():
            with appearing(entry / path.name) as folder:

                def fetch(name: str) -> None:
                    download(path / name, folder / name)
                    if file_sha256(folder / name) != hashes[name]:
                        raise _unfinished(path / name)

                fetch_each(path, list(hashes), fetch)
    return entry / path.name


def _unfinished(path: ObjectPath) -> UnfinishedError:
    return UnfinishedError(
        f"{path}: not whole; a job is sending it, or was cut off as it did: wait for its end, or run it again"
    )


@cache
def _followed(path: ObjectPath, changes: bool) -> Path:
    entry = used_entry(content_id(path.uri)[:16])
    with filling(entry):
        record = entry / RECORD
        known: dict[str, list[int]] = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
        if path.is_file():
            place, folder, there = path.parent, entry, {path.name: path.stamp()}
        else:
            place, folder = path, entry / path.name
            there = {name: stamp for name, stamp in path.walk() if is_fetched(name)}
        if not there:
            raise DataError(f"{path}: nothing is there; correct the path")
        for name in known.keys() - there.keys():
            (folder / name).unlink(missing_ok=True)
        changed = [name for name, stamp in there.items() if known.get(name) != list(stamp)]
        # Before the files: what a kill leaves half replaced is fetched again.
        kept = {name: stamp for name, stamp in there.items() if name not in changed}
        write_durably(record, json.dumps(kept).encode())
        fetch_each(place, changed, lambda name: download(place / name, folder / name))
        write_durably(record, json.dumps({name: _settled(stamp, changes) for name, stamp in there.items()}).encode())
    return entry / path.name


def is_fetched(name: str) -> bool:
    """Whether an object belongs to a source or model: no scratch, no lock and no key."""
    hidden = any(part.startswith(".") for part in name.split("/"))
    # By its own name alone, because folders are named after datasets.
    return not (hidden or is_secret_file(PurePosixPath(PurePosixPath(name).name)) or name.endswith(".lock"))


def fetch_each(what: object, names: Sequence[str], fetch: Callable[[str], None]) -> None:
    """Fetch files of a folder, some at a time, and show how many of `what` are there."""
    if not names:
        return
    with progress(f"fetch: {what}", len(names), console()) as counter:

        def fetched(name: str) -> None:
            fetch(name)
            counter.advance(1)

        at_once(fetched, names)


def _settled(stamp: tuple[int, int], changes: bool) -> tuple[int, int]:
    """The stamp of an object; of a young one that may change such that the next fetch takes it for another."""
    return (stamp[0], 0) if changes and is_young(stamp) else stamp
