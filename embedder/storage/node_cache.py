"""What this machine has fetched from object stores: kept while processes use it, and then within a bound.

    $LLM_EMBEDDER_CACHE/NAME/        an entry (by default below ~/.cache/llm-embedder)
                        .NAME.used   locked, shared, by every process that uses it; its time is that of the last use
                        .NAME.lock   locked by the process that fills it

Beyond `LLM_EMBEDDER_CACHE_GB` the entries go that were not used for longest; one in use never goes.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import IO

from embedder.errors import ConfigError
from embedder.storage.durable import discard_folder, locked, remove_unfinished

PLACE = "LLM_EMBEDDER_CACHE"
"""Environment variable: a folder of this machine; the program's user must be able to write there."""
BOUND = "LLM_EMBEDDER_CACHE_GB"
"""Environment variable: beyond so much entries go that no process uses."""
DEFAULT_GB = 100.0
SCRATCH = "scratch"

_in_use: dict[Path, IO[bytes]] = {}
"""Open files by entry: their locks end with this process."""
_one_thread = Lock()


def cache_folder() -> Path:
    """The folder of all entries."""
    return Path(os.environ.get(PLACE) or "~/.cache/llm-embedder").expanduser().absolute()


def used_entry(name: str) -> Path:
    """The folder of an entry, there or not, which stays as it is while this process lives."""
    folder = cache_folder() / name
    with _one_thread:
        if folder not in _in_use:
            folder.parent.mkdir(parents=True, exist_ok=True)
            # Never closed: the lock says that this process may have files of the entry open or mapped. For reading
            # too, without which NFS grants no shared lock.
            file = _used(folder).open("a+b")
            fcntl.flock(file, fcntl.LOCK_SH)
            _in_use[folder] = file
    os.utime(_used(folder))
    return folder


@contextmanager
def filling(entry: Path) -> Iterator[None]:
    """Be the only process that fills an entry of `used_entry`; others that have gone beyond the bound go after it.

    Raises:
        ConfigError: the bound is no number.
    """
    most = _bound()
    with locked(entry.with_name(f".{entry.name}.lock")):
        yield
    make_room(most)


@contextmanager
def scratch(name: str) -> Iterator[Path]:
    """A new folder of this machine, which goes at the end of the block."""
    place = cache_folder() / SCRATCH
    with ExitStack() as stack:
        with locked(place / ".lock"):
            _clear_scratch(place)
            folder = stack.enter_context(TemporaryDirectory(prefix=f"{name}.", dir=place))
            used = Path(f"{folder}.used")
            stack.callback(used.unlink, missing_ok=True)
            fcntl.flock(stack.enter_context(used.open("a+b")), fcntl.LOCK_SH)
        yield Path(folder)


def drop_entry(name: str) -> None:
    """Remove an entry that this process does not need any more, unless another one uses it."""
    folder = cache_folder() / name
    with _one_thread:
        if (own := _in_use.pop(folder, None)) is not None:
            own.close()
    if folder.is_dir():
        _removed(folder)


def make_room(most: float) -> None:
    """Remove entries that no process uses, the one that was last used longest ago first, down to so many bytes."""
    folder = cache_folder()
    with locked(folder / ".room.lock", wait=False) as is_mine:
        if not is_mine:
            return
        remove_unfinished(folder)
        entries = [path for path in folder.iterdir() if path.is_dir() and _used(path).is_file()]
        sizes = {path: _size(path) for path in entries}
        for path in sorted(entries, key=lambda path: _used(path).stat().st_mtime):
            if sum(sizes.values()) <= most:
                return
            if _removed(path):
                del sizes[path]


def _removed(entry: Path) -> bool:
    """Remove an entry unless a process uses it."""
    # The file itself stays: a process that waits for its lock would else hold that of a file nobody finds.
    with locked(_used(entry), wait=False) as is_free:
        if is_free:
            with suppress(FileNotFoundError):  # another process has removed it since it was listed
                discard_folder(entry)
    return is_free


def _clear_scratch(place: Path) -> None:
    """Remove folders of processes that were killed."""
    for used in place.glob("*.used"):
        with locked(used, wait=False) as is_free:
            if is_free:
                shutil.rmtree(used.with_suffix(""), ignore_errors=True)
                used.unlink(missing_ok=True)


def _used(entry: Path) -> Path:
    return entry.with_name(f".{entry.name}.used")


def _bound() -> float:
    given = os.environ.get(BOUND) or str(DEFAULT_GB)
    try:
        most = float(given)
    except ValueError:
        most = -1.0
    if not most >= 0:
        raise ConfigError(f"{BOUND} is {given!r}; give a number of gigabytes")
    return most * 1e9


def _size(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += Path(place, name).lstat().st_size
            except FileNotFoundError:
                continue
    return total
