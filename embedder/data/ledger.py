"""Work that is committed by block: what is done is known from the files alone, so a restart goes on where it was.

A block is one Parquet file that appears as a whole and holds whole rows keyed by `row_id`. Blocks may be cut
differently from run to run; only the row ids count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from embedder.data.records import count_rows, each_table, parquet_files, read_tables, write_table
from embedder.data.row_ids import RowIds
from embedder.errors import LabelError
from embedder.hashing import content_id
from embedder.storage.object_store import AnyPath


@dataclass(frozen=True)
class Ledger:
    """The committed blocks of one folder; `key` names the column that identifies a row."""

    folder: AnyPath
    schema: pa.Schema
    key: str

    def done(self) -> set[str]:
        """Ids of the rows that stand in a committed block."""
        table = read_tables(parquet_files(self.folder), self.schema, [self.key])
        return set(table[self.key].to_pylist())

    def row_ids(self) -> RowIds:
        """Ids of the committed rows in little memory, for keys that are content ids.

        Their `total` counts a row of two blocks twice.
        """
        tables = each_table(parquet_files(self.folder), self.schema, [self.key])
        return RowIds(table[self.key].to_pylist() for table in tables)

    def holds(self, ids: list[str]) -> bool:
        """Truth of a block of just these rows, in this order, being committed."""
        return self._path(ids).is_file()

    def stream(self, wanted: RowIds) -> Iterator[pa.Table]:
        """The wanted rows block by block, each row once."""
        seen = np.zeros(len(wanted), dtype=bool)
        for table in each_table(parquet_files(self.folder), self.schema):
            positions = wanted.positions(table[self.key].to_pylist())
            # Position -1 reads the last entry of `seen`, which the first condition makes harmless.
            fresh = (positions >= 0) & ~seen[positions]
            seen[positions[fresh]] = True
            yield table.filter(pa.array(fresh))

    def replace(self, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> Iterator[int]:
        """Rewrite each block by `change`, which keeps ids and order; yields the rows of each."""
        for path in parquet_files(self.folder):
            rows = change(read_tables([path], self.schema).to_pylist())
            write_table(rows, self.schema, path)
            yield len(rows)

    def commit(self, rows: list[dict[str, Any]] | pa.Table) -> None:
        """Write one block."""
        # The name is made of the ids, so that a block that is committed again (a retried actor) replaces itself.
        table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows, schema=self.schema)
        write_table(table, self.schema, self._path(table[self.key].to_pylist()))

    def merge(self, rows: int) -> int:
        """Put blocks of less than half so many rows together into blocks of about `rows`; returns the blocks merged.

        To be called where nobody commits. A kill in between leaves rows in two blocks, which are read once, and the
        next call drops the smaller one.
        """
        sizes = {path: count_rows([path]) for path in parquet_files(self.folder)}
        small = [path for path, count in sizes.items() if count < rows / 2]
        self._drop_merged(small, [path for path in sizes if path not in small])
        merged = list[AnyPath]()
        for path in [each for each in small if each.is_file()]:
            merged.append(path)
            if sum(sizes[each] for each in merged) >= rows:
                self._merge(merged)
                merged = []
        self._merge(merged)
        return len(small)

    def _merge(self, files: list[AnyPath]) -> None:
        if len(files) < 2:
            return
        table = read_tables(files, self.schema)
        self.commit(table)
        for path in files:
            path.unlink()

    def _drop_merged(self, small: list[AnyPath], large: list[AnyPath]) -> None:
        """Remove small blocks whose rows all stand in large ones."""
        if not small or not large:
            return
        known = RowIds(table[self.key].to_pylist() for table in each_table(small, self.schema, [self.key]))
        seen = np.zeros(len(known), dtype=bool)
        for table in each_table(large, self.schema, [self.key]):
            positions = known.positions(table[self.key].to_pylist())
            seen[positions[positions >= 0]] = True
        for path in small:
            ids = read_tables([path], self.schema, [self.key])[self.key].to_pylist()
            if seen[known.positions(ids)].all():
                path.unlink()

    def _path(self, ids: list[str]) -> AnyPath:
        return self.folder / f"{content_id(*ids)}.parquet"

    def read(self, expected: list[str] | None = None) -> pa.Table:
        """Every row exactly once, sorted by id: two blocks that hold the same row (a retried actor) count once.

        With `expected`, only these rows.

        Raises:
            LabelError: an expected row is missing.
        """
        table = read_tables(parquet_files(self.folder), self.schema)
        # Files are read in the order of their names, so the same copy of a repeated row is taken each time.
        first: dict[str, int] = {}
        for position, row_id in enumerate(table[self.key].to_pylist()):
            first.setdefault(row_id, position)
        wanted = sorted(first) if expected is None else sorted(set(expected))
        missing = [row_id for row_id in wanted if row_id not in first]
        if missing:
            raise LabelError(
                f"{self.folder}: {len(missing)} of {len(wanted)} rows missing, first {missing[0]}; run the job again"
            )
        return table.take(pa.array([first[row_id] for row_id in wanted], pa.int64()))

    def count_duplicates(self) -> int:
        """Rows that repeat one of another block; keys are content ids, as for `row_ids`."""
        ids = self.row_ids()
        return ids.total - len(ids)
