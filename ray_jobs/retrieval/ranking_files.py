"""The rankings of a dataset's queries by one retriever, as files: one for each pass over the passages.

`rankings/SPLIT/DATASET/KIND-IDENTITY/FIRST.parquet` holds records.RANKING of the queries from row FIRST on, in their
order. A file appears as a whole, so a restart ranks only the queries that have none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from embedder.config.paths import Paths
from embedder.data.records import QUERY, RANKING, Split, count_rows, read_rows, write_table
from embedder.hashing import content_id
from embedder.mining.ranking import Ranking
from embedder.storage.folders import content_hashes, remove_folder
from embedder.storage.holding import Permit
from embedder.storage.object_store import AnyPath, entries
from ray_jobs.cluster.tables import corpus_files


@dataclass(frozen=True)
class Search:
    """Which rankings are wanted: of all queries of a split and dataset, so deep."""

    split: Split
    dataset: str
    depth: int


@dataclass(frozen=True)
class QueryRows:
    """Some queries of a file, by their rows."""

    path: AnyPath
    first: int
    last: int

    def read(self) -> pa.Table:
        """Rows of QUERY."""
        return read_rows(self.path, QUERY, self.first, self.last)


@dataclass(frozen=True)
class RankingFiles:
    """Where the rankings are, and of how many queries."""

    folder: AnyPath
    queries: AnyPath
    num_queries: int
    pass_rows: int
    """Queries of a file."""

    def passes(self) -> list[QueryRows]:
        """The queries of each file."""
        ends = range(0, self.num_queries, self.pass_rows)
        return [QueryRows(self.queries, first, min(first + self.pass_rows, self.num_queries)) for first in ends]

    def missing(self) -> list[QueryRows]:
        """The queries of each file that is not there."""
        return [rows for rows in self.passes() if not self._path(rows.first).is_file()]

    def commit(self, rows: QueryRows, table: pa.Table, permit: Permit | None) -> int:
        """Write the file of one pass; returns how many queries it has."""
        if permit is not None:
            permit.check()
        write_table(table, RANKING, self._path(rows.first))
        return rows.last - rows.first

    def read(self, rows: QueryRows) -> pa.Table:
        """Rows of RANKING of some queries, in their order."""
        begin = rows.first - rows.first % self.pass_rows
        tables = [
            read_rows(self._path(start), RANKING, max(0, rows.first - start), min(self.pass_rows, rows.last - start))
            for start in range(begin, rows.last, self.pass_rows)
        ]
        return pa.concat_tables(tables)

    def named(self, rows: QueryRows) -> Iterator[tuple[str, Ranking]]:
        """Id and ranking of some queries, in their order."""
        return named_rankings(self.read(rows))

    def _path(self, first: int) -> AnyPath:
        return self.folder / f"{first:010d}.parquet"


def named_rankings(table: pa.Table) -> Iterator[tuple[str, Ranking]]:
    """Query id and ranking of each row of RANKING."""
    columns = (table[name].to_pylist() for name in ("query_id", "ids", "scores"))
    for query_id, ids, scores in zip(*columns, strict=True):
        yield query_id, list(zip(ids, scores, strict=True))


def ranking_files(paths: Paths, search: Search, kind: str, pass_rows: int, *depends_on: object) -> RankingFiles:
    """The files of one retriever, told by what it ranks and by `depends_on`, its settings."""
    queries = paths.queries / search.split / f"{search.dataset}.parquet"
    num_queries = count_rows([queries]) if queries.is_file() else 0
    hashes = content_hashes([*corpus_files(paths, search.dataset), *([queries] if num_queries else [])])
    identity = content_id(kind, pass_rows, search.depth, hashes, *depends_on)[:16]
    folder = paths.rankings / search.split / search.dataset / f"{kind}-{identity}"
    return RankingFiles(folder, queries, num_queries, pass_rows)


def remove_stale(paths: Paths, split: Split, kept: list[RankingFiles]) -> None:
    """Remove rankings of other settings, corpora and encoders."""
    folders = {files.folder for files in kept}
    for folder in entries(paths.rankings / split, "*/*"):
        if folder not in folders:
            remove_folder(folder)
