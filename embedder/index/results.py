"""The results of a search, as one table for all its queries: small to send, quick to merge over shards and to fuse.

Q queries, K results of each.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embedder.data.metadata import Scalar
from embedder.errors import DataError
from embedder.index.documents import PAYLOAD
from embedder.index.exact import Ranked, Vectors, rank_within_query

NAME = ["id", "dataset"]
RESULTS = pa.schema([("query", pa.int32()), ("score", pa.float32()), *PAYLOAD])
"""One hit; sorted by query, best first, ties by id and dataset."""
FUSION_CONSTANT = 60
"""Of reciprocal rank fusion: a hit of rank r (from 1) counts 1 / (60 + r), after Cormack et al. (2009)."""

ROWS_AT_ONCE = 64
"""Rows whose payload is fetched before the bytes are counted."""


@dataclass(frozen=True)
class Shown:
    """How much of the hits is fetched."""

    payload: bool = True
    """Text, title and metadata too, beside the name."""
    vectors: bool = False
    max_bytes: int | None = None
    """Bytes of one ranking of one collection."""


EVERYTHING = Shown()


@dataclass(frozen=True)
class StoredDocument:
    """A document as the index holds it; without text and metadata where these were not asked for."""

    id: str
    dataset: str
    text: str
    title: str | None
    metadata: dict[str, Any]
    vector: list[float] | None = None
    """If it was asked for."""


@dataclass(frozen=True, kw_only=True)
class Hit(StoredDocument):
    """One document that fits a query, with its score."""

    score: float
    group: Scalar | None = None
    """The value by which hits were grouped, if they were."""


@dataclass(frozen=True)
class SearchResults:
    """The hits of several queries."""

    num_queries: int
    table: pa.Table
    """RESULTS, and a column `vector` where vectors are shown."""

    def hits(self) -> list[list[Hit]]:
        """The same by query, as objects."""
        by_query: list[list[Hit]] = [[] for _ in range(self.num_queries)]
        for row in self.table.to_pylist():
            metadata = json.loads(row.pop("metadata") or "{}")
            by_query[row.pop("query")].append(Hit(**row, metadata=metadata))
        return by_query

    def part(self, offset: int, least_score: float | None) -> SearchResults:
        """Each query's hits from a rank on (the first is 0), of at least that score."""
        if not offset and least_score is None:
            return self
        kept = rank_within_query(self.table["query"].to_numpy()) >= offset
        if least_score is not None:
            kept &= self.table["score"].to_numpy() >= np.float32(least_score)
        return SearchResults(self.num_queries, self.table.filter(pa.array(kept)))


class Payload(Protocol):
    """Rows that can be shown: those of an Arrow table, or of the memtable."""

    def take(self, rows: pa.Array) -> pa.Table:
        """The payload of some rows."""


def search_results(
    ranked: Ranked, payload: Payload, shown: Shown = EVERYTHING, vectors: Vectors | None = None
) -> SearchResults:
    """Ranked rows with what is shown of them; `vectors` are those of all rows.

    Raises:
        DataError: that holds too many bytes.
    """
    is_hit = ranked.row_QK >= 0
    query = np.repeat(np.arange(len(is_hit), dtype=np.int32), is_hit.sum(axis=1))
    rows = fetched(ranked.row_QK[is_hit], payload, shown, vectors)
    columns = [pa.array(query), pa.array(ranked.score_QK[is_hit]), *rows.columns]
    return SearchResults(len(is_hit), pa.table(columns, schema=pa.schema([*list(RESULTS)[:2], *rows.schema])))


