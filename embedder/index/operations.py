"""What is written to the documents of a task: the rows of a log that all versions of an index share.

    write      a document with its vector
    deletion   the name of one that is gone
    vector     the vector of an earlier write in another space, for versions with another model or instruction

A write or deletion counts in a version where its writer's corpus held the same document, or where an earlier one has
counted: otherwise the corpus is newer than the write, and stays. So what counts depends on the order of the log and on
a version's corpus, and on no clock.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedder.errors import BundleError
from embedder.index.documents import PAYLOAD, DocumentName, Row
from embedder.index.exact import Vectors
from embedder.storage.arrow_files import refuse_extension_types

WRITE, DELETION, VECTOR = "write", "deletion", "vector"
OPERATIONS = pa.schema(
    [
        *PAYLOAD,
        ("kind", pa.string()),
        ("number", pa.int64()),
        ("replaced", pa.list_(pa.string())),
        ("space", pa.string()),
        ("vector", pa.list_(pa.float32())),
    ]
)
"""`number`: of the commit that made it, or for a vector of the write that it is of. `replaced`: digests of what the
corpora of its writers hold under the name, null for nothing. `space`: that of the vector."""
CHECKSUM_BYTES = 4


class Waiting(NamedTuple):
    """A write that a version cannot show yet, because its vector is of another space."""

    number: int
    row: Row


def writes(rows: Sequence[Row], vector_PD: Vectors, replaced: Sequence[str | None], space: str) -> pa.Table:
    """Documents as operations; `replaced` has one digest for each."""
    columns = [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), PAYLOAD, strict=True)]
    return _table(columns, WRITE, [None] * len(rows), replaced, space, vector_PD)


def deletions(names: Sequence[DocumentName], replaced: Sequence[str | None]) -> pa.Table:
    """Deletions as operations."""
    return _table(_named(names), DELETION, [None] * len(names), replaced, None, None)


def vectors(waiting: Sequence[tuple[DocumentName, int]], vector_WD: Vectors, space: str) -> pa.Table:
    """Vectors of earlier writes, each known by its name and number. One that is not finite says that there is none."""
    names = [name for name, _ in waiting]
    return _table(_named(names), VECTOR, [number for _, number in waiting], None, space, vector_WD)


def _named(names: Sequence[DocumentName]) -> list[pa.Array]:
    empty = [pa.nulls(len(names), field.type) for field in list(PAYLOAD)[2:]]
    return [pa.array([one[i] for one in names], pa.string()) for i in (0, 1)] + empty


def _table(
    payload: list[pa.Array],
    kind: str,
    numbers: Sequence[int | None],
    replaced: Sequence[str | None] | None,
    space: str | None,
    vector_PD: Vectors | None,
) -> pa.Table:
    count = len(payload[0])
    if vector_PD is None:
        vector = pa.nulls(count, OPERATIONS.field("vector").type)
    else:
        offsets = np.arange(count + 1, dtype=np.int32) * vector_PD.shape[1]
        vector = pa.ListArray.from_arrays(offsets, np.ascontiguousarray(vector_PD, dtype=np.float32).ravel())
    columns = [
        pa.array([kind] * count, pa.string()),
        pa.array(numbers, pa.int64()),
        pa.array([None if replaced is None else [one] for one in replaced or [None] * count], pa.list_(pa.string())),
        pa.array([space] * count, pa.string()),
        vector,
    ]
    return pa.table([*payload, *columns], OPERATIONS)


def content_of(operations: pa.Table) -> bytes:
    """Operations as the content of a commit or snapshot."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, OPERATIONS) as writer:
        writer.write_table(operations.combine_chunks())
    content: bytes = sink.getvalue().to_pybytes()
    return zlib.crc32(content).to_bytes(CHECKSUM_BYTES, "little") + content


def operations_of(content: bytes, number: int, place: str) -> pa.Table:
    """The operations of a commit or snapshot with that number.

    Raises:
        BundleError: it is damaged, or of another version of this program; `place` says where it is.
    """
    checksum, body = content[:CHECKSUM_BYTES], content[CHECKSUM_BYTES:]
    if zlib.crc32(body).to_bytes(CHECKSUM_BYTES, "little") != checksum:
        raise BundleError(f"{place}: object {number} is damaged; restore it, or the folder from a copy")
    reader = pa.ipc.open_stream(body)
    try:
        refuse_extension_types(reader.schema)
    except pa.ArrowInvalid as error:
        raise BundleError(f"{place}: object {number} is refused ({error})") from error
    if not reader.schema.equals(OPERATIONS):
        raise BundleError(f"{place}: object {number} is of another version of this program; use that one")
    table = reader.read_all()
    own = pc.fill_null(table["number"], number)
    return table.set_column(OPERATIONS.get_field_index("number"), OPERATIONS.field("number"), own)


def folded(parts: Iterable[pa.Table]) -> pa.Table:
    """What operations in the order of the log come to: of each name the last write or deletion, with its vectors.

    Deletions stay, because who read to an earlier number learns of them by the snapshot alone.
    """
    table = pa.concat_tables([OPERATIONS.empty_table(), *parts]).combine_chunks()
    last: dict[DocumentName, list[int]] = {}
    replaced: dict[DocumentName, dict[str | None, None]] = {}
    kinds, numbers, spaces = (table[name].to_pylist() for name in ("kind", "number", "space"))
    names = list(zip(table["id"].to_pylist(), table["dataset"].to_pylist(), strict=True))
    for i, (name, digests) in enumerate(zip(names, table["replaced"].to_pylist(), strict=True)):
        if kinds[i] != VECTOR:
            replaced.setdefault(name, {}).update(dict.fromkeys(digests))
            last[name] = [i]
        else:
            rows = last.get(name, [i])
            is_of_last = kinds[rows[0]] == WRITE and numbers[rows[0]] == numbers[i]
            # Of two processes that made the same vector one counts.
            if is_of_last and spaces[i] not in [spaces[one] for one in rows]:
                rows.append(i)
    kept = [i for rows in last.values() for i in rows]
    digests = [None if kinds[i] == VECTOR else list(replaced[names[i]]) for i in kept]
    column = pa.array(digests, OPERATIONS.field("replaced").type)
    return table.take(pa.array(kept, pa.int64())).set_column(
        OPERATIONS.get_field_index("replaced"), OPERATIONS.field("replaced"), column
    )


def vector_rows(operations: pa.Table) -> list[Vectors]:
    """The vector of each operation, empty where it has none."""
    column = operations["vector"].combine_chunks()
    # Of a list column as a whole, because Python lists of all its numbers would take seconds.
    values, offsets = column.values.to_numpy(zero_copy_only=False), column.offsets.to_numpy()
    return [values[first:last] for first, last in pairwise(offsets)]
