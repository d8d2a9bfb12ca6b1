"""The documents written since a collection was built, in memory, and the rows of the collection that they replace.

What a search has been handed never changes: rows are only added, and masks are replaced, not altered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import nsmallest

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embedder.config.index import SearchParameters
from embedder.index.collection import Collection
from embedder.index.documents import BY_NAME, PAYLOAD, DocumentName, Row, belongs, payload_table
from embedder.index.exact import Ranked, Vectors, exact_search
from embedder.index.filters import Filter, Mask, matching
from embedder.index.lexical import NEVER, MemtableWords, QueryWords, ranked
from embedder.index.metadata_index import MemtableMetadata
from embedder.index.operations import VECTOR, WRITE, Waiting, vector_rows
from embedder.index.results import NAME, SearchResults, Shown, fetched, merge, search_results
from embedder.index.writes import Write


@dataclass(frozen=True)
class MemtableView:
    """The written documents and the collection's rows as they were at one moment."""

    vectors: Vectors
    rows: list[Row]
    """May have grown; only the first len(vectors) belong to the view."""
    live: Mask
    """Which rows of the memtable are neither replaced nor deleted, and fit the filter if there is one."""
    stored: Mask | None
    """The same of the collection's rows; None: all."""
    memtable: Memtable
    """What has been written by now; its first rows are those of the view."""

    @property
    def base(self) -> Collection:
        return self.memtable.base

    @property
    def num_live(self) -> int:
        return int(np.count_nonzero(self.live))

    @property
    def num_documents(self) -> int:
        """Documents of a view with a filter, in the memtable and in the collection."""
        return self.num_live + (0 if self.stored is None else int(np.count_nonzero(self.stored)))

    def fitting(self, wanted: Filter | None) -> MemtableView:
        """What of this view fits a filter; takes seconds for a large one, and needs no lock."""
        if wanted is None:
            return self
        live = self.live & matching(wanted, self.memtable.metadata.first(len(self.live)))
        stored = matching(wanted, self.memtable.base.metadata)
        return replace(self, live=live, stored=stored if self.stored is None else self.stored & stored)

    def nearest(self, query_QD: Vectors, k: int, parameters: SearchParameters, shown: Shown) -> SearchResults:
        """The k nearest documents, by inner product."""
        base = self.base
        parts = [search_results(base.rank(query_QD, k, parameters, self.stored), base.payload, shown, base.vectors)]
        if self.num_live:
            written = _past_ties(
                lambda most: exact_search(query_QD, self.vectors, most, self.live), k, len(self.vectors)
            )
            parts.append(search_results(written, self, shown, self.vectors))
        return merge(parts, k)

    def best_by_words(
        self, queries: Sequence[QueryWords], k: int, shown: Shown, deadline: float = NEVER
    ) -> SearchResults:
        """The k documents that share the most telling words with each query, by BM25.

        Raises:
            TimeoutError: the deadline has passed.
        """
        base = self.base
        best = base.words.rank(queries, k, self.stored, deadline)
        parts = [search_results(best, base.payload, shown, base.vectors)]
        if self.num_live:
            scores = list(self.memtable.words.scores(queries, self.live, deadline))
            written = _past_ties(lambda most: ranked(scores, len(scores), most), k, len(self.vectors))
            parts.append(search_results(written, self, shown, self.vectors))
        return merge(parts, k)

    def page(self, after: DocumentName | None, limit: int, shown: Shown) -> pa.Table:
        """The first documents, by id and dataset, that come after a name, as `results.fetched` gives them."""
        stored, written = self._stored_after(after, limit), self._written_after(after, limit)
        names = pa.concat_tables([self.base.payload.select(NAME).take(pa.array(stored)), self._names(written)])
        order = pc.sort_indices(names, sort_keys=BY_NAME).to_numpy()[:limit]
        is_stored = order < len(stored)
        parts = [
            fetched(stored[order[is_stored]], self.base.payload, shown, self.base.vectors),
            fetched(written[order[~is_stored] - len(stored)], self, shown, self.vectors),
        ]
        return pa.concat_tables(parts).sort_by(BY_NAME)

    def _stored_after(self, after: DocumentName | None, limit: int) -> NDArray[np.int64]:
        """Rows of the collection, which stand in that order."""
        first = 0 if after is None else self.base.first_after(after)
        if self.stored is None:
            return np.arange(first, min(first + limit, self.base.info.rows))
        return first + np.flatnonzero(self.stored[first:])[:limit]

    def _written_after(self, after: DocumentName | None, limit: int) -> NDArray[np.int64]:
        """Rows of the memtable."""
        named = ((self.rows[row][:2], row) for row in np.flatnonzero(self.live).tolist())
        first = nsmallest(limit, (one for one in named if after is None or one[0] > after))
        return np.array([row for _, row in first], dtype=np.int64)

    def _names(self, rows: NDArray[np.int64]) -> pa.Table:
        return self.take(pa.array(rows)).select(NAME)

    def take(self, rows: pa.Array) -> pa.Table:
        """The payload of some rows."""
        return payload_table([self.rows[row] for row in rows.to_pylist()])


