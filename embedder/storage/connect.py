"""The store at a path, tried before anything depends on it."""

from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

from embedder.errors import ConfigError
from embedder.storage.bucket_store import BucketStore
from embedder.storage.folder_store import FolderStore
from embedder.storage.object_store import AnyPath, ObjectPath
from embedder.storage.store import Store

PROBES = "probes"
"""Folder in which a store is tried; what a kill leaves there is of no use to anybody."""


def open_store(place: AnyPath) -> Store:
    """The store below a path, once it has shown that it keeps what it has.

    Raises:
        ConfigError: a parameter of the URI is unknown, or the store ignores conditions.
        StorageError: the store does not answer or refuses, or the folder cannot be written.
    """
    store = store_at(place)
    check_conditions(store)
    return store


def store_at(place: AnyPath) -> Store:
    """The store below a path as it is, which need not be there, nor be one that may be written to.

    Raises:
        ConfigError: a parameter of the URI is unknown.
    """
    return BucketStore(place) if isinstance(place, ObjectPath) else FolderStore(place)


def check_conditions(store: Store) -> None:
    """Refuse a store that replaces what it was told to keep: there every writer would lose what another one wrote.

    Raises:
        ConfigError: it does.
        StorageError: it does not answer, or refuses.
    """
    name = f"{PROBES}/{uuid4().hex}"
    store.put_if_absent(name, b"first")
    # The second answer alone is not enough: a server may refuse and have replaced it all the same.
    is_ignored = store.put_if_absent(name, b"second") or store.get(name) != b"first"
    store.remove(name)
    if is_ignored:
        raise ConfigError(
            f"{store}: ignores the condition of a conditional write (If-None-Match), so that writers would overwrite "
            "each other; use a store that keeps it, as S3, Google Cloud Storage, Azure or a folder does"
        )


def store_time(store: Store, make_mark: Callable[[int], bytes]) -> float:
    """The time now by the store's own clock, in seconds since 1970, to compare with that of other objects.

    Raises:
        StorageError: it does not answer, or refuses.
    """
    name = make_mark(16).hex()
    store.put_if_absent(f"{PROBES}/{name}", b"")
    stored = {entry.name: entry.stored_s for entry in store.entries(PROBES)}
    store.remove(f"{PROBES}/{name}")
    return stored[name]
