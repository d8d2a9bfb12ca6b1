"""Tables: CSV, JSON Lines and Parquet, read a row at a time; each row is a section."""

from __future__ import annotations

import codecs
import csv
import gzip
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedder.data.documents.section import DocumentPart, UnreadableError
from embedder.data.fields import ALIASES, Row, RowError, is_blank, optional_id
from embedder.data.json_lines import MAX_LINE_BYTES, parse_object, read_text_lines
from embedder.data.metadata import LARGEST_INTEGER, is_field_name, metadata_json
from embedder.errors import shown

if TYPE_CHECKING:  # it takes time to import, and most readers need none
    import pyarrow as pa

TEXT_COLUMNS = ("text", "contents", "content", *ALIASES["text"])
"""TableColumns that are taken for the text of a row, the first one that is there."""
ID_COLUMNS = ("id", *ALIASES["id"])
DELIMITERS = ",;\t|"
MAX_COLUMNS = 1_000
MAX_FIELDS = 48
"""Fields of a row that are kept to filter by; the places of a passage need some too."""
MAX_VALUE = 1_024
"""Characters of such a field."""
BATCH_ROWS = 256


@dataclass(frozen=True)
class TableColumns:
    """Names the columns of a table that are text, title and id."""

    text: tuple[str, ...] | None = None
    """TableColumns of the text, in this order; None: the first of `TEXT_COLUMNS`, or else all of them."""
    title: str | None = None
    """Column of the title; None: `title`, where there is one."""
    id: str | None = None
    """Column of the id; None: the first of `ID_COLUMNS` that is there."""


def csv_sections(path: Path, columns: TableColumns, encoding: str) -> Iterator[DocumentPart]:
    """The rows of a CSV file with a heading; what parts its columns is found in the heading."""
    csv.field_size_limit(MAX_LINE_BYTES)
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as raw:
            # A byte order mark says more than a setting for all files.
            is_marked = raw.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8
        with opened(path, "rt", encoding="utf-8-sig" if is_marked else encoding, newline="") as file:
            heading = file.readline(MAX_LINE_BYTES)
            if not heading.strip():
                raise UnreadableError("empty")
            delimiter = max(DELIMITERS, key=heading.count)
            names = [name.strip() for name in next(csv.reader([heading], delimiter=delimiter))]
            _check_names(names)
            reader = csv.reader(file, delimiter=delimiter)
            fits = False
            for number, values in enumerate(reader, 2):
                if not values:
                    continue
                if not fits and len(values) != len(names):
                    # Not one row after the other: a line above the heading would make thousands of rejected rows.
                    raise UnreadableError(
                        f"line {number} has {len(values)} columns, but line 1 names {len(names)}; CSV begins with the "
                        "names of its columns"
                    )
                fits = True
                yield _csv_section(names, values, columns, number)
    except UnicodeDecodeError as error:
        raise UnreadableError(
            f"not {encoding}: {error.reason} at {error.object[error.start]:#04x}; save the file as UTF-8, or name the "
            "`encoding` of the source"
        ) from error
    except csv.Error as error:
        raise UnreadableError(f"no readable CSV ({error})") from error


def _check_names(names: list[str]) -> None:
    if len(names) > MAX_COLUMNS:
        raise UnreadableError(f"{len(names):,} columns; at most {MAX_COLUMNS:,} are read")
    if len(set(names)) < len(names) or "" in names:
        raise UnreadableError(f"the heading {shown(names)} names a column twice, or not at all; name each once")


def _csv_section(names: list[str], values: list[str], columns: TableColumns, number: int) -> DocumentPart:
    if len(values) != len(names):
        text = ", ".join(values)[:MAX_VALUE]
        return DocumentPart((), text, fault=f"{len(values)} columns, but the heading has {len(names)}", line=number)
    return row_section(dict(zip(names, values, strict=True)), columns, number)


def json_line_sections(path: Path, columns: TableColumns) -> Iterator[DocumentPart]:
    """The rows of a JSON Lines file."""
    for line in read_text_lines(path):
        try:
            if line.fault:
                raise RowError(line.fault)
            row = parse_object(line.text)
        except RowError as error:
            yield DocumentPart((), line.text[:MAX_VALUE], fault=str(error), line=line.number)
            continue
        yield row_section(row, columns, line.number)


