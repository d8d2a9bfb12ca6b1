"""Arrow and Parquet files whose columns are plain values.

A file may say that a column holds values of an extension type. Once such a type is known to the process, and `ray.data`
makes one known that unpickles, reading a value runs what the file holds. Nothing of ours has such a column.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

EXTENSION = b"ARROW:extension:name"
"""A field's metadata names its extension type under this key, where the process does not know the type yet."""


def open_arrow(path: Path, schema: pa.Schema) -> pa.RecordBatchFileReader:
    """Memory-map an Arrow file of exactly these columns.

    Raises:
        OSError, pa.ArrowInvalid: it is missing, unreadable or has other columns.
    """
    file = pa.ipc.open_file(pa.memory_map(str(path)))
    refuse_extension_types(file.schema)
    if not file.schema.equals(schema):
        raise pa.ArrowInvalid(f"it has {file.schema.names}, not {schema.names} with their types")
    return file


def refuse_extension_types(schema: pa.Schema) -> None:
    """Refuse columns that are not plain values, before any of them is read.

    Raises:
        pa.ArrowInvalid: a column is of an extension type, or holds one within it.
    """
    for field in schema:
        for part in _within(field):
            # A type that is not known here may be where the column is sent to: Arrow sends its name along.
            if isinstance(part.type, pa.BaseExtensionType) or EXTENSION in (part.metadata or {}):
                raise pa.ArrowInvalid(f"column {field.name!r} is of an extension type, which may run code when read")


def _within(field: pa.Field) -> Iterator[pa.Field]:
    """The field and all fields that its values consist of."""
    yield field
    if isinstance(field.type, pa.DictionaryType):
        yield from _within(pa.field("values", field.type.value_type))
    for number in range(field.type.num_fields):
        yield from _within(field.type.field(number))
