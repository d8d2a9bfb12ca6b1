"""An index that is open: all shards of a version, or those of one process; searched, written to, compacted, copied.

A service that holds each shard in a process of its own lets these `rank`, and combines their rankings.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from embedder.errors import BundleError, ConfigError
from embedder.index.bundle import MODEL, RERANKER, Manifest, read_manifest, shard_folder, verify
from embedder.index.catalog import Catalog
from embedder.index.compaction import write_compacted
from embedder.index.documents import Document, DocumentName
from embedder.index.exact import Vectors
from embedder.index.filters import Filter
from embedder.index.lexical import NEVER
from embedder.index.living import CollectionStats, MutableCollection
from embedder.index.metadata_change import MetadataChange
from embedder.index.open_shards import ShardFolders
from embedder.index.operations import Waiting
from embedder.index.probe import PROBE
from embedder.index.results import SearchResults, Shown, fuse, merge
from embedder.index.search_options import SearchOptions
from embedder.index.state_places import StatePlaces
from embedder.index.task_log import TaskLog
from embedder.storage.durable import storage_failures

FUSION_DEPTH = 100
"""Least length of the rankings that hybrid search fuses."""

Rankings = list[SearchResults]
"""The results of some shards for one request: one ranking for each way that its mode searches in."""


class OpenIndex:
    """The documents of some shards, by task."""

    def __init__(self, bundle: Path, state: StatePlaces, manifest: Manifest, shards: Iterable[int]) -> None:
        """Open collections of a verified bundle.

        Raises:
            BundleError: a collection or what was written is damaged, or belongs elsewhere.
            StorageError: the log cannot be read.
        """
        self.manifest, self._bundle, self._state, here = manifest, bundle, state, list(shards)
        _refuse_earlier_format(state.generations)
        # By the content of the bundle, because what is made of one with another content is of no use.
        generations = state.generations / manifest.digest[:16]
        self.collections = {
            task: MutableCollection(
                TaskLog(state.log, task),
                {
                    shard: ShardFolders(shard_folder(bundle, shard) / task, shard_folder(generations, shard) / task)
                    for shard in here
                },
                manifest.collection_identity(task, 0),
                manifest.vector_space(task),
            )
            for task in manifest.collections
        }

    @classmethod
    def open(cls, bundle: Path, state: StatePlaces, shards: Sequence[int] | None = None) -> OpenIndex:
        """Verify a bundle, or of some shards only their files, and open it.

        Raises:
            BundleError, StorageError: something is damaged, or belongs elsewhere, or cannot be read.
        """
        if shards is None:
            manifest = verify(bundle)
            return cls(bundle, state, manifest, range(manifest.num_shards))
        manifest = read_manifest(bundle)
        for shard in shards:
            manifest.check_files(bundle, shard_folder(bundle, shard).relative_to(bundle).as_posix() + "/")
        return cls(bundle, state, manifest, shards)

    def rank(
        self, task: str, options: SearchOptions, query_QD: Vectors | None, texts: Sequence[str] | None
    ) -> Rankings:
        """The best documents of these shards, for `combine`; dense search needs vectors, lexical search texts.

        Raises:
            ConfigError: there is no such task.
            ValueError: the query vectors do not fit, or are missing.
            DataError: the index was built without words, the queries have too many words, or the hits too many bytes.
            TimeoutError: `options.seconds` have passed.
        """
        collection, depth = self._collection(task), _depth(options)
        rankings = []
        if options.mode != "lexical":
            if query_QD is None:
                raise ValueError(f"mode {options.mode!r} needs query vectors")
            rankings.append(collection.search(query_QD, depth, options.parameters, options.filter, options.shown))
        if options.mode != "dense":
            if texts is None:
                raise ValueError(f"mode {options.mode!r} needs the texts of the queries")
            deadline = NEVER if options.seconds is None else time.monotonic() + options.seconds
            rankings.append(collection.search_words(texts, depth, options.filter, options.shown, deadline))
        return rankings

    def search(
        self, task: str, options: SearchOptions, query_QD: Vectors | None = None, texts: Sequence[str] | None = None
    ) -> SearchResults:
        """The best documents of all shards that are open here; raises as `rank` does."""
        return combine([self.rank(task, options, query_QD, texts)], options)

    def upsert(self, task: str, documents: Sequence[Document], vector_PD: Vectors) -> None:
        """Write documents with their vectors, all or none; when this returns they are durable and found.

        Raises:
            ConfigError: there is no such task, or a document's shard is not open here.
            DataError: the vectors do not fit; nothing was written.
            StorageError: the store takes nothing, or does not answer; the same may be sent again.
        """
        self._collection(task).upsert(documents, vector_PD)

    def delete(
        self,
        task: str,
        names: Sequence[DocumentName],
        within: Mapping[str, str] | None = None,
        wanted: Filter | None = None,
    ) -> int:
        """Remove those of the documents that belong to `within` and fit a filter, if these are given.

        Returns how many there were.

        Raises:
            ConfigError, StorageError: as for `upsert`.
        """
        return self._collection(task).delete(names, within, wanted)

    def change(
        self,
        task: str,
        names: Sequence[DocumentName],
        change: MetadataChange,
        within: Mapping[str, str] | None = None,
        wanted: Filter | None = None,
    ) -> int:
        """Change the metadata of those of the documents that belong to `within` and fit a filter, if these are given.

        Returns how many there were.

        Raises:
            ConfigError, StorageError: as for `upsert`.
            DataError: a document would have too many fields; nothing was written.
        """
        return self._collection(task).change(names, change, within, wanted)

    def documents(self, task: str, names: Sequence[DocumentName], wanted: Filter | None, shown: Shown) -> pa.Table:
        """The documents of those names that fit a filter, as `results.fetched` gives them.

        Raises:
            ConfigError: there is no such task, or a document's shard is not open here.
            DataError: they hold more bytes than may be shown.
        """
        return self._collection(task).documents(names, wanted, shown)

    def page(self, task: str, after: DocumentName | None, limit: int, wanted: Filter | None, shown: Shown) -> pa.Table:
        """The first documents of these shards, by id and dataset, that come after a name and fit a filter.

        Raises:
            ConfigError: there is no such task.
            DataError: they hold more bytes than may be shown.
        """
        return self._collection(task).page(after, limit, wanted, shown)

    def count(self, task: str, wanted: Filter | None) -> int:
        """How many documents of these shards fit a filter; None: all.

        Raises:
            ConfigError: there is no such task.
        """
        return self._collection(task).stats(wanted).documents

    def waiting(self, most: int) -> dict[str, list[tuple[DocumentName, Waiting]]]:
        """By task some of the writes that have no vector for this version yet."""
        return {task: found for task, one in self.collections.items() if (found := one.waiting(most))}

    def put_vectors(self, task: str, waiting: Sequence[tuple[DocumentName, int]], vector_WD: Vectors) -> None:
        """Give writes their vectors; one that is not finite says that the model fails on the text.

        Raises:
            ConfigError, StorageError: as for `upsert`.
        """
        self._collection(task).put_vectors(waiting, vector_WD)

    def stats(self, wanted: Filter | None = None) -> dict[str, CollectionStats]:
        """Sizes by task; with a filter, of the documents that fit."""
        return {task: collection.stats(wanted) for task, collection in self.collections.items()}

    def age_s(self) -> float:
        """Seconds since all was known here that had been written to any task."""
        return max((collection.age_s for collection in self.collections.values()), default=0.0)

    def follow(self) -> None:
        """Take in what has been written. For a background thread.

        Raises:
            BundleError, StorageError: a log is damaged, or cannot be read.
        """
        for collection in self.collections.values():
            collection.catch_up()

    def compact(self, least_rows: int = 1) -> int:
        """Compact every shard with that many uncompacted rows; returns how many were. For a background thread.

        Raises:
            StorageError: the disk is full, read-only or failing; all is as it was.
        """
        with storage_failures(self._state.generations):
            return sum(collection.compact(least_rows) for collection in self.collections.values())

    def fold(self, *, at_once: bool = False) -> int:
        """Make snapshots of the logs to which enough was written; returns of how many. For a background thread.

        Raises:
            BundleError, StorageError: a log is damaged, or the store takes nothing, or does not answer.
        """
        return sum(collection.fold(at_once=at_once) for collection in self.collections.values())

    def adopt(self) -> int:
        """Go over to what other processes have compacted; returns for how many shards. For a background thread."""
        return sum(collection.adopt() for collection in self.collections.values())

    def snapshot(self, catalog: Catalog, version: str) -> None:
        """Write all there is at this moment, over all shards of a task, as a version of its own.

        Raises:
            ConfigError: not all shards are open here, something is not encoded for this version yet, or there is
                another version of that name.
            StorageError: the disk is full, read-only or failing; there is no such version then.
        """
        if any(len(one.shards) != self.manifest.num_shards for one in self.collections.values()):
            raise ConfigError(f"a snapshot needs all {self.manifest.num_shards} shards open in one process")
        with catalog.adding(version) as staged:
            self._write_snapshot(staged)

    def _write_snapshot(self, staged: Path) -> None:
        frozen = {task: collection.freeze() for task, collection in self.collections.items()}
        # What is frozen never changes, and writing it may take minutes.
        kept = (f"{MODEL}/", f"{RERANKER}/", PROBE)
        files = {name: digest for name, digest in self.manifest.files.items() if name.startswith(kept)}
        for model in [MODEL, RERANKER] if self.manifest.has_reranker else [MODEL]:
            shutil.copytree(self._bundle / model, staged / model, copy_function=_link)
        if PROBE in files:
            _link(str(self._bundle / PROBE), str(staged / PROBE))
        counts = dict.fromkeys(self.collections, 0)
        for task, shards in frozen.items():
            for shard, (view, history) in shards.items():
                folder = shard_folder(staged, shard) / task
                folder.mkdir(parents=True)
                info = write_compacted(view, history, folder)
                counts[task] += info.rows
                files |= info.hashed_files(folder, staged)
        manifest = self.manifest.model_copy(update={"collections": counts, "files": files})
        manifest.write(staged)

    def _collection(self, task: str) -> MutableCollection:
        if task not in self.collections:
            raise ConfigError(f"task {task!r}: the index has {sorted(self.collections)}")
        return self.collections[task]


def _refuse_earlier_format(generations: Path) -> None:
    """Refuse an index to which an earlier version of this program has written, which would be lost in silence."""
    # Of a version in a catalog it lay one folder further up.
    if (generations / "BUNDLE").exists() or (generations.parent / "BUNDLE").exists():
        raise BundleError(
            f"{generations}: an earlier version of this program wrote there, to a log of another format; take a "
            "snapshot with that version and serve it, then remove this folder"
        )


def combine(parts: Sequence[Rankings], options: SearchOptions) -> SearchResults:
    """The answer to one request from the rankings of all shards."""
    merged = [merge(shards, _depth(options)) for shards in zip(*parts, strict=True)]
    return merged[0] if len(merged) == 1 else fuse(merged, options.k)


def _depth(options: SearchOptions) -> int:
    """Length of the rankings that a mode needs."""
    return max(options.k, FUSION_DEPTH) if options.mode == "hybrid" else options.k


def _link(source: str, target: str) -> None:
    """A second name for a file that never changes; a copy where the file system has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
