"""The documents of a task, written to while they are searched.

What is written goes to the log of the task (embedder.index.task_log), and from there into memory, here and wherever the
log is read. A search first takes in what others have written: at a folder always, at an object store where the last
look is a second old. So an acknowledged write is visible at once wherever the file system shows it at once, and
elsewhere soon. Where the store does not answer, searches go on with what is known.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from embedder.config.index import SearchParameters
from embedder.data.metadata import written_down
from embedder.errors import ConfigError, DataError, StorageError
from embedder.index.collection import CollectionIdentity, History
from embedder.index.documents import Document, DocumentName, Row, first_by_name, payload_table
from embedder.index.exact import Vectors
from embedder.index.filters import Filter
from embedder.index.lexical import NEVER, words_of
from embedder.index.memtable import MemtableView
from embedder.index.metadata_change import MetadataChange
from embedder.index.metadata_index import fitting_rows
from embedder.index.open_shards import Made, OpenShards, ShardFolders
from embedder.index.operations import Waiting, vectors
from embedder.index.results import EVERYTHING, SearchResults, Shown, fetched, merge
from embedder.index.shard import Shard
from embedder.index.task_log import NewOperations, TaskLog
from embedder.storage.position import Position

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CollectionStats:
    """Sizes of a collection."""

    documents: int
    uncompacted: int
    """Operations that the next compaction takes in; those that are not deletions are searched one by one until then."""
    generation: int
    """The commit up to which all is compacted."""


class MutableCollection:
    """The documents of one task in some shards. Safe to use from several threads."""

    def __init__(
        self, log: TaskLog, folders: Mapping[int, ShardFolders], identity: CollectionIdentity, space: str
    ) -> None:
        """Open collections of a bundle, whose files the caller has verified, with what was written since.

        Args:
            log: of the task, for all versions.
            folders: by shard, of those that are open here.
            identity: of the task's collection in any shard.
            space: vectors of one space may be compared, whichever version they were made for.

        Raises:
            BundleError: a file is missing or damaged, or belongs elsewhere.
            StorageError: the log cannot be read.
        """
        self.identity, self._log, self._space = identity, log, space
        # Taken in this order; a search waits for the second alone where the store is slow.
        self._reading, self._lock = threading.RLock(), threading.RLock()
        found = log.snapshot()
        self._shards = OpenShards(folders, identity, space, log.end(found.end).number)
        self._position = Position(0, found.end.since)
        self._take(found)
        self._position = Position(max(self._shards.compacted, found.end.number), found.end.since)
        self.catch_up()

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
        # The lock is held for the views alone: filters and queries of many words take seconds, and writes would wait.
        return merge([view.fitting(wanted).nearest(query_QD, k, parameters, shown) for view in self.views()], k)

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
            DataError: the index was built without words, the queries have too many of them, or the hits hold more bytes
                than may be shown.
            TimeoutError: the deadline has passed; it is looked at before each query.
        """
        parts = []
        for view in self.views():
            settings = view.base.info.settings
            if not settings.lexical:
                raise DataError("this index was built without words; set index.lexical and build it again")
            words = words_of(queries, settings.words.stop_words, deadline)
            parts.append(view.fitting(wanted).best_by_words(words, k, shown, deadline))
        return merge(parts, k)

    def upsert(self, documents: Sequence[Document], vector_PD: Vectors) -> None:
        """Write documents with their unit vectors: new ones, and new versions of old ones.

        They are durable, and found, when this returns. Of several documents of one name the last counts.

        Raises:
            ConfigError: a document's shard is not open here.
            DataError: the vectors do not fit the documents or the index, or hold a value that is not finite.
            StorageError: the store takes nothing, or does not answer.
        """
        last = {document.name: i for i, document in enumerate(documents)}
        kept = [documents[i] for i in last.values()]
        rows = [Row(*row.name, row.whole_text, row.title, written_down(row.metadata)) for row in kept]
        if len(vector_PD) != len(documents):
            raise DataError(f"{len(documents)} documents with {len(vector_PD)} vectors; nothing was written")
        if rows:
            with self._lock:
                operations = self._shards.written(rows, np.asarray(vector_PD)[list(last.values())])
            self._append(operations)

    def delete(
        self, names: Sequence[DocumentName], within: Mapping[str, str] | None = None, wanted: Filter | None = None
    ) -> int:
        """Remove those of the documents that belong to `within` and fit a filter, if these are given.

        Returns how many there were. They are found no longer.

        Raises:
            ConfigError, StorageError: as of `upsert`.
        """
        return self._append_made(lambda: self._shards.deleted(names, within, wanted))

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
            ConfigError, StorageError: as of `upsert`.
            DataError: one would have too many fields, or waits for its vector; nothing was written.
        """
        return self._append_made(lambda: self._shards.changed(names, change, within, wanted))

    def documents(self, names: Sequence[DocumentName], wanted: Filter | None, shown: Shown) -> pa.Table:
        """The documents of those names that fit a filter, as `results.fetched` gives them, in the order of the names.

        Raises:
            ConfigError: a document's shard is not open here.
            DataError: they hold more bytes than may be shown.
        """
        self._look()
        with self._lock:
            found = self._shards.found(names)
        fits = fitting_rows(wanted, [row for row, _ in found])
        kept = [one for one, is_kept in zip(found, fits, strict=True) if is_kept]
        vector_RD = np.array([vector for _, vector in kept], np.float32).reshape(len(kept), self.identity.dimension)
        return fetched(np.arange(len(kept)), payload_table([row for row, _ in kept]), shown, vector_RD)

    def page(self, after: DocumentName | None, limit: int, wanted: Filter | None, shown: Shown) -> pa.Table:
        """The first documents, by id and dataset, that come after a name and fit a filter, as `results.fetched` does.

        Raises:
            DataError: they hold more bytes than may be shown.
        """
        return first_by_name([view.fitting(wanted).page(after, limit, shown) for view in self.views()], limit)

    def waiting(self, most: int) -> list[tuple[DocumentName, Waiting]]:
        """Some of the writes that have no vector for this version yet."""
        self._look()
        with self._lock:
            return self._shards.waiting()[:most]

    def put_vectors(self, waiting: Sequence[tuple[DocumentName, int]], vector_WD: Vectors) -> None:
        """Give writes their vectors; one that is not finite says that the model fails on the text.

        Raises:
            StorageError: as of `upsert`.
        """
        self._append(vectors(waiting, vector_WD, self._space))

    def stats(self, wanted: Filter | None = None) -> CollectionStats:
        """Sizes; with a filter, of the documents that fit."""
        views = self.views()
        with self._lock:
            memtables, generation = self._shards.memtables, self._shards.compacted
            documents = sum(one.num_documents for one in memtables)
            uncompacted = sum(one.num_operations for one in memtables)
        if wanted is not None:
            documents = sum(view.fitting(wanted).num_documents for view in views)
        return CollectionStats(documents, uncompacted, generation)

    def compact(self, least_rows: int = 1) -> int:
        """Build generations of shards with that many operations in memory; searches and writes go on meanwhile.

        Returns for how many shards it was done: not where vectors are missing, or where another process is at it.

        Raises:
            OSError: the disk is full, read-only or failing; all is as it was.
        """
        self.adopt()
        return sum(self._compact(shard, least_rows) for shard in self._shards.by_number.values())

    def _compact(self, shard: Shard, least_rows: int) -> bool:
        with self._lock:
            if not shard.may_compact or shard.memtable.num_operations < least_rows:
                return False
            view, history = shard.freeze(self._position.number)
            previous = shard.number
        # No lock is held from here on, because building may take minutes.
        if not shard.write_generation(view, history):
            return False
        self.adopt()
        # One generation back is kept, because other processes read it until they adopt this one.
        shard.remove_before(previous)
        return True

    def adopt(self) -> int:
        """Go over to what other processes have compacted; returns for how many shards.

        Raises:
            StorageError: the log cannot be read.
        """
        self.catch_up()
        adopted = 0
        for shard in self._shards.by_number.values():
            # Opened before the lock is taken, so that searches go on while the files are hashed.
            if newer := shard.newer(self._position.number):
                with self._lock:
                    adopted += shard.rebase(*newer)
        return adopted

    def fold(self, *, at_once: bool = False) -> bool:
        """Make a snapshot of the log, if enough was written since the last one; raises as `TaskLog.fold`."""
        return self._log.fold(self._position.number, at_once=at_once)

    def freeze(self) -> dict[int, tuple[MemtableView, History]]:
        """All there is at one moment, by shard, as a version of its own writes it.

        Raises:
            ConfigError: something waits for its vector.
        """
        self.catch_up()
        with self._lock:
            if self._shards.waiting():
                raise ConfigError(
                    f"some of what was written to {self.identity.task} is not encoded for this version yet; serve it, "
                    "and take the snapshot then"
                )
            # From number 0 on, because the version may be taken to where there is another log.
            return {number: shard.freeze(0) for number, shard in self._shards.by_number.items()}

    def views(self) -> list[MemtableView]:
        """All there is at this moment, by shard."""
        self._look()
        with self._lock:
            return self._shards.views()

    def catch_up(self) -> None:
        """Take in what has been written by anybody.

        Raises:
            BundleError: a commit is damaged.
            StorageError: the log cannot be read.
        """
        with self._reading:
            self._looked = looked = time.monotonic()
            is_whole = False
            while not is_whole:
                new = self._log.read(self._position)
                self._take(new)
                is_whole = new.is_whole
            self._seen = looked

    @property
    def shards(self) -> list[int]:
        """Numbers of the shards that are open here."""
        return list(self._shards.by_number)

    @property
    def age_s(self) -> float:
        """Seconds since all was known that had been written."""
        return time.monotonic() - self._seen

    def _look(self) -> None:
        """Catch up, unless that was done just now, or is being done and may take long; what is known serves too."""
        if time.monotonic() - self._looked < self._log.look_s:
            return
        if not self._reading.acquire(blocking=not self._log.look_s):
            return
        try:
            self.catch_up()
        except StorageError as error:
            logger.warning("searches go on with what is known: %s", error)
        finally:
            self._reading.release()

    def _take(self, new: NewOperations) -> None:
        """Take in what follows the position, in all shards at one moment."""
        with self._lock:
            if new.operations.num_rows:
                self._shards.apply(new.operations, self._position.number)
            self._position = new.end

    def _append(self, operations: pa.Table) -> None:
        """Write operations that hold whatever others write, and take them in."""
        self._log.append(operations, self._position)
        self.catch_up()

    def _append_made(self, make: Callable[[], Made]) -> int:
        """Write what is made of all there is, and make it again where others write meanwhile; returns its count."""
        while True:
            self.catch_up()
            with self._lock:
                position = self._position
                count, operations = make()
            if operations is None:
                return count
            if self._log.append_next(operations, position):
                self.catch_up()
                return count
