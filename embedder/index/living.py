"""A collection that is written to while it is searched.

    STATE/CURRENT            number and digest of the generation that is read; absent: the bundle's collection
    STATE/generations/N/     the collection after N compactions
    STATE/log/N.log          write-ahead log of what came after generation N was begun, in memory the memtable

The live documents are those of the current generation and of all log segments from its number on. Any process may
write, one at a time; every search first takes in what others have written, so an acknowledged write is visible at once
wherever the file system shows it at once: on one machine, but not over NFS as it is mounted by default. Compaction
builds a generation in the background and then moves CURRENT. A reader keeps the old one until it adopts the new one.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from embedder.config.index import SearchParameters
from embedder.data.metadata import paths_of, written_down
from embedder.errors import BundleError, DataError
from embedder.index.collection import Collection, CollectionIdentity, History
from embedder.index.collection_reader import Reader, Reading
from embedder.index.compaction import write_compacted
from embedder.index.documents import Document, DocumentName, Row, payload_table
from embedder.index.exact import Vectors
from embedder.index.filters import Filter
from embedder.index.lexical import NEVER, words_of
from embedder.index.log import Log, deletions, operations
from embedder.index.manifest import REMEDY
from embedder.index.memtable import MemtableView
from embedder.index.metadata_change import MetadataChange
from embedder.index.metadata_index import fitting_rows
from embedder.index.results import EVERYTHING, SearchResults, Shown, fetched
from embedder.index.state_folder import StateFolder
from embedder.index.writes import Change
from embedder.storage.durable import appearing, locked

MAX_FIELDS = 1024
"""Different fields of the metadata in a collection."""


@dataclass(frozen=True)
class CollectionStats:
    """Sizes of a collection."""

    documents: int
    uncompacted: int
    """Operations that the next compaction takes in; those that are not deletions are searched one by one until then."""
    generation: int


class MutableCollection:
    """The documents of one task in one shard. Safe to use from several threads."""

    def __init__(self, bundled: Path, state: Path, identity: CollectionIdentity) -> None:
        """Open the collection of a bundle, whose files the caller has verified, with what was written to it since.

        Raises:
            BundleError: a file is missing or damaged, or belongs elsewhere.
        """
        self.identity, self._files = identity, StateFolder(state)
        self._lock = threading.RLock()
        self._reader = Reader(bundled, self._files, identity)

    def search(
        self,
        query_QD: Vectors,
        k: int,
        parameters: SearchParameters,
        wanted: Filter | None = None,
        shown: Shown = EVERYTHING,
    ) -> SearchResults:
        """The k nearest documents that fit the filter, by inner product.

        Raises:
            ValueError: a query vector has the wrong width or holds a value that is not finite.
            DataError: the hits hold more bytes than may be shown.
        """
        query_QD = np.ascontiguousarray(query_QD, dtype=np.float32)
        if query_QD.ndim != 2 or query_QD.shape[1] != self.identity.dimension or not np.isfinite(query_QD).all():
            raise ValueError(
                f"query vectors of shape {query_QD.shape} do not fit an index of width {self.identity.dimension}, "
                "or are not finite"
            )
        # The lock is held for the view alone: filters and queries of many words take seconds, and writes would wait.
        return self.view().fitting(wanted).nearest(query_QD, k, parameters, shown)

    def search_words(
        self,
        queries: Sequence[str],
        k: int,
        wanted: Filter | None = None,
        shown: Shown = EVERYTHING,
        deadline: float = NEVER,
    ) -> SearchResults:
        """The k documents that fit the filter and share the most telling words with each query, by BM25.

        Raises:
            ValueError: the index was built without words.
            DataError: the queries have too many words, or the hits hold more bytes than may be shown.
            TimeoutError: the deadline has passed; it is looked at before each query.
        """
        view = self.view()
        settings = view.base.info.settings
        if not settings.lexical:
            raise ValueError("this index was built without words; set index.lexical and build it again")
        words = words_of(queries, settings.words.stop_words, deadline)
        return view.fitting(wanted).best_by_words(words, k, shown, deadline)

    def upsert(self, documents: Sequence[Document], vector_PD: Vectors) -> None:
        """Write documents with their unit vectors: new ones, and new versions of old ones.

        They are on the disk, and found, when this returns. Of several documents of one name the last counts.

        Raises:
            DataError: the vectors do not fit the documents or the index, or hold a value that is not finite.
        """
        last = {document.name: i for i, document in enumerate(documents)}
        kept = [documents[i] for i in last.values()]
        rows = [Row(*row.name, row.whole_text, row.title, written_down(row.metadata)) for row in kept]
        if len(vector_PD) != len(documents):
            raise DataError(f"{len(documents)} documents with {len(vector_PD)} vectors; nothing was written")
        with locked(self.write_lock), self._lock:
            self._catch_up()
            if rows:
                self._append(self._batch(rows, np.asarray(vector_PD)[list(last.values())], [self._now()] * len(rows)))

    def delete(
        self, names: Sequence[DocumentName], within: Mapping[str, str] | None = None, wanted: Filter | None = None
    ) -> int:
        """Remove those of the documents that belong to `within` and fit a filter, if these are given.

        Returns how many there were. They are found no longer.
        """
        with locked(self.write_lock), self._lock:
            self._catch_up()
            present = self._changeable(names, within, wanted)
            self._remove(present, [self._now()] * len(present))
        return len(present)

    def change(
        self,
        names: Sequence[DocumentName],
        change: MetadataChange,
        within: Mapping[str, str] | None = None,
        wanted: Filter | None = None,
    ) -> int:
        """Change the metadata of those of the documents that belong to `within` and fit a filter, if these are given.

        Returns how many there were. Text and vector stay as they are.

        Raises:
            DataError: one would have too many fields; nothing was written.
        """
        with locked(self.write_lock), self._lock:
            self._catch_up()
            memtable = self._reading.memtable
            present = self._changeable(names, within, wanted)
            rows = [row for name in present if (row := memtable.row(name)) is not None]
            changed = [(new, i) for i, row in enumerate(rows) if (new := change.applied(row)) != row]
            if changed:
                vectors = np.stack([memtable.vector(present[i]) for _, i in changed])
                self._append(self._batch([row for row, _ in changed], vectors, [self._now()] * len(changed)))
        return len(rows)

    def documents(self, names: Sequence[DocumentName], wanted: Filter | None, shown: Shown) -> pa.Table:
        """The documents of those names that fit a filter, as `results.fetched` gives them, in the order of the names.

        Raises:
            DataError: they hold more bytes than may be shown.
        """
        with self._lock:
            self._catch_up()
            memtable = self._reading.memtable
            found = [(row, memtable.vector(name)) for name in names if (row := memtable.row(name)) is not None]
        fits = fitting_rows(wanted, [row for row, _ in found])
        kept = [one for one, is_kept in zip(found, fits, strict=True) if is_kept]
        vectors = np.array([vector for _, vector in kept], np.float32).reshape(len(kept), self.identity.dimension)
        return fetched(np.arange(len(kept)), payload_table([row for row, _ in kept]), shown, vectors)

    def page(self, after: DocumentName | None, limit: int, wanted: Filter | None, shown: Shown) -> pa.Table:
        """The first documents, by id and dataset, that come after a name and fit a filter, as `results.fetched` does.

        Raises:
            DataError: they hold more bytes than may be shown.
        """
        return self.view().fitting(wanted).page(after, limit, shown)

    def writes(self) -> pa.Table:
        """All writes so far, as `writes.WRITES` in the order of id and dataset."""
        with self._lock:
            self._catch_up()
            stored, later = self._reading.base.writes, dict(self._reading.memtable.writes)
        return stored.updated(later)

    def changes(self, names: Sequence[DocumentName]) -> list[Change]:
        """The documents of those names as their last writes left them; nothing of one that was never written."""
        with self._lock:
            self._catch_up()
            memtable = self._reading.memtable
            written = [(name, write) for name in names if (write := memtable.write(name)) is not None]
            return [Change(name, memtable.row(name), write) for name, write in written]

    def pending_changes(self, changes: Sequence[Change]) -> list[int]:
        """Indices of the changes of another version that `apply_changes` would apply."""
        with self._lock:
            self._catch_up()
            return [i for i, change in enumerate(changes) if self._reading.memtable.lacks(change)]

    def apply_changes(self, changes: Sequence[Change], vector_CD: Vectors) -> list[int]:
        """Apply the changes that are pending here; returns their indices, and they are durable then.

        Each change is of another document, and has a row of `vector_CD`; that of a deletion is not read.

        Raises:
            DataError: a vector has another width or holds a value that is not finite, or there are too many fields.
        """
        with locked(self.write_lock), self._lock:
            # Asked again under the write lock: since the caller asked, a later write may have come.
            pending = self.pending_changes(changes)
            written = [(row, i) for i in pending if (row := changes[i].row) is not None]
            if written:
                rows, positions = zip(*written, strict=True)
                times = [changes[i].write.written_ns for i in positions]
                self._append(self._batch(rows, vector_CD[list(positions)], times))
            gone = [changes[i] for i in pending if changes[i].row is None]
            self._remove([change.name for change in gone], [change.write.written_ns for change in gone])
        return pending

    def stats(self, wanted: Filter | None = None) -> CollectionStats:
        with self._lock:
            self._catch_up()
            memtable, view = self._reading.memtable, self._reading.memtable.view()
            stats = CollectionStats(memtable.num_documents, memtable.num_operations, self._reading.generation)
        return stats if wanted is None else replace(stats, documents=view.fitting(wanted).num_documents)

    def compact(self) -> bool:
        """Build a generation of all live documents and make it the current one; searches and writes go on meanwhile.

        Returns whether there was anything to compact, and nobody else was at it.
        """
        with locked(self._files.compact_lock, wait=False) as alone:
            if not alone:
                return False
            self._files.remove_unfinished()
            self.adopt()
            with locked(self.write_lock), self._lock:
                self._catch_up()
                previous = self._reading.generation
                if self._reading.log is None or not self._reading.memtable.num_operations:
                    return False
                # At one moment: what is written later goes to the new segment and not into this view.
                number = self._begin_segment(self._reading.log)
                view, writes = self.freeze()
            # No lock is held from here on, because building may take minutes; searches and writes go on.
            final = self._files.generation(number)
            # On the disk before CURRENT names it, so that a kill between the two leaves the old generation valid. What
            # a full disk cuts short is removed at once, because it takes the room that writes need.
            with appearing(final) as folder:
                write_compacted(view, History(number, writes), folder)
            digest = Collection.load(final, self.identity, check=False).info.digest
            self._files.make_current(number, digest)
            self.adopt()
            # One generation back is kept, because other processes read it until they adopt this one.
            self._files.remove_before(previous)
            return True

    def _begin_segment(self, log: Log) -> int:
        """The number of a segment that what is written from now on goes to; the locks are held."""
        if log.is_empty:  # of a compaction that failed
            return self._reading.segment
        # A power cut must not take its end back: only the last segment is recovered.
        log.sync()
        Log.create(self._files.segment(self._reading.segment + 1), self.identity)
        return self._reading.segment + 1

    def adopt(self) -> bool:
        """Go over to the current generation, if another process has compacted; returns whether that was so.

        Raises:
            BundleError: the new generation is damaged; the old one goes on being searched.
        """
        generation, _ = self._files.current()
        if generation == self._reading.generation:
            return False
        # Opened before the lock is taken, so that searches go on while the files are hashed.
        reading = self._reader.open()
        with self._lock:
            self._reader.current = reading
            self._catch_up()
        return True

    def freeze(self) -> tuple[MemtableView, pa.Table]:
        """What a snapshot writes: the memtable on top of its collection, and all writes, at one moment."""
        with self._lock:
            return self.view(), self.writes()

    @property
    def write_lock(self) -> Path:
        return self._files.write_lock

    @property
    def _reading(self) -> Reading:
        return self._reader.current

    def _catch_up(self) -> None:
        """Take in what has been written since, by any process; the thread lock is held."""
        self._reader.catch_up()

    def view(self) -> MemtableView:
        """All there is at this moment."""
        with self._lock:
            self._catch_up()
            return self._reading.memtable.view()

    def _now(self) -> int:
        """The time of a write, later than that of all before it, whatever the clock says; the locks are held."""
        return max(time.time_ns(), self._reading.memtable.latest_ns + 1)

    def _batch(self, rows: Sequence[Row], vector_PD: Vectors, written_ns: Sequence[int]) -> pa.RecordBatch:
        """Rows with their vectors and times as the log keeps them; the locks are held.

        Raises:
            DataError: a vector has another width or holds a value that is not finite, or there are too many fields.
        """
        vector_PD = np.ascontiguousarray(vector_PD, dtype=np.float32)
        if vector_PD.shape != (len(rows), self.identity.dimension) or not np.isfinite(vector_PD).all():
            raise DataError(
                f"{len(rows)} documents with vectors of shape {vector_PD.shape}: each needs one of width "
                f"{self.identity.dimension} with finite values; nothing was written"
            )
        written = (paths_of(json.loads(row.metadata)) for row in rows if row.metadata)
        fields = self._reading.memtable.fields.union(*written)
        if len(fields) > MAX_FIELDS:
            raise DataError(f"metadata with {len(fields)} different fields; at most {MAX_FIELDS}; nothing was written")
        return operations(rows, vector_PD, written_ns)

    def _changeable(
        self, names: Sequence[DocumentName], within: Mapping[str, str] | None, wanted: Filter | None
    ) -> list[DocumentName]:
        """Those of the documents that are there, belong to `within` and fit a filter now; the locks are held."""
        memtable = self._reading.memtable
        present = [name for name in dict.fromkeys(names) if memtable.holds(name, within)]
        if wanted is None:
            return present
        fits = fitting_rows(wanted, [row for name in present if (row := memtable.row(name)) is not None])
        return [name for name, is_kept in zip(present, fits, strict=True) if is_kept]

    def _remove(self, names: Sequence[DocumentName], written_ns: Sequence[int]) -> None:
        """Log deletions; both locks are held."""
        if names:
            self._append(deletions(names, written_ns, self.identity.dimension))

    def _append(self, batch: pa.RecordBatch) -> None:
        """Log a batch and take it in; both locks are held."""
        if self._reading.log is None:
            Log.create(self._files.segment(self._reading.generation), self.identity)
            self._catch_up()
        if self._reading.log is None:
            raise BundleError(f"{self._files.segment(self._reading.generation)}: was removed; {REMEDY}")
        self._reading.log.append(batch)
        self._catch_up()
