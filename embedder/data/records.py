"""The rows that pass between jobs, as Arrow schemas, and how they are written so that a kill leaves no half file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, islice
from typing import Any, Literal, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq

from embedder.config.tasks import Side
from embedder.errors import DataError
from embedder.hashing import content_id
from embedder.storage.arrow_files import refuse_extension_types
from embedder.storage.object_store import AnyPath, ObjectPath, replacing

Split = Literal["train", "dev", "test"]
SomePath = TypeVar("SomePath", bound=AnyPath)
TEXTS = pa.list_(pa.string())

PASSAGE = pa.schema([(name, pa.string()) for name in ("task", "dataset", "id", "text", "title", "answer", "metadata")])
"""One candidate of a dataset's corpus. `title` may be null; `answer` is that of a worked example, else null; `metadata`
is a JSON object to filter by, else null."""

ID_TEXT: dict[Side, tuple[str, str]] = {"query": ("query_id", "query"), "passage": ("id", "text")}
"""Columns of the id and the text, by side."""
SIDE_WORDS: dict[Side, str] = {"query": "queries", "passage": "passages"}
"""The word for several rows, by side."""

VECTOR = pa.schema(
    [
        *((name, pa.string()) for name in ("dataset", "row_id", "id")),
        ("is_cut", pa.bool_()),
        ("vector", pa.list_(pa.float32())),
    ]
)
"""The unit vector of a passage or query. `row_id` hashes the text and its instruction; `is_cut`: the text was too long
for the encoder, null where a server that does not tell made the vector."""

QUERY_CORE = pa.schema(
    [*((name, pa.string()) for name in ("task", "dataset", "query_id", "query")), ("answers", TEXTS)]
)
"""What a query and its group have in common."""

QUERY = pa.schema(
    [
        *QUERY_CORE,
        ("positive_ids", TEXTS),
        ("positive_grades", pa.list_(pa.int32())),
        ("pool_ids", TEXTS),
        ("example_ids", TEXTS),
        ("teacher_scores", pa.list_(pa.float32())),
        ("options", TEXTS),
        ("category", pa.string()),
        ("origin", pa.string()),
    ]
)
"""One query.

`positive_grades` null: all are 1. `pool_ids` null: every passage of the dataset is a possible candidate; else only
these (oldest first). `example_ids`: passages that are this query itself as a worked example, which it never finds; null
or empty where the task does not say that its queries are examples. `teacher_scores`: rewards made elsewhere, one for
each of `pool_ids`, which are then the query's group; null where there are none. `options`: all answers there are to
choose from, null where there is no such list. `category`: its subject, or null. `origin`: the document or conversation
it was cut from, null if it stands alone.
"""

RANKING = pa.schema(
    [
        ("query_id", pa.string()),
        *(
            (name, kind)
            for prefix in ("", "named_")
            for name, kind in ((f"{prefix}ids", TEXTS), (f"{prefix}scores", pa.list_(pa.float32())))
        ),
    ]
)
"""The passages that one retriever found for a query, best first, ties by id. `named_ids`: passages whose scores were
asked for whatever their rank, null where nothing was."""

GROUP = pa.schema(
    [*QUERY_CORE, ("candidate_ids", TEXTS), ("candidate_texts", TEXTS), ("relevance", pa.list_(pa.int8()))]
)
"""A query with its candidates. `relevance`: 1 known positive, 0 not known to be one."""

LABELLED = pa.schema(
    [
        *GROUP,
        ("row_id", pa.string()),
        ("rewards", pa.list_(pa.float32())),
        ("outputs", TEXTS),
        ("output_tokens", pa.list_(pa.int32())),
        ("base_scores", pa.list_(pa.float64())),
        ("scores", pa.list_(pa.list_(pa.float64()))),
        ("truncated", pa.int32()),
        ("reward", pa.string()),
        ("label_fingerprint", pa.string()),
        ("error", pa.string()),
    ]
)
"""A group with one reward a candidate.