class Memtable:
    """What the log says on top of a collection; the caller keeps threads apart."""

    def __init__(self, base: Collection, space: str) -> None:
        """`space` is that of the collection's vectors."""
        self.base, self._space = base, space
        self.words = MemtableWords(base.words)
        self.metadata = MemtableMetadata()
        self._rows: list[Row] = []
        self._row_of: dict[DocumentName, int] = {}
        self._vectors = np.empty((256, base.info.identity.dimension), dtype=np.float32)
        self._live: Mask = np.zeros(0, dtype=np.bool_)
        self._stored: Mask | None = None
        self._num_stored = base.info.rows
        self.num_operations = 0
        """Documents written and deleted so far."""
        self.writes: dict[DocumentName, Write] = {}
        """Those whose writes have counted since the collection was built."""
        self.waiting: dict[DocumentName, Waiting] = {}
        """Writes without a vector of this space, until one comes. The document is gone meanwhile, because what it was
        before is not in a snapshot: whoever opens one would show something else."""

    @property
    def num_documents(self) -> int:
        return self._num_stored + len(self._row_of)

    @property
    def fields(self) -> set[str]:
        return {*self.base.metadata.fields, *self.metadata.fields}

    def holds(self, name: DocumentName, within: Mapping[str, str] | None = None) -> bool:
        """Tell whether there is a live document of that name, which belongs to `within` if that is given."""
        row = self.latest(name)
        return row is not None and (within is None or belongs(row, within))

    def latest(self, name: DocumentName) -> Row | None:
        """The live document of that name as it was last written, though it may wait for its vector."""
        return self.waiting[name].row if name in self.waiting else self.row(name)

    def row(self, name: DocumentName) -> Row | None:
        """The live document of that name."""
        if name in self._row_of:
            return self._rows[self._row_of[name]]
        stored = self._stored_row(name)
        return None if stored is None else self.base.row(stored)

    def vector(self, name: DocumentName) -> Vectors:
        """The vector (D,) of the live document of that name, which must be there."""
        is_written = name in self._row_of
        vector: Vectors = self._vectors[self._row_of[name]] if is_written else self.base.vectors[self.base.row_of(name)]
        return vector

    def replaced(self, name: DocumentName) -> str | None:
        """Digest of what the corpus holds under a name, whatever was written since; None: nothing."""
        if (write := self._write(name)) is not None:
            return write.replaced
        row = self.row(name)
        return None if row is None else row.digest

    def apply(self, operations: pa.Table) -> None:
        """Apply operations in their order, as far as they count here."""
        self.num_operations += operations.num_rows
        # A copy, because views that searches still hold share the old mask.
        live = np.concatenate([self._live, np.zeros(operations.num_rows, dtype=np.bool_)])
        gone: list[int] = []
        for name, row, vector in self._due(operations):
            replaced, stored = self._row_of.pop(name, None), self._stored_row(name)
            if replaced is not None:
                live[replaced] = False
            if stored is not None:
                gone.append(stored)
            if row is not None:
                live[len(self._rows)] = True
                self._add(row, vector)
        self._live = live[: len(self._rows)]
        if gone:
            # All at once, because a mask of the whole collection is copied each time.
            stored_rows = np.ones(self.base.info.rows, dtype=np.bool_) if self._stored is None else self._stored.copy()
            stored_rows[gone] = False
            self._stored = stored_rows
            self._num_stored = int(np.count_nonzero(stored_rows))

    def _due(self, operations: pa.Table) -> Iterator[tuple[DocumentName, Row | None, Vectors]]:
        """The documents that operations change here, with their new rows and vectors; None: deleted."""
        for one, vector in zip(operations.drop_columns(["vector"]).to_pylist(), vector_rows(operations), strict=True):
            name = (one["id"], one["dataset"])
            if one["kind"] == VECTOR:
                waiting = self.waiting.get(name)
                if waiting is not None and (waiting.number, self._space) == (one["number"], one["space"]):
                    del self.waiting[name]
                    # Else the model fails on the text, and the document is not in this version.
                    if np.isfinite(vector).all():
                        yield name, waiting.row, vector
                continue
            write = self._write(name)
            if write is None:
                write = Write(self.replaced(name))
                if write.replaced not in one["replaced"]:
                    continue
            # Noted before the row changes.
            self.writes[name] = write
            self.waiting.pop(name, None)
            row = Row(*(one[field] for field in PAYLOAD.names)) if one["kind"] == WRITE else None
            if row is not None and one["space"] != self._space:
                self.waiting[name], row = Waiting(one["number"], row), None
            yield name, row, vector

    def view(self) -> MemtableView:
        """All documents, as they are at this moment."""
        return MemtableView(self._vectors[: len(self._rows)], self._rows, self._live, self._stored, self)

    def _write(self, name: DocumentName) -> Write | None:
        return self.writes.get(name) or self.base.writes.find(name)

    def _add(self, row: Row, vector: Vectors) -> None:
        number = len(self._rows)
        if number == len(self._vectors):
            # A new array, because views that searches still hold show the old one.
            self._vectors = np.concatenate([self._vectors, np.empty_like(self._vectors)])
        self._vectors[number] = vector
        self._rows.append(row)
        self._row_of[row.id, row.dataset] = number
        self.metadata.add(row.id, row.dataset, row.metadata)
        self.words.add(row.text)

    def _stored_row(self, name: DocumentName) -> int | None:
        row = self.base.row_of(name)
        return row if row is None or self._stored is None or self._stored[row] else None


def _past_ties(rank: Callable[[int], Ranked], k: int, most: int) -> Ranked:
    """The k best rows of the memtable and all that tie with the last of them."""
    # Rows here are in the order of writing: a tie that is cut off could be the one whose name comes first.
    length = k
    while True:
        length = min(max(2 * length, k + 8), max(k, most))
        ranked = rank(length)
        is_enough = (ranked.row_QK[:, -1] < 0) | (ranked.score_QK[:, -1] < ranked.score_QK[:, k - 1])
        if length >= most or is_enough.all():
            return ranked