def parquet_sections(path: Path, columns: TableColumns) -> Iterator[DocumentPart]:
    """The rows of a Parquet file."""
    # Here, because only these files need it, and other readers start in a fifth of the time.
    import pyarrow as pa

    from embedder.data.records import open_parquet

    try:
        with open_parquet(path) as file:
            _check_names(file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                for row in _with_texts(batch).to_pylist():
                    number += 1
                    yield row_section(row, columns, number)
    except (pa.ArrowException, OSError) as error:
        raise UnreadableError(f"no readable Parquet file ({str(error).splitlines()[0]:.200})") from error


def _with_texts(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with texts in place of bytes, as some programs write them, where these are UTF-8."""
    import pyarrow as pa

    for i, field in enumerate(batch.schema):
        if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
            with suppress(pa.ArrowInvalid):
                batch = batch.set_column(i, field.name, batch.column(i).cast(pa.large_string()))
    return batch


def object_sections(rows: Iterable[object], columns: TableColumns) -> Iterator[DocumentPart]:
    """Objects of a JSON list as rows."""
    for number, row in enumerate(rows, 1):
        if isinstance(row, dict):
            yield row_section(row, columns, number)
        else:
            yield DocumentPart((), shown(row), fault=f"a {type(row).__name__}, not an object", line=number)


def row_section(row: Row, columns: TableColumns, number: int) -> DocumentPart:
    """One row as a section, or why it is set aside."""
    try:
        texts = _text_columns(row, columns)
        text = _text(row, texts)
        if is_blank(text):
            raise RowError(f"no text in {shown(list(texts or row))}")
        id_column = columns.id or next((name for name in ID_COLUMNS if row.get(name) is not None), None)
        row_id = optional_id(row, id_column) if id_column else None
        title_column = columns.title or "title"
        title = _written(row.get(title_column)) or ""
        used = {id_column, title_column, *(texts or ())}
        kept = _metadata({name: value for name, value in row.items() if name not in used})
    except RowError as error:
        return DocumentPart((), shown(row), fault=str(error), line=number)
    headings = (" ".join(title.split()),) if title.strip() else ()
    return DocumentPart(headings, text, row_id=row_id, metadata=kept, line=number)


def _text_columns(row: Row, columns: TableColumns) -> tuple[str, ...] | None:
    """The columns of the text; None: all."""
    if columns.text is not None:
        missing = [name for name in columns.text if name not in row]
        if missing:
            raise RowError(f"no column {missing[0]!r}; there are {shown(sorted(map(str, row)))}")
        return columns.text
    first = next((name for name in TEXT_COLUMNS if isinstance(row.get(name), str)), None)
    return None if first is None else (first,)


def _text(row: Row, names: tuple[str, ...] | None) -> str:
    """The text of a row: one column as it is, several as lines with their names."""
    if names is not None and len(names) == 1:
        return _written(row[names[0]]) or ""
    parts = {name: _written(row[name]) for name in (names or row)}
    return "\n".join(f"{name}: {part}" for name, part in parts.items() if part)


def _metadata(row: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a row by which searches can filter."""
    kept: dict[str, Any] = {}
    for name, value in row.items():
        if len(kept) == MAX_FIELDS:
            break
        if not is_field_name(name) or isinstance(value, bytes):
            continue
        if isinstance(value, list | dict):
            # ValueError: it holds what no search could filter by.
            with suppress(ValueError):
                metadata_json({name: value})
                kept[name] = value
            continue
        kind = value if isinstance(value, bool | int | float) else _written(value)
        if kind is None or (isinstance(kind, str) and not 0 < len(kind) <= MAX_VALUE):
            continue
        if isinstance(kind, int | float) and not (math.isfinite(kind) and abs(kind) <= LARGEST_INTEGER):
            continue
        kept[name] = kind
    return kept


def _written(value: object) -> str | None:
    """A value of a row as a text; None where there is none or where it is no text."""
    if value is None or isinstance(value, bytes) or (isinstance(value, float) and math.isnan(value)):
        return None
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError("a text holds half of a character (a lone surrogate)") from error
    return text.strip()
