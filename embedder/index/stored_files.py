"""The files of bundles in an object store, by their SHA-256: versions share those that are alike, and none is replaced.

    files/SHA256                     a file of one version or of several
    versions/NAME/manifest.json      tells which files are those of a version, and how they are called

A machine fetches the files that it needs of a version once (embedder.storage.node_cache), and hashes them as they come.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from uuid import uuid4

from embedder.errors import BundleError
from embedder.hashing import content_id, file_sha256
from embedder.index.bundle import Manifest
from embedder.storage.durable import UNFINISHED, remove_unfinished, write_durably
from embedder.storage.fetched import fetch_each
from embedder.storage.folders import at_once
from embedder.storage.node_cache import cache_folder, drop_entry, filling, used_entry
from embedder.storage.object_store import ObjectPath, download, upload

FILES = "files"


def put_files(indexes: ObjectPath, folder: Path, hashes: Mapping[str, str]) -> None:
    """Store those files of a folder that are not stored yet; `hashes` are theirs by name.

    Raises:
        DataError: the store does not answer, or refuses.
    """
    stored = file_sizes(indexes)
    ahead = {digest: name for name, digest in hashes.items() if digest not in stored}
    at_once(lambda digest: upload(folder / ahead[digest], indexes / FILES / digest), ahead)


def file_sizes(indexes: ObjectPath) -> dict[str, int]:
    """Bytes of all stored files, by hash.

    Raises:
        DataError: the store does not answer, or refuses.
    """
    return {name: size for name, (size, _) in (indexes / FILES).walk()}


def fetch_bundle(indexes: ObjectPath, version: str, manifest: Manifest, parts: Sequence[str]) -> Path:
    """The bundle of a version as a folder of this machine, with the files whose names begin with one of `parts`.

    Raises:
        BundleError: a file is not the one that the manifest names.
        DataError: one is not there, or the store does not answer, or refuses.
    """
    entry = used_entry(_entry(indexes, version))
    # By its content too, because a name may be given again once its version is removed.
    folder = entry / content_id(manifest.digest)[:16] / version
    with filling(entry):
        remove_unfinished(entry)
        if not (folder / Manifest.FILE).is_file():
            write_durably(folder / Manifest.FILE, (manifest.model_dump_json(indent=2) + "\n").encode())
        wanted = [name for name in manifest.files if name.startswith(tuple(parts))]
        for name in wanted:
            indexes.check_name(name)
        fetch_each(
            f"{version} of {indexes}",
            [name for name in wanted if not (folder / name).is_file()],
            lambda name: _fetch(indexes / FILES / manifest.files[name], entry, folder / name),
        )
    return folder


def stored_file(indexes: ObjectPath, manifest: Manifest, name: str) -> ObjectPath | None:
    """Where a file of a version is; None: it has none of that name."""
    digest = manifest.files.get(name)
    return None if digest is None else indexes / FILES / digest


def fetched_versions(indexes: ObjectPath) -> list[str]:
    """The versions of which this machine has something."""
    return [folder.name.removeprefix(_entry(indexes, "")) for folder in cache_folder().glob(_entry(indexes, "*"))]


def forget_bundle(indexes: ObjectPath, version: str) -> None:
    """Remove what this machine has of a version, unless another process uses it."""
    drop_entry(_entry(indexes, version))


def remove_files(indexes: ObjectPath, digests: Iterable[str]) -> None:
    """Remove stored files by their hashes.

    Raises:
        DataError: the store does not answer, or refuses.
    """
    at_once(lambda digest: (indexes / FILES / digest).unlink(missing_ok=True), digests)


def _entry(indexes: ObjectPath, version: str) -> str:
    return f"bundle-{content_id(indexes.uri)[:12]}-{version}"


def _fetch(stored: ObjectPath, entry: Path, path: Path) -> None:
    """Fetch a file, which gets its name when it has the right content."""
    # Not beside the file: whoever verifies the bundle meanwhile would take it for one that is not listed.
    temporary = entry / f"{UNFINISHED}{uuid4().hex}"
    download(stored, temporary)
    if file_sha256(temporary) != stored.name:
        temporary.unlink()
        raise BundleError(f"{stored}: SHA-256 differs from its name; remove it, and build the version again")
    path.parent.mkdir(parents=True, exist_ok=True)
    os.replace(temporary, path)