`outputs`: the desired output, then its rivals; `output_tokens`: how many tokens of each were scored; `base_scores`:
their mean token log-likelihoods (nats) without a candidate; `scores`: the same for each candidate; `truncated`:
candidates the LLM saw only the beginning of. `rewards` is null where the task has none, and where `error` says why.
"""

LATER_COLUMNS = {"output_tokens"}
"""Columns that files of earlier versions lack; they are read as null."""


ROW_GROUP_ROWS = 1024
"""Rows of a file that are read at once where a whole file may not fit into memory."""
OBJECTS_AT_ONCE = 16
"""Parquet files of an object store that are read together: each costs some round trips, whatever its size."""


def group_id(group: dict[str, Any]) -> str:
    """Content hash of a group."""
    return content_id(*(group[name] for name in GROUP.names))


def unrewarded(group: dict[str, Any], reward: str, fingerprint: str) -> dict[str, Any]:
    """A row of GROUP as one of LABELLED with empty reward columns, which is all that a task without rewards needs."""
    empty = dict.fromkeys(LABELLED.names)
    known = {name: group[name] for name in GROUP.names}
    return {**empty, **known, "row_id": group_id(group), "reward": reward, "label_fingerprint": fingerprint}


def write_table(rows: Sequence[dict[str, Any]] | pa.Table, schema: pa.Schema, path: AnyPath) -> None:
    """Write rows as one Parquet file, which appears as a whole."""
    table = (rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows), schema=schema)).cast(schema)
    # Hardly a number of a vector stands there twice: a dictionary of them takes most of the time, and more room.
    coded = [name for name in schema.names if name != "vector"] if schema == VECTOR else True
    encodings = {"vector.list.element": "BYTE_STREAM_SPLIT"} if schema == VECTOR else None
    if schema == VECTOR and table.num_rows:
        # In the file vectors have a width, so that other tools read them as such.
        fixed = pa.field("vector", pa.list_(pa.float32(), len(table["vector"][0])))
        table = table.set_column(schema.get_field_index("vector"), fixed, table["vector"].cast(fixed.type))
    # Written beside the file and put in its place when complete, so that a kill leaves the old file or the new one.
    with replacing(path) as file:
        pq.write_table(
            table,
            file,
            compression="zstd",
            use_dictionary=coded,
            column_encoding=encodings,
            row_group_size=ROW_GROUP_ROWS,
        )


def parquet_files(folder: SomePath) -> list[SomePath]:
    """The committed Parquet files of a folder, by name; unfinished ones (dot files) are left out."""
    # `glob` of a union of path types loses which of them it was given.
    files = cast("Iterable[SomePath]", folder.glob("*.parquet"))
    return sorted((path for path in files if not path.name.startswith(".")), key=lambda path: path.name)


def count_rows(files: Sequence[AnyPath]) -> int:
    """Rows of Parquet files, from their footers.

    Raises:
        DataError: one is unreadable.
    """
    total = 0
    for path in files:
        try:
            with open_parquet(path) as file:
                total += file.metadata.num_rows
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{path}: not a readable Parquet file; run the job again that wrote it") from error
    return total


def open_parquet(path: AnyPath) -> pq.ParquetFile:
    """A Parquet file of plain columns to read in parts; of an object, what is read next is fetched together.

    Raises:
        OSError, pa.ArrowInvalid: it is missing or unreadable, or a column is of an extension type.
    """
    if isinstance(path, ObjectPath):
        file = pq.ParquetFile(path.key, filesystem=path.filesystem, pre_buffer=True)
    else:
        file = pq.ParquetFile(path)
    refuse_extension_types(file.schema_arrow)
    return file


def read_tables(files: Iterable[AnyPath], schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
    """Read Parquet files of one schema as one table.

    Raises:
        DataError: a file is unreadable or its columns are not those of the schema.
    """
    tables = list(each_table(files, schema, columns))
    return pa.concat_tables(tables) if tables else _wanted(schema, columns).empty_table()


def read_rows(path: AnyPath, schema: pa.Schema, first: int, last: int, columns: list[str] | None = None) -> pa.Table:
    """The rows from `first` to before `last` of a file; only the row groups that hold them are read.

    Raises:
        DataError: the file is unreadable or its columns are not those of the schema.
    """
    return _read(path, _wanted(schema, columns), (first, last))


def passage_column(folder: AnyPath, column: str) -> dict[str, Any]:
    """A column of one dataset's passages by their ids, in the order in which they were written."""
    table = read_tables(parquet_files(folder), PASSAGE, ["id", column])
    return dict(zip(table["id"].to_pylist(), table[column].to_pylist(), strict=True))


def each_table(files: Iterable[AnyPath], schema: pa.Schema, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Read Parquet files of one schema, a table for each in their order; objects are read several at a time.

    Raises:
        DataError: a file is unreadable or its columns are not those of the schema.
    """
    wanted, ahead = _wanted(schema, columns), iter(files)
    with ThreadPoolExecutor(OBJECTS_AT_ONCE) as pool:
        while batch := list(islice(ahead, OBJECTS_AT_ONCE)):
            # Local files are read one at a time: there is no round trip to wait for, and memory then holds one table.
            if isinstance(batch[0], ObjectPath):
                yield from pool.map(lambda path: _read(path, wanted), batch)
            else:
                yield from (_read(path, wanted) for path in batch)


def _wanted(schema: pa.Schema, columns: list[str] | None) -> pa.Schema:
    return schema if columns is None else pa.schema([schema.field(name) for name in columns])


def _read(path: AnyPath, wanted: pa.Schema, rows: tuple[int, int] | None = None) -> pa.Table:
    try:
        with open_parquet(path) as file:
            columns = file.schema_arrow.names
            lacking = set(wanted.names) - set(columns)
            if not lacking <= LATER_COLUMNS:
                raise DataError(f"{path}: columns {columns}, expected {wanted.names}; run its job again")
            table = _read_columns(file, [name for name in wanted.names if name not in lacking], rows)
            for name in lacking:
                field = wanted.field(name)
                table = table.append_column(field, pa.nulls(table.num_rows, field.type))
            # Parquet returns columns in the file's order, and a cast needs them in the schema's.
            return table.select(wanted.names).cast(wanted)
    except (OSError, pa.ArrowInvalid) as error:
        # pyarrow's reason may go on over many lines of the schema.
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{path}: not a readable Parquet file of {wanted.names} ({reason}); run its job again"
        ) from error


def _read_columns(file: pq.ParquetFile, columns: list[str], rows: tuple[int, int] | None) -> pa.Table:
    if rows is None:
        return file.read(columns=columns)
    first, last = rows
    sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    begins = list(accumulate(sizes, initial=0))
    held = [number for number, size in enumerate(sizes) if begins[number] < last and begins[number] + size > first]
    if not held:
        return file.schema_arrow.empty_table().select(columns)
    return file.read_row_groups(held, columns=columns).slice(first - begins[held[0]], last - first)
