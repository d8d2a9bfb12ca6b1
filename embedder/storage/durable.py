"""Files that survive a kill and a power cut: written beside, synced, then renamed; locks; what a full disk means."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from embedder.errors import StorageError

UNFINISHED = ".unfinished-"
"""Prefix of what a kill may leave behind; nobody reads it, and the next writer removes it."""
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Errors of a disk, or of a quota or limit, that has no room."""
READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
"""Errors of files that this process may read and not write."""
NO_WRITES = FULL | {errno.EROFS}
"""Errors that nothing but a write has. One of permission may be of reading too."""
TOLD = re.compile(r"(?i)(?:\[errno|\(os error) (\d+)[\])](?:[^:\n]*: '([^'\n]+)')?")
"""Number and path of an error of the system within a text: of Python, Arrow and shutil, or of Rust's libraries."""
SEND_AGAIN = "send it again, a restart is not needed"
RUN_AGAIN = "run it again, what is finished stays"


@contextmanager
def storage_failures(folder: Path, again: str = SEND_AGAIN) -> Iterator[None]:
    """Tell in one line why files below a folder cannot be written, and what to do once they can.

    Raises:
        StorageError: the system refused what the block wanted to write.
    """
    try:
        yield
    except OSError as error:
        raise _storage_error(folder, _number(error), str(error), again) from error


@contextmanager
def full_disk_told(folder: Path) -> Iterator[None]:
    """Tell in one line that a disk takes nothing, as a job ends by it, and let all other errors pass.

    The error may be that of a Ray task, which has the real one in its text alone. `folder` is named where it has no
    path.

    Raises:
        StorageError: a file could not be written, because its disk is full or read-only.
    """
    try:
        yield
    except Exception as error:
        told = next((one for one in _told_by(error) if int(one[1]) in NO_WRITES), None)
        if told is None:
            raise
        raise _storage_error(Path(told[2] or folder), int(told[1]), told[0], RUN_AGAIN) from error


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file where its disk is full, because an error of writing names none, unlike one of opening.

    Raises:
        OSError: what the block raised.
    """
    try:
        yield
    except OSError as error:
        number = _number(error)
        if number not in NO_WRITES or error.filename is not None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _number(error: OSError) -> int:
    """The number that the system gave an error, 0 if it is not known."""
    # Arrow and shutil tell it in their text alone.
    told = TOLD.search(str(error))
    return error.errno or (int(told[1]) if told else 0)


def _told_by(error: BaseException | None) -> Iterator[re.Match[str]]:
    """What an error, and those that it came from, tell of errors of the system."""
    while error is not None:
        yield from TOLD.finditer(str(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _storage_error(place: Path, number: int, text: str, again: str) -> StorageError:
    reason = os.strerror(number) if number else " ".join(text.split())
    if number in FULL:
        told = f"the disk is full ({reason}); make room and {again}"
    elif number in READ_ONLY:
        told = f"read-only here ({reason}); what is there is read and nothing written, until this user may write"
    else:
        told = f"the disk fails ({reason}); see the logs of the system, and {again}"
    return StorageError(f"{place}: {told}")


def sync_path(path: Path) -> None:
    """Force a file's content, or the names in a folder, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, content: bytes) -> None:
    """Replace a small file as a whole; after the call it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{UNFINISHED}{uuid4().hex}")
    try:
        with naming(path), temporary.open("wb") as file:
            file.write(content)
            file.flush()
            # Before the rename: some file systems bring the new name onto the disk before the content.
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_path(path.parent)


def unfinished_folder(final: Path) -> Path:
    """A new folder beside `final`, to be filled and then placed there."""
    folder = final.with_name(f"{UNFINISHED}{uuid4().hex}")
    folder.mkdir(parents=True)
    return folder


def place_durably(folder: Path, final: Path) -> None:
    """Give a filled folder its name, once all that is in it is on the disk."""
    for path in sorted(folder.rglob("*")):
        sync_path(path)
    sync_path(folder)
    final.parent.mkdir(parents=True, exist_ok=True)
    os.replace(folder, final)
    sync_path(final.parent)  # the rename itself is in the parent folder


@contextmanager
def appearing(final: Path) -> Iterator[Path]:
    """A new folder to fill, which gets its name when the block ends and its files are on the disk, or else goes.

    A folder that has the name by then stays, because another process may have made the same.
    """
    folder = unfinished_folder(final)
    try:
        with naming(final):
            yield folder
        try:
            place_durably(folder, final)
        except OSError:
            # A folder cannot be renamed over one that is not empty. After the rename it is gone from its old name, so
            # that an error of the last sync is told from this.
            if not (folder.is_dir() and final.is_dir()):
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def discard_folder(folder: Path) -> None:
    """Remove a folder so that no half of it is ever taken for one."""
    # Renamed first, because a removal that a kill cuts short would leave half a folder under its name.
    doomed = folder.with_name(f"{UNFINISHED}{uuid4().hex}")
    os.rename(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what kills have left in a folder; call it where no other writer can be at work."""
    for path in folder.glob(f"{UNFINISHED}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of a file between processes and threads; yields whether it is held, which it always is with `wait`.

    The system releases it when the holder dies.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