def fetched(rows: NDArray[np.int64], payload: Payload, shown: Shown, vectors: Vectors | None = None) -> pa.Table:
    """The payload of some rows, and their vectors if they are shown; all but the names is empty where it is not shown.

    Raises:
        DataError: that holds too many bytes.
    """
    if isinstance(payload, pa.Table) and not shown.payload:
        payload = payload.select(NAME)
    parts, left = [PAYLOAD.empty_table()], shown.max_bytes
    if shown.vectors and vectors is not None:
        parts = [with_vectors(PAYLOAD.empty_table(), vectors[:0])]
    # Block by block: what is too much must not be in memory before it is refused.
    for first in range(0, len(rows), ROWS_AT_ONCE):
        chosen = rows[first : first + ROWS_AT_ONCE]
        part = payload.take(pa.array(chosen))
        if not shown.payload:
            columns = [
                part[field.name] if field.name in NAME else pa.repeat(pa.scalar("", field.type), len(part))
                for field in PAYLOAD
            ]
            part = pa.table(columns, PAYLOAD)
        if shown.vectors and vectors is not None:
            part = with_vectors(part, vectors[chosen])
        parts.append(part)
        if left is not None:
            left -= part.nbytes
            if left < 0:
                raise too_large()
    return pa.concat_tables(parts)


def with_vectors(table: pa.Table, vector_RD: Vectors) -> pa.Table:
    """A table with the vector of each row beside it."""
    flat = pa.array(np.ascontiguousarray(vector_RD).reshape(-1))
    return table.append_column("vector", pa.FixedSizeListArray.from_arrays(flat, vector_RD.shape[1]))


def stored_documents(table: pa.Table) -> list[StoredDocument]:
    """The rows that `fetched` gives, as objects."""
    return [StoredDocument(**{**row, "metadata": json.loads(row["metadata"] or "{}")}) for row in table.to_pylist()]


def too_large() -> DataError:
    """The refusal of an answer of too many bytes."""
    return DataError(
        "the answer exceeds serve.max_answer_bytes; ask for less: fewer queries, a smaller k or limit, no vectors, or "
        "with_payload: false"
    )


def merge(parts: Sequence[SearchResults], k: int) -> SearchResults:
    """The k best hits of each query over several shards, or over a collection and its memtable."""
    if len(parts) == 1:
        return parts[0]
    table = pa.concat_tables([part.table for part in parts])
    return SearchResults(parts[0].num_queries, _best(table, k))


def fuse(parts: Sequence[SearchResults], k: int) -> SearchResults:
    """The k best hits of each query over several rankings of the same documents, by the sum of reciprocal ranks."""
    tables = []
    for part in parts:
        rank = rank_within_query(part.table["query"].to_numpy())
        reciprocal = (1 / (FUSION_CONSTANT + 1 + rank)).astype(np.float32)
        tables.append(part.table.set_column(1, RESULTS.field("score"), pa.array(reciprocal)))
    table = pa.concat_tables(tables).combine_chunks()
    names = ["query", *NAME]
    row = pa.array(np.arange(table.num_rows))
    sums = (
        pa.table([*table.select([*names, "score"]).columns, row], [*names, "score", "row"])
        # With threads Arrow promises no order of the groups.
        .group_by(names, use_threads=False)
        .aggregate([("score", "sum"), ("row", "min")])
    )
    fused = table.take(sums["row_min"]).set_column(1, RESULTS.field("score"), sums["score_sum"].cast(pa.float32()))
    return SearchResults(parts[0].num_queries, _best(fused, k))


def _best(table: pa.Table, k: int) -> pa.Table:
    """The first k of each query, sorted."""
    query, score = table["query"].to_numpy(), table["score"].to_numpy()
    # By numbers first: sorting texts too is far slower, so that it is done only where scores tie.
    order = np.lexsort((-score, query))
    tied = (np.diff(query[order]) == 0) & (np.diff(score[order]) == 0)
    if tied.any():
        keys = [("query", "ascending"), ("score", "descending"), ("id", "ascending"), ("dataset", "ascending")]
        order = pc.sort_indices(table, sort_keys=keys).to_numpy()
    kept = order[rank_within_query(query[order]) < k]
    return table.take(pa.array(kept)).combine_chunks()
