"""The rows of each value of the metadata: sorted and memory-mapped for a collection, in dictionaries for the memtable.

A field's values of one kind lie together, sorted, in a batch of their own, so equality and ranges are binary searches.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from copy import copy
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedder.data.metadata import ID_FIELD, Kind, Scalar, kind_of
from embedder.errors import BundleError
from embedder.index.documents import AS_PYTHON, Row, asked_values, field_values
from embedder.index.filters import Filter, Range, Rows, matching
from embedder.index.manifest import REMEDY
from embedder.storage.arrow_files import open_arrow

METADATA = pa.schema([("text", pa.large_string()), ("number", pa.float64()), ("row", pa.int32())])
"""One value of one row, sorted by value and row; booleans are the numbers 0 and 1, an object is 1."""
BATCHES = b"batches"
"""In the schema's metadata: JSON list of (field, kind), one for each batch."""
ROWS_AT_ONCE = 65_536
NO_ROWS: Rows = np.empty(0, dtype=np.int64)


def write_metadata(payload: pa.Table, path: Path) -> None:
    """Sort the values of a payload's metadata, and of its datasets, into an Arrow file."""
    parts: dict[tuple[str, Kind], list[pa.Table]] = defaultdict(list)
    for first in range(0, payload.num_rows, ROWS_AT_ONCE):
        for name, table in _values(payload.slice(first, ROWS_AT_ONCE), first).items():
            parts[name].append(table)
    names = sorted(parts)
    schema = METADATA.with_metadata({BATCHES: json.dumps(names)})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for name in names:
            table = pa.concat_tables(parts.pop(name))
            table = table.take(pc.sort_indices(table, [(column, "ascending") for column in METADATA.names]))
            writer.write_batch(table.combine_chunks().to_batches()[0].replace_schema_metadata(schema.metadata))


def _values(payload: pa.Table, first_row: int) -> dict[tuple[str, Kind], pa.Table]:
    """The values of some rows by field and kind, as tables of METADATA."""
    pairs_of: dict[tuple[str, Kind], list[tuple[Scalar, int]]] = defaultdict(list)
    columns = zip(payload["metadata"].to_pylist(), payload["dataset"].to_pylist(), strict=True)
    for row, (metadata, dataset) in enumerate(columns, first_row):
        for field, kind, value in field_values(metadata, dataset):
            pairs_of[field, kind].append((value, row))
    tables = {}
    for (field, kind), pairs in pairs_of.items():
        values = [value if kind == "text" else float(value) for value, _ in pairs]
        nothing = [None] * len(pairs)
        columns_of = (values, nothing) if kind == "text" else (nothing, values)
        tables[field, kind] = pa.table([*columns_of, [row for _, row in pairs]], schema=METADATA)
    return tables


class _SortedValues:
    """The values of one field and kind."""

    def __init__(self, batch: pa.RecordBatch, kind: Kind) -> None:
        self._values = batch["text"] if kind == "text" else batch["number"].to_numpy()
        self._rows = batch["row"].to_numpy()

    def rows(self, low: int = 0, high: int | None = None) -> Rows:
        """Rows of a part of the values; a row with several of them comes several times."""
        rows: Rows = self._rows[low:high]
        return rows

    def extent(self, value: Scalar) -> tuple[int, int]:
        """Where values equal to this one begin and end, or would stand."""
        if isinstance(value, str):
            low = bisect_left(self._values, value, key=AS_PYTHON)
            return low, bisect_right(self._values, value, low, key=AS_PYTHON)
        number = float(value)
        # By bisection on the mapped column: NumPy reads a page or two of it, a list would read it all.
        return int(np.searchsorted(self._values, number, "left")), int(np.searchsorted(self._values, number, "right"))

    def between(self, bounds: Range) -> Rows:
        """Rows with a value within the bounds."""
        low, high = 0, len(self._rows)
        if bounds.gt is not None:
            low = max(low, self.extent(bounds.gt)[1])
        if bounds.gte is not None:
            low = max(low, self.extent(bounds.gte)[0])
        if bounds.lt is not None:
            high = min(high, self.extent(bounds.lt)[0])
        if bounds.lte is not None:
            high = min(high, self.extent(bounds.lte)[1])
        return self.rows(low, max(low, high))


