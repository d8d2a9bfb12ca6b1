"""A task's documents as a Parquet file, with their vectors, while the index is served and written to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from embedder.errors import ConfigError
from embedder.index.documents import PAYLOAD, DocumentName
from embedder.index.memtable import MemtableView
from embedder.index.opened import OpenIndex
from embedder.index.results import Shown
from embedder.storage.durable import storage_failures

ROWS_AT_ONCE = 1024


def export_documents(index: OpenIndex, task: str, path: Path) -> int:
    """Write all documents of a task into a file, which appears as a whole; returns how many.

    Columns are those of PAYLOAD and `vector`. All are as they are at one moment, each shard by id and dataset.

    Raises:
        ConfigError: there is no such task.
        StorageError: the disk is full, read-only or failing; there is no file then.
    """
    if task not in index.collections:
        raise ConfigError(f"task {task!r}: the index has {sorted(index.collections)}")
    schema = pa.schema([*PAYLOAD, ("vector", pa.list_(pa.float32(), index.manifest.dimension))])
    unfinished, rows = path.with_name(f".{path.name}.{os.getpid()}"), 0
    with storage_failures(path.parent):
        try:
            with pq.ParquetWriter(unfinished, schema) as writer:
                for view in index.collections[task].views():
                    for table in _pages(view):
                        writer.write_table(table.cast(schema))
                        rows += table.num_rows
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    return rows


def check_target(path: Path) -> None:
    """Refuse what no file can be written to.

    Raises:
        ConfigError: it is no path of this machine, a folder, or in none.
    """
    if ":/" in str(path) or not path.name or path.is_dir() or not path.parent.is_dir():
        raise ConfigError(f"{path}: name a file of this machine, in a folder that is there")


def _pages(view: MemtableView) -> Iterator[pa.Table]:
    after: DocumentName | None = None
    while (page := view.page(after, ROWS_AT_ONCE, Shown(vectors=True))).num_rows:
        yield page
        after = (page["id"][-1].as_py(), page["dataset"][-1].as_py())
