"""The rows that pass between jobs, as Arrow schemas, and how they are written so that a kill leaves no half file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from embedder.errors import DataError

Split = Literal["train", "test"]
TEXTS = pa.list_(pa.string())

PASSAGE = pa.schema(
    [
        ("task", pa.string()),
        ("dataset", pa.string()),
        ("id", pa.string()),
        ("text", pa.string()),
        ("title", pa.string()),
        ("answer", pa.string()),
    ]
)
"""One candidate of a dataset's corpus. `title` may be null; `answer` is that of a worked example, else null."""

VECTOR = pa.schema(
    [("dataset", pa.string()), ("row_id", pa.string()), ("id", pa.string()), ("vector", pa.list_(pa.float32()))]
)
"""The unit vector of a passage or query; `row_id` hashes the text and its instruction."""

QUERY = pa.schema(
    [
        ("task", pa.string()),
        ("dataset", pa.string()),
        ("query_id", pa.string()),
        ("query", pa.string()),
        ("answers", TEXTS),
        ("positive_ids", TEXTS),
        ("pool_ids", TEXTS),
    ]
)
"""One query. `pool_ids` null: every passage of the dataset is a possible candidate; else only these (oldest first)."""

GROUP = pa.schema(
    [
        ("task", pa.string()),
        ("dataset", pa.string()),
        ("query_id", pa.string()),
        ("query", pa.string()),
        ("answers", TEXTS),
        ("candidate_ids", TEXTS),
        ("candidate_texts", TEXTS),
        ("relevance", pa.list_(pa.int8())),
    ]
)
"""A query with its candidates. `relevance`: 1 known positive, 0 not known to be one."""

LABELLED = pa.schema(
    [
        *GROUP,
        ("row_id", pa.string()),
        ("rewards", pa.list_(pa.float32())),
        ("outputs", TEXTS),
        ("base_scores", pa.list_(pa.float64())),
        ("scores", pa.list_(pa.list_(pa.float64()))),
        ("reward", pa.string()),
        ("label_fingerprint", pa.string()),
        ("error", pa.string()),
    ]
)
"""A group with one reward a candidate.

`outputs`: the desired output, then the sampled ones; `base_scores`: their mean token log-likelihoods (nats) without a
candidate; `scores`: the same for each candidate. `rewards` is null where the task has none, and where `error` says why.
"""


def content_id(*parts: object) -> str:
    """32 hexadecimal digits that depend on the parts alone: the same row has the same id in every run."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()[:32]


def row_seed(seed: int, *parts: object) -> int:
    """A 63-bit seed for one row, the same whatever block or worker the row falls into."""
    return int(content_id(seed, *parts)[:16], 16) >> 1


def group_id(group: dict[str, Any]) -> str:
    """Content hash of a group."""
    return content_id(*(group[name] for name in GROUP.names))


def write_table(rows: Sequence[dict[str, Any]] | pa.Table, schema: pa.Schema, path: Path) -> None:
    """Write rows as one Parquet file by an atomic rename."""
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows), schema=schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        pq.write_table(table.cast(schema), temporary, compression="zstd")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def parquet_files(folder: Path) -> list[Path]:
    """The committed Parquet files of a folder, by name; unfinished ones (dot files) are left out."""
    return sorted(path for path in folder.glob("*.parquet") if not path.name.startswith("."))


def read_tables(files: Iterable[Path], schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
    """Read Parquet files of one schema as one table.

    Raises:
        DataError: a file is unreadable or its columns are not those of the schema.
    """
    wanted = schema if columns is None else pa.schema([schema.field(name) for name in columns])
    tables = []
    for path in files:
        try:
            found = pq.read_schema(path)
            if not set(wanted.names) <= set(found.names):
                raise DataError(f"{path}: columns {found.names}, expected {wanted.names}; run its job again")
            tables.append(pq.read_table(path, columns=wanted.names).cast(wanted))
        except (OSError, pa.ArrowInvalid) as error:
            reason = str(error).splitlines()[0]
            raise DataError(
                f"{path}: not a readable Parquet file of {wanted.names} ({reason}); run its job again"
            ) from error
    return pa.concat_tables(tables) if tables else wanted.empty_table()


def write_json(value: object, path: Path) -> None:
    """Write JSON by an atomic rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)