class StoredMetadata:
    """The sorted values of a collection, left on disk, and its sorted ids."""

    def __init__(self, path: Path, num_rows: int, ids: pa.Array) -> None:
        try:
            file = open_arrow(path, METADATA)
            names: list[tuple[str, Kind]] = [tuple(name) for name in json.loads(file.schema.metadata[BATCHES])]
            self._values = {name: _SortedValues(file.get_batch(i), name[1]) for i, name in enumerate(names)}
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise BundleError(f"{path}: not readable ({error}); {REMEDY}") from error
        self.num_rows = num_rows
        ids_of_rows = pa.record_batch([ids, pa.array(np.arange(num_rows, dtype=np.int32))], ["text", "row"])
        self._ids = _SortedValues(ids_of_rows, "text")

    @property
    def fields(self) -> set[str]:
        return {field for field, _ in self._values}

    def _sorted(self, field: str, kind: Kind) -> list[_SortedValues]:
        values = self._values.get((field, kind))
        return [*([values] if values else []), *([self._ids] if (field, kind) == (ID_FIELD, "text") else [])]

    def equal(self, field: str, value: Scalar) -> Rows:
        asked = asked_values(field, value)
        rows = [values.rows(*values.extent(name)) for name in asked for values in self._sorted(field, kind_of(name))]
        return np.concatenate([NO_ROWS, *rows])

    def between(self, field: str, bounds: Range) -> Rows:
        """Rows with a value within the bounds."""
        return np.concatenate([NO_ROWS, *(values.between(bounds) for values in self._sorted(field, bounds.kind))])

    def identified(self, document_id: str) -> Rows:
        return self._ids.rows(*self._ids.extent(document_id))

    def having(self, field: str) -> Rows:
        kinds: tuple[Kind, ...] = get_args(Kind)
        return np.concatenate([NO_ROWS, *(values.rows() for kind in kinds for values in self._sorted(field, kind))])


class MemtableMetadata:
    """The same for documents in memory, to which rows are added."""

    def __init__(self) -> None:
        self.num_rows = 0
        self._rows: dict[tuple[str, Kind], dict[Scalar, list[int]]] = defaultdict(dict)
        self._ids: dict[Scalar, list[int]] = {}
        """Apart, since the metadata may have a field of that name too."""

    def add(self, document_id: str, dataset: str, metadata: str | None) -> None:
        """Take in the values of the next row."""
        self._ids.setdefault(document_id, []).append(self.num_rows)
        for field, kind, value in field_values(metadata, dataset):
            self._rows[field, kind].setdefault(value, []).append(self.num_rows)
        self.num_rows += 1

    def first(self, num_rows: int) -> MemtableMetadata:
        """The first rows, to be read while others are added."""
        view = copy(self)
        view.num_rows = num_rows
        return view

    @property
    def fields(self) -> set[str]:
        return {field for field, _ in self._rows}

    def _values(self, field: str, kind: Kind) -> list[dict[Scalar, list[int]]]:
        values = self._rows.get((field, kind))
        return [*([values] if values else []), *([self._ids] if (field, kind) == (ID_FIELD, "text") else [])]

    def equal(self, field: str, value: Scalar) -> Rows:
        asked = asked_values(field, value)
        return self._array(values.get(name, []) for name in asked for values in self._values(field, kind_of(name)))

    def between(self, field: str, bounds: Range) -> Rows:
        """Rows with a value within the bounds; looks at every distinct value of the field."""
        # A list of the items first, here and below: a dictionary that grows cannot be walked through.
        items = [item for values in self._values(field, bounds.kind) for item in list(values.items())]
        return self._array(rows for value, rows in items if bounds.holds(value))

    def identified(self, document_id: str) -> Rows:
        return self._array([self._ids.get(document_id, [])])

    def having(self, field: str) -> Rows:
        kinds: tuple[Kind, ...] = get_args(Kind)
        found = [values for kind in kinds for values in self._values(field, kind)]
        return self._array(rows for values in found for rows in list(values.values()))

    def _array(self, lists: Iterable[list[int]]) -> Rows:
        return np.array([row for rows in lists for row in rows if row < self.num_rows], dtype=np.int64)


def fitting_rows(wanted: Filter | None, rows: Sequence[Row]) -> list[bool]:
    """Whether each of some rows fits a filter; None fits all."""
    if wanted is None:
        return [True] * len(rows)
    index = MemtableMetadata()
    for row in rows:
        index.add(row.id, row.dataset, row.metadata)
    fits: list[bool] = matching(wanted, index).tolist()
    return fits
