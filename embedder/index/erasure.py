"""What was deleted or replaced leaves the store: log, snapshots, compacted collections, and versions that hold it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow.compute as pc

from embedder.errors import StorageError
from embedder.index.bundle import read_manifest, shard_folder
from embedder.index.catalog import Catalog
from embedder.index.collection import Collection
from embedder.index.documents import PAYLOAD, Row
from embedder.index.opened import OpenIndex
from embedder.index.operations import VECTOR
from embedder.index.task_log import TaskLog
from embedder.storage.durable import UNFINISHED
from embedder.storage.folders import file_names
from embedder.storage.position import Retention

ERASING = Retention(kept_s=300.0)
"""How long commits are kept once a snapshot stands for them: no writer relies on a number for longer than a minute."""

WAITS = 3
"""Times that it waits for commits to be old enough."""


def erase(catalog: Catalog, say: Callable[[str], None], retention: Retention = ERASING) -> None:
    """Remove every text that no search finds any more because of what was written; takes five minutes.

    Versions that hold such a text in their corpus go. What an alias names is written anew without it, and the alias
    moves there. Files that another process has open go when it closes them.

    Raises:
        ConfigError: something is not encoded for a version that must be written anew.
        BundleError, StorageError: something is damaged, or cannot be read or written; or commits stay young.
    """
    manifests = {version: read_manifest(catalog.bundle(version)) for version in catalog.versions()}
    logs = {(alias, task): TaskLog(catalog.state("", alias).log, task, retention) for alias, task in _written(catalog)}
    for log in logs.values():
        log.fold(log.end(log.snapshot().end).number, at_once=True)
    ends = {name: log.snapshot().end.number for name, log in logs.items()}
    folded = time.monotonic()
    for version, manifest in manifests.items():
        collections = [name for name in logs if name[1] in manifest.collections]
        if holders := {alias for alias, task in collections if _holds(catalog, version, task, logs[alias, task])}:
            _rid(catalog, version, manifest.index_version, holders, say)
    shutil.rmtree(catalog.states, ignore_errors=True)
    removed = 0
    for _ in range(WAITS):
        say(f"waiting {retention.kept_s:.0f} s, until nobody relies on the commits that go")
        time.sleep(max(0.0, folded + retention.kept_s - time.monotonic()))
        removed += sum(log.clean() for log in logs.values())
        if not any(log.stored_before(ends[name]) for name, log in logs.items()):
            break
        # Their files were touched meanwhile, as a copy or a change of rights does, so that they count as young.
        folded = time.monotonic()
    else:
        raise StorageError(f"{catalog.folder}: not all commits could be removed yet; run erase again")
    if isinstance(catalog.folder, Path):
        _remove_left(catalog.folder, retention.kept_s)
    say(f"{removed} commits and snapshots removed; what was deleted is gone")


def _written(catalog: Catalog) -> list[tuple[str, str]]:
    """Alias and task of every log, also of aliases that are gone."""
    folder = catalog.folder / "writes"
    names = [name.split("/") for name in file_names(folder)] if folder.is_dir() else []
    return sorted({(parts[0], parts[1]) for parts in names if len(parts) > 2})


def _rid(catalog: Catalog, version: str, name: str, holders: set[str], say: Callable[[str], None]) -> None:
    """Replace a version for those aliases that do not show all of its corpus; remove it if no other names it."""
    for alias in [alias for alias, target in catalog.aliases().items() if target == version and alias in holders]:
        new = f"{name}-{time.time_ns():x}"
        OpenIndex.open(catalog.here(version), catalog.state(version, alias)).snapshot(catalog, new)
        if catalog.move(alias, version, new):
            say(f"{version}: written anew as {new} for {alias}")
        else:
            catalog.remove(new)
            say(f"{version}: {alias} names another version by now")
    if left := [alias for alias, target in catalog.aliases().items() if target == version]:
        say(f"{version}: stays, because {', '.join(left)} shows what was deleted or replaced elsewhere")
        return
    catalog.remove(version)
    say(f"{version}: removed, because its corpus holds what was deleted or replaced")


def _remove_left(folder: Path, kept_s: float) -> None:
    """Remove what kills have left among commits and versions, and nobody has written to for so long."""
    for path in [each for name in ("writes", "versions") for each in (folder / name).rglob(f"{UNFINISHED}*")]:
        with suppress(FileNotFoundError):
            newest = max(each.stat().st_mtime for each in (path, *path.rglob("*")))
            if time.time() - newest < kept_s:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _holds(catalog: Catalog, version: str, task: str, log: TaskLog) -> bool:
    """Whether the corpus of a version has a document in whose place it shows what was written, or nothing."""
    operations = log.snapshot().operations
    operations = operations.filter(pc.not_equal(operations["kind"], VECTOR)).drop_columns(["vector"]).to_pylist()
    for collection in _collections(catalog, version, task):
        for one in operations:
            name = (one["id"], one["dataset"])
            if (position := collection.row_of(name)) is None:
                continue
            row = collection.row(position)
            counts = row.digest in one["replaced"] or collection.writes.find(name) is not None
            if counts and row != Row(*(one[field] for field in PAYLOAD.names)):
                return True
    return False


def _collections(catalog: Catalog, version: str, task: str) -> Iterator[Collection]:
    bundle = catalog.here(version)
    manifest = read_manifest(bundle)
    for shard in range(manifest.num_shards):
        identity = manifest.collection_identity(task, shard)
        yield Collection.load(shard_folder(bundle, shard) / task, identity, check=False)
