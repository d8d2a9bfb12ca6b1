"""An index that is open: all shards of a version, or those of one process; searched, written to, compacted, copied.

A service that holds each shard in a process of its own lets these `rank`, and combines their rankings.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from embedder.errors import BundleError, ConfigError
from embedder.index.bundle import MODEL, RERANKER, Manifest, read_manifest, shard_folder, shard_of, verify
from embedder.index.catalog import Catalog
from embedder.index.collection import History
from embedder.index.compaction import write_compacted
from embedder.index.documents import BY_NAME, Document, DocumentName
from embedder.index.exact import Vectors
from embedder.index.filters import Filter
from embedder.index.lexical import NEVER
from embedder.index.living import CollectionStats, MutableCollection
from embedder.index.metadata_change import MetadataChange
from embedder.index.probe import PROBE
from embedder.index.results import SearchResults, Shown, fuse, merge
from embedder.index.search_options import SearchOptions
from embedder.index.writes import WRITES, Change
from embedder.storage.durable import locked, storage_failures, write_durably

FUSION_DEPTH = 100
"""Least length of the rankings that hybrid search fuses."""

Rankings = list[SearchResults]
"""The results of some shards for one request: one ranking for each way that its mode searches in."""


class OpenIndex:
    """The collections of some shards, by task."""

    def __init__(self, bundle: Path, state: Path, manifest: Manifest, shards: Iterable[int]) -> None:
        """Open collections of a verified bundle.

        Raises:
            BundleError: a collection or what was written to it is damaged, or belongs elsewhere.
        """
        self.manifest, self._bundle, self._state = manifest, bundle, state
        if self._mark.is_file() and self._mark.read_text(encoding="ascii") != manifest.digest:
            raise BundleError(
                f"{state}: was written to {bundle} when that had another content; remove it, or restore that content"
            )
        self.collections: dict[str, dict[int, MutableCollection]] = {task: {} for task in manifest.collections}
        for shard in shards:
            for task, collections in self.collections.items():
                bundled, written = shard_folder(bundle, shard) / task, shard_folder(state, shard) / task
                collections[shard] = MutableCollection(bundled, written, manifest.collection_identity(task, shard))

    @classmethod
    def open(cls, bundle: Path, state: Path, shards: Sequence[int] | None = None) -> OpenIndex:
        """Verify a bundle, or of some shards only their files, and open it.

        Raises:
            BundleError: something is damaged, or belongs elsewhere.
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
            ValueError: the query vectors do not fit, are missing, or the index was built without words.
            DataError: the queries have too many words, or the hits too many bytes.
            TimeoutError: `options.seconds` have passed.
        """
        collections = self._collections(task).values()
        depth = _depth(options)
        rankings = []
        if options.mode != "lexical":
            if query_QD is None:
                raise ValueError(f"mode {options.mode!r} needs query vectors")
            parts = [
                shard.search(query_QD, depth, options.parameters, options.filter, options.shown)
                for shard in collections
            ]
            rankings.append(merge(parts, depth))
        if options.mode != "dense":
            if texts is None:
                raise ValueError(f"mode {options.mode!r} needs the texts of the queries")
            deadline = NEVER if options.seconds is None else time.monotonic() + options.seconds
            parts = [shard.search_words(texts, depth, options.filter, options.shown, deadline) for shard in collections]
            rankings.append(merge(parts, depth))
        return rankings

    def search(
        self, task: str, options: SearchOptions, query_QD: Vectors | None = None, texts: Sequence[str] | None = None
    ) -> SearchResults:
        """The best documents of all shards that are open here; raises as `rank` does."""
        return combine([self.rank(task, options, query_QD, texts)], options)

    def upsert(self, task: str, documents: Sequence[Document], vector_PD: Vectors) -> None:
        """Write documents with their vectors; when this returns they are on the disk and found.

        Raises:
            ConfigError: there is no such task, or a document's shard is not open here.
            DataError: the vectors do not fit; nothing of that shard was written.
            StorageError: the disk takes nothing; what other shards have taken stays, and may be sent again.
        """
        with self._writing():
            for shard, positions in self._by_shard(task, [document.id for document in documents]).items():
                collection = self._collection(task, shard)
                collection.upsert([documents[i] for i in positions], np.asarray(vector_PD)[positions])

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
            ConfigError: there is no such task, or a document's shard is not open here.
            StorageError: as for `upsert`.
        """
        with self._writing():
            return sum(part.delete(own, within, wanted) for part, own in self._named(task, names))

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
            ConfigError: there is no such task, or a document's shard is not open here.
            DataError: a document would have too many fields; nothing of that shard was written.
            StorageError: as for `upsert`.
        """
        with self._writing():
            return sum(part.change(own, change, within, wanted) for part, own in self._named(task, names))

    def documents(self, task: str, names: Sequence[DocumentName], wanted: Filter | None, shown: Shown) -> pa.Table:
        """The documents of those names that fit a filter, as `results.fetched` gives them.

        Raises:
            ConfigError: there is no such task, or a document's shard is not open here.
            DataError: they hold more bytes than may be shown.
        """
        return pa.concat_tables([part.documents(own, wanted, shown) for part, own in self._named(task, names)])

    def page(self, task: str, after: DocumentName | None, limit: int, wanted: Filter | None, shown: Shown) -> pa.Table:
        """The first documents of these shards, by id and dataset, that come after a name and fit a filter.

        Raises:
            ConfigError: there is no such task.
            DataError: they hold more bytes than may be shown.
        """
        parts = [shard.page(after, limit, wanted, shown) for shard in self._collections(task).values()]
        return first_by_name(parts, limit)

    def count(self, task: str, wanted: Filter | None) -> int:
        """How many documents of these shards fit a filter; None: all.

        Raises:
            ConfigError: there is no such task.
        """
        return sum(shard.stats(wanted).documents for shard in self._collections(task).values())

    def writes(self, task: str) -> pa.Table:
        """All writes of these shards so far, as `writes.WRITES`.

        Raises:
            ConfigError: there is no such task.
        """
        tables = [collection.writes() for collection in self._collections(task).values()]
        return pa.concat_tables([WRITES.empty_table(), *tables])

    def changes(self, task: str, names: Sequence[DocumentName]) -> list[Change]:
        """The documents of those names as their last writes left them.

        Raises:
            ConfigError: there is no such task, or a document's shard is not open here.
        """
        return [change for part, own in self._named(task, names) for change in part.changes(own)]

    def pending_changes(self, task: str, changes: Sequence[Change]) -> list[int]:
        """Indices of the changes of another version that `apply_changes` would apply.

        Raises:
            ConfigError: there is no such task, or a document's shard is not open here.
        """
        parts = self._by_shard(task, [change.name[0] for change in changes])
        return [
            positions[i]
            for shard, positions in parts.items()
            for i in self._collection(task, shard).pending_changes([changes[i] for i in positions])
        ]

    def apply_changes(self, task: str, changes: Sequence[Change], vector_CD: Vectors) -> list[int]:
        """Apply the changes of another version that are pending here; returns their indices.

        Raises:
            ConfigError: there is no such task, or a document's shard is not open here.
            DataError: the vectors do not fit; nothing of that shard was written.
            StorageError: as for `upsert`.
        """
        with self._writing():
            parts = self._by_shard(task, [change.name[0] for change in changes])
            made = []
            for shard, positions in parts.items():
                collection = self._collection(task, shard)
                done = collection.apply_changes([changes[i] for i in positions], np.asarray(vector_CD)[positions])
                made += [positions[i] for i in done]
            return made

    @property
    def _mark(self) -> Path:
        """The file that tells which bundle the state belongs to."""
        return self._state / "BUNDLE"

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Keep snapshots out, and bind the state to this bundle.

        Raises:
            StorageError: the disk is full, read-only or failing.
        """
        with storage_failures(self._state), locked(self._state / "batch.lock", shared=True):
            # Before the first write: a state without the mark would fit any bundle of that name.
            if not self._mark.is_file():
                write_durably(self._mark, self.manifest.digest.encode())
            yield

    def stats(self, wanted: Filter | None = None) -> dict[str, list[CollectionStats]]:
        """Sizes of the collections by task, in the order of their shards; with a filter, of the documents that fit."""
        return {
            task: [collection.stats(wanted) for collection in shards.values()]
            for task, shards in self.collections.items()
        }

    def compact(self, least_rows: int = 1) -> int:
        """Compact every collection with that many uncompacted rows; returns how many were. For a background thread.

        Raises:
            StorageError: the disk is full, read-only or failing; all is as it was.
        """
        with storage_failures(self._state):
            due = [collection for collection in self._all() if collection.stats().uncompacted >= least_rows]
            return sum(collection.compact() for collection in due)

    def adopt(self) -> int:
        """Go over to what other processes have compacted; returns for how many collections. For a background thread."""
        return sum(collection.adopt() for collection in self._all())

    def snapshot(self, catalog: Catalog, version: str) -> None:
        """Write all there is at this moment, over all shards, as a version of its own.

        Raises:
            ConfigError: not all shards are open here, or there is another version of that name.
            StorageError: the disk is full, read-only or failing; there is no such version then.
        """
        if any(len(shards) != self.manifest.num_shards for shards in self.collections.values()):
            raise ConfigError(f"a snapshot needs all {self.manifest.num_shards} shards open in one process")
        staged = catalog.stage(version)
        try:
            with storage_failures(staged.parent):
                self._write_snapshot(staged)
            catalog.publish(staged, version)
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    def _write_snapshot(self, staged: Path) -> None:
        # In the order of writers, so that nobody waits for the other: first the batch lock, by which a batch that spans
        # shards is in the snapshot whole or not at all.
        with locked(self._state / "batch.lock"), ExitStack() as locks:
            for collection in self._all():
                locks.enter_context(locked(collection.write_lock))
            frozen = {
                (task, shard): collection.freeze()
                for task, shards in self.collections.items()
                for shard, collection in shards.items()
            }
        # The locks are free again: what is frozen never changes, and writing it may take minutes.
        kept = (f"{MODEL}/", f"{RERANKER}/", PROBE)
        files = {name: digest for name, digest in self.manifest.files.items() if name.startswith(kept)}
        for model in [MODEL, RERANKER] if self.manifest.has_reranker else [MODEL]:
            shutil.copytree(self._bundle / model, staged / model, copy_function=_link)
        if PROBE in files:
            _link(str(self._bundle / PROBE), str(staged / PROBE))
        counts = dict.fromkeys(self.collections, 0)
        for (task, shard), (view, writes) in frozen.items():
            folder = shard_folder(staged, shard) / task
            folder.mkdir(parents=True)
            info = write_compacted(view, History(0, writes), folder)
            counts[task] += info.rows
            files |= info.hashed_files(folder, staged)
        manifest = self.manifest.model_copy(update={"collections": counts, "files": files})
        manifest.write(staged)

    def _all(self) -> list[MutableCollection]:
        return [collection for shards in self.collections.values() for collection in shards.values()]

    def _collections(self, task: str) -> dict[int, MutableCollection]:
        if task not in self.collections:
            raise ConfigError(f"task {task!r}: the index has {sorted(self.collections)}")
        return self.collections[task]

    def _collection(self, task: str, shard: int) -> MutableCollection:
        collections = self._collections(task)
        if shard not in collections:
            raise ConfigError(f"shard {shard} of task {task!r} is not open here; there are {sorted(collections)}")
        return collections[shard]

    def _named(
        self, task: str, names: Sequence[DocumentName]
    ) -> Iterator[tuple[MutableCollection, list[DocumentName]]]:
        """The shards of some documents, each with its own of the names."""
        parts = self._by_shard(task, [document_id for document_id, _ in names])
        return ((self._collection(task, shard), [names[i] for i in own]) for shard, own in parts.items())

    def _by_shard(self, task: str, ids: Sequence[str]) -> dict[int, list[int]]:
        """Indices of the ids by shard, in their order; every shard is open here."""
        positions: dict[int, list[int]] = {}
        for i, document_id in enumerate(ids):
            positions.setdefault(shard_of(document_id, self.manifest.num_shards), []).append(i)
        # Before anything is written, so that a batch with a wrong shard leaves no part of it behind.
        for shard in positions:
            self._collection(task, shard)
        return positions


def combine(parts: Sequence[Rankings], options: SearchOptions) -> SearchResults:
    """The answer to one request from the rankings of all shards."""
    merged = [merge(shards, _depth(options)) for shards in zip(*parts, strict=True)]
    return merged[0] if len(merged) == 1 else fuse(merged, options.k)


def first_by_name(parts: Sequence[pa.Table], limit: int) -> pa.Table:
    """The first rows of some pages, by id and dataset."""
    return pa.concat_tables(parts).sort_by(BY_NAME).slice(0, limit)


def _depth(options: SearchOptions) -> int:
    """Length of the rankings that a mode needs."""
    return max(options.k, FUSION_DEPTH) if options.mode == "hybrid" else options.k


def _link(source: str, target: str) -> None:
    """A second name for a file that never changes; a copy where the file system has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
