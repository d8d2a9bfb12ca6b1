"""What was deleted or replaced leaves the store: log, snapshots, compacted collections, and versions that hold it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator

import pyarrow.compute as pc

from embedder.index.bundle import read_manifest, shard_folder
from embedder.index.catalog import Catalog
from embedder.index.collection import Collection
from embedder.index.documents import PAYLOAD, Row
from embedder.index.opened import OpenIndex
from embedder.index.operations import VECTOR
from embedder.index.task_log import TaskLog
from embedder.storage.position import Retention

ERASING = Retention(kept_s=300.0)
"""How long commits are kept once a snapshot stands for them: no writer relies on a number for longer than a minute."""


def erase(catalog: Catalog, say: Callable[[str], None], retention: Retention = ERASING) -> None:
    """Remove every text that no search finds any more because of what was written; takes five minutes.

    Versions that hold such a text in their corpus go. What an alias names is written anew without it, and the alias
    moves there. Files that another process has open go when it closes them.

    Raises:
        ConfigError: something is not encoded for a version that must be written anew.
        BundleError, StorageError: something is damaged, or cannot be read or written.
    """
    manifests = {version: read_manifest(catalog.bundle(version)) for version in catalog.versions()}
    tasks = sorted({task for manifest in manifests.values() for task in manifest.collections})
    logs = [
        (task, TaskLog(catalog.state("", alias).log, task, retention)) for alias in catalog.aliases() for task in tasks
    ]
    for _, log in logs:
        log.fold(log.end(log.snapshot().end).number, at_once=True)
    folded = time.monotonic()
    for version, manifest in manifests.items():
        if not any(_holds(catalog, version, task, log) for task, log in logs if task in manifest.collections):
            continue
        for alias in [alias for alias, target in catalog.aliases().items() if target == version]:
            new = f"{manifest.index_version}-{time.time_ns():x}"
            OpenIndex.open(catalog.here(version), catalog.state(version, alias)).snapshot(catalog, new)
            catalog.point(alias, new)
            say(f"{version}: written anew as {new} for {alias}")
        catalog.remove(version)
        say(f"{version}: removed, because its corpus holds what was deleted or replaced")
    shutil.rmtree(catalog.states, ignore_errors=True)
    say(f"waiting {retention.kept_s:.0f} s, until nobody relies on the commits that go")
    time.sleep(max(0.0, folded + retention.kept_s - time.monotonic()))
    removed = sum(log.clean() for _, log in logs)
    say(f"{removed} commits and snapshots removed; what was deleted is gone")


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
