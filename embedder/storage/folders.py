"""Folders of a run, here or in an object store: removed, and made so that a reader has the whole of one or an error.

Here a folder gets its name by a rename. In a store nothing can be renamed: there `.files.json` is stored first, with
the SHA-256 of each file, and then the files; whoever fetches the folder compares them (embedder.storage.fetched).
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from embedder.errors import DataError
from embedder.hashing import file_sha256
from embedder.storage.durable import appearing
from embedder.storage.json_file import write_json
from embedder.storage.node_cache import scratch
from embedder.storage.object_store import AnyPath, ObjectPath, upload

FILES = ".files.json"
"""Name of the object with the hashes of a folder's files, by name."""
AT_ONCE = 16
"""Objects that are sent, fetched or removed together."""
YOUNG_S = 60.0
"""Age of an object below which another change of it may look the same."""

T = TypeVar("T")
Item = TypeVar("Item")


def file_names(folder: AnyPath) -> list[str]:
    """Names of the finished files below a folder, as they are from there, sorted.

    Raises:
        DataError: the store does not answer, or refuses.
    """
    if isinstance(folder, ObjectPath):
        names = [name for name, _ in folder.walk()]
    else:
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    # A name that begins with a dot is that of an unfinished file or folder.
    return sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))


def remove_folder(folder: AnyPath) -> None:
    """Remove a folder with all that is below it, which need not be there.

    Raises:
        DataError: the store does not answer, or refuses.
    """
    if isinstance(folder, ObjectPath):
        # First, so that nobody takes for whole what is left.
        (folder / FILES).unlink(missing_ok=True)
        folder.remove_below()
    else:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def folder_made(final: AnyPath) -> Iterator[Path]:
    """A new folder of this machine to fill, which becomes `final` when the block ends, or else goes.

    A folder that is there stays where it is one of this machine; in a store its files are replaced.

    Raises:
        DataError: the store does not answer, or refuses.
    """
    if isinstance(final, ObjectPath):
        with scratch(final.name) as folder:
            yield folder
            send_folder(folder, final)
    else:
        with appearing(final) as folder:
            yield folder


@contextmanager
def folder_here(place: AnyPath) -> Iterator[Path]:
    """A folder of this machine to work in: the place itself, or for one in a store a new one, which goes at the end."""
    if isinstance(place, ObjectPath):
        with scratch(place.name) as folder:
            yield folder
    else:
        yield place


def send_folder(folder: Path, final: ObjectPath) -> None:
    """Make the files of a folder those of one in the store; while they are sent nobody can fetch it.

    Raises:
        DataError: the store does not answer, or refuses.
    """
    hashes = {name: file_sha256(folder / name) for name in file_names(folder)}
    write_json(hashes, final / FILES)
    at_once(lambda name: upload(folder / name, final / name), hashes)
    gone = {name for name, _ in final.walk()} - hashes.keys() - {FILES}
    at_once(lambda name: (final / name).unlink(missing_ok=True), gone)


def sent_hashes(folder: ObjectPath) -> dict[str, str] | None:
    """SHA-256 of the files of a folder by name, as its writer began to send them; None: it was not sent so.

    Raises:
        DataError: it is damaged; or the store does not answer, or refuses.
    """
    listed = folder / FILES
    if not listed.is_file():
        return None
    try:
        found = json.loads(listed.read_text())
        return {str(name): str(digest) for name, digest in found.items()}
    except (ValueError, AttributeError) as error:
        raise DataError(f"{listed}: damaged; remove it, and run the job again that wrote the folder") from error


def is_whole(folder: AnyPath) -> bool:
    """Whether a folder is there, and in a store all of its files.

    Raises:
        DataError: the store does not answer, or refuses.
    """
    if not isinstance(folder, ObjectPath):
        return folder.is_dir()
    hashes = sent_hashes(folder)
    return hashes is not None and hashes.keys() <= {name for name, _ in folder.walk()}


def put_json(value: object, folder: AnyPath, name: str) -> None:
    """Add a JSON file to a whole folder, or replace it there.

    Raises:
        DataError: the store does not answer, or refuses.
    """
    if not isinstance(folder, ObjectPath):
        write_json(value, folder / name)
        return
    with scratch(folder.name) as place:
        write_json(value, place / name)
        write_json({**(sent_hashes(folder) or {}), name: file_sha256(place / name)}, folder / FILES)
        upload(place / name, folder / name)


def content_hashes(files: Sequence[AnyPath]) -> list[str]:
    """SHA-256 of files or objects, in their order."""
    return at_once(content_hash, files)


def content_hash(path: AnyPath) -> str:
    """SHA-256 of a file or object; an object is read once while its size and time stay."""
    if not isinstance(path, ObjectPath):
        return file_sha256(path)
    stamp = path.stamp()
    return file_sha256(path) if is_young(stamp) else _old_hash(path, stamp)


@lru_cache(maxsize=100_000)
def _old_hash(path: ObjectPath, stamp: tuple[int, int]) -> str:
    return file_sha256(path)


def is_young(stamp: tuple[int, int]) -> bool:
    """Whether an object of this size and time may have changed again unseen, since stores tell whole seconds."""
    return stamp[1] >= (time.time() - YOUNG_S) * 1e9


def at_once(act: Callable[[Item], T], items: Iterable[Item]) -> list[T]:
    """Act on items, some at a time; returns the results in their order, and raises the first error."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(act, items))
