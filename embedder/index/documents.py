"""What is indexed: a document's id, text, title and metadata, within limits, and how a collection stores it.

Metadata needs no declared schema: a field may hold a text, a number, a boolean, an object or a list of these, and
documents may differ in this. The kinds of a field are kept apart, so a condition finds the values of its own kind only.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from operator import methodcaller
from typing import Annotated, NamedTuple

import pyarrow as pa
from pydantic import BeforeValidator, ConfigDict, Field, StringConstraints

from embedder.data.metadata import DATASET_FIELD, ID_FIELD, Kind, Metadata, Scalar, values_at, values_of
from embedder.data.rows import titled
from embedder.hashing import content_id
from embedder.index.sent import Sent

PAYLOAD = pa.schema(
    [
        ("id", pa.string()),
        ("dataset", pa.string()),
        ("text", pa.large_string()),
        ("title", pa.string()),
        ("metadata", pa.large_string()),
    ]
)
"""What a hit shows; row i belongs to vector i. `metadata` is a JSON object, or null where there is none."""

BY_NAME = [("id", "ascending"), ("dataset", "ascending")]
"""The order of rows on disk."""


OWNER = "\u241f"
"""In a stored dataset between the name that its owner knows and the owner, so that two owners may use one name."""


class Row(NamedTuple):
    """One row of PAYLOAD."""

    id: str
    dataset: str
    text: str
    title: str | None
    metadata: str | None

    @property
    def digest(self) -> str:
        """Hash of all fields but the name."""
        return content_id(self.text, self.title, self.metadata)


def payload_table(rows: Sequence[Row]) -> pa.Table:
    """Rows as a table of PAYLOAD."""
    columns = zip(*rows, strict=True) if rows else [()] * len(PAYLOAD)
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, PAYLOAD, strict=True)], PAYLOAD)


def _id_text(given: object) -> object:
    """A whole number as its text; ids of other databases are often numbers."""
    return str(given) if isinstance(given, int) and not isinstance(given, bool) else given


MAX_DATASET = 256
DatasetName = Annotated[str, StringConstraints(max_length=MAX_DATASET)]
DocumentId = Annotated[str, StringConstraints(min_length=1, max_length=512), BeforeValidator(_id_text)]


class Document(Sent):
    """One document to be written; `id` and `dataset` together name it, and a later one of that name replaces it."""

    model_config = ConfigDict(frozen=True)

    id: DocumentId
    text: Annotated[str, StringConstraints(min_length=1)]
    title: Annotated[str, StringConstraints(max_length=4096)] | None = None
    dataset: DatasetName = ""
    metadata: Metadata = Field(default_factory=dict)

    @property
    def name(self) -> DocumentName:
        return (self.id, self.dataset)

    @property
    def whole_text(self) -> str:
        """What is encoded and kept as the text, as of a passage that `prepare` reads."""
        return titled(self.title, self.text)


DocumentName = tuple[str, str]
"""Id and dataset."""


AS_PYTHON = methodcaller("as_py")
"""The key of a binary search in a column."""


def row_named(ids: pa.Array, datasets: pa.ChunkedArray, name: DocumentName) -> int | None:
    """The row of a document among rows in the order of id and dataset, by binary search; None: it is not there."""
    document_id, dataset = name
    # Bisection in Python over the mapped column: turning it into a list would read the whole file.
    row = bisect_left(ids, document_id, key=AS_PYTHON)
    while row < len(ids) and ids[row].as_py() == document_id:
        if datasets[row].as_py() == dataset:
            return row
        row += 1
    return None


def first_after(ids: pa.Array, datasets: pa.ChunkedArray, name: DocumentName) -> int:
    """The first row that comes after a name, among rows in the order of id and dataset; their number if there is none.

    The name need not be there.
    """
    document_id, dataset = name
    row = bisect_left(ids, document_id, key=AS_PYTHON)
    while row < len(ids) and ids[row].as_py() == document_id and datasets[row].as_py() <= dataset:
        row += 1
    return row


def first_by_name(parts: Sequence[pa.Table], limit: int) -> pa.Table:
    """The first rows of some pages, by id and dataset."""
    return pa.concat_tables(parts).sort_by(BY_NAME).slice(0, limit)


def asked_values(field: str, value: Scalar) -> list[Scalar]:
    """A condition's value, and for a document's name, which is a text, the text of a whole number."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return [value, str(value)] if is_number and field in (ID_FIELD, DATASET_FIELD) else [value]


def owned_dataset(dataset: str, owner: str) -> str:
    """The dataset under which the documents of one owner are stored."""
    return f"{dataset}{OWNER}{owner}" if owner else dataset


def plain_dataset(dataset: str) -> str:
    """A stored dataset without its owner."""
    return dataset.rpartition(OWNER)[0] if OWNER in dataset else dataset


def belongs(row: Row, where: Mapping[str, str]) -> bool:
    """Tell whether each of these fields of a document has that text and no other value.

    A filter is also true of a document that has the text among others. It belongs to others too, so that none of them
    may replace or remove it.
    """
    fields = {**json.loads(row.metadata or "{}"), DATASET_FIELD: plain_dataset(row.dataset)}
    return all(values_at(fields, field) == [text] for field, text in where.items())


def field_values(metadata: str | None, dataset: str) -> Iterator[tuple[str, Kind, Scalar]]:
    """Every value that a condition can ask for, once, with the path and kind of its field."""
    yield DATASET_FIELD, "text", plain_dataset(dataset)
    if metadata:
        yield from dict.fromkeys(values_of(json.loads(metadata)))
