"""Sources and model folders that are in an object store, as files of this machine.

Each machine fetches what it needs once, into `$LLM_EMBEDDER_CACHE` (by default `~/.cache/llm-embedder`), and later only
what has changed. A process looks only once; a new one replaces what has changed, so give new content a new name while
jobs read the old.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from embedder.errors import DataError
from embedder.hashing import content_id
from embedder.storage.durable import locked
from embedder.storage.mirror import Mirror, unsent
from embedder.storage.object_store import AnyPath, ObjectPath

CACHE = "LLM_EMBEDDER_CACHE"
"""Environment variable: a folder of this machine; the program's user must be able to write there."""


def local_copy(path: AnyPath) -> Path:
    """A file or folder of this machine that is, or has the content of, what a path names.

    Raises:
        DataError: there is nothing in the store, or not all of it yet, or the store does not answer or refuses.
    """
    return _fetched(path) if isinstance(path, ObjectPath) else path


@cache
def _fetched(path: ObjectPath) -> Path:
    if names := unsent(path):
        raise DataError(
            f"{path}: a job is sending {names[0]} and {len(names) - 1} others, or was cut off as it did; wait for its "
            "end, or run it again"
        )
    root = Path(os.environ.get(CACHE) or "~/.cache/llm-embedder").expanduser().absolute()
    folder = root / content_id(path.uri)[:16]
    with locked(root / f"{folder.name}.lock"):
        if path.is_file():
            Mirror(path.parent, folder, only=path.name).pull()
        elif path.is_dir():
            Mirror(path, folder / path.name).pull()
        else:
            raise DataError(f"{path}: nothing is there; correct the path")
    return folder / path.name
