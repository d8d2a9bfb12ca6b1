"""A folder as a store: written beside, synced, then linked, so that a name never changes and survives a power cut."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from embedder.storage.durable import UNFINISHED, storage_failures, sync_path
from embedder.storage.store import Entry


class FolderStore:
    """A folder, of this machine or mounted by several."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __str__(self) -> str:
        return str(self._folder)

    def put_if_absent(self, name: str, content: bytes) -> bool:
        """Store a file, whole and synced, unless its name is taken."""
        path = self._folder / name
        with storage_failures(path):
            _make_durably(path.parent)
            temporary = path.with_name(f"{UNFINISHED}{uuid4().hex}")
            try:
                with temporary.open("wb") as file:
                    file.write(content)
                    file.flush()
                    # Before the link: a power cut must not leave the name with half of its content.
                    os.fsync(file.fileno())
                # Unlike a rename a link never replaces, and on NFS it is atomic without a lock.
                os.link(temporary, path)
                is_stored = True
            except FileExistsError:
                is_stored = False
            finally:
                temporary.unlink(missing_ok=True)
            # Also where the name was taken: its writer may not have synced the folder yet, and the caller builds on it.
            sync_path(path.parent)
        return is_stored

    def get(self, name: str) -> bytes | None:
        """The content of a file."""
        path = self._folder / name
        with storage_failures(path):
            try:
                return path.read_bytes()
            except FileNotFoundError:
                return None

    def entries(self, folder: str, after: str = "") -> list[Entry]:
        """The files of a folder, but for those that are being written."""
        path, found = self._folder / folder, []
        with storage_failures(path), suppress(FileNotFoundError), os.scandir(path) as files:
            for file in files:
                if file.name > after and not file.name.startswith(UNFINISHED) and file.is_file():
                    # A file that is removed meanwhile is left out alone, and not all that follow it.
                    with suppress(FileNotFoundError):
                        # Not the time of the last write, which may be long before the link.
                        found.append(Entry(file.name, file.stat().st_ctime))
        return sorted(found)

    def remove(self, name: str) -> None:
        """Remove a file."""
        path = self._folder / name
        with storage_failures(path):
            path.unlink(missing_ok=True)


def _make_durably(folder: Path) -> None:
    """Make a folder with those above it, and bring their names onto the disk."""
    if folder.is_dir():
        return
    _make_durably(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_path(folder.parent)
