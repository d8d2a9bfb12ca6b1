"""Documents of an index on the wire: written, read, counted, listed, changed and deleted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, StringConstraints, model_validator
from typing_extensions import Self

from embedder.data.metadata import MAX_FIELDS_EACH, FieldName, Metadata
from embedder.index.documents import DatasetName, Document, DocumentId
from embedder.index.filters import Filter
from embedder.index.sent import Sent
from serve.schemas.index_schemas import Versions
from serve.schemas.sent_vectors import Vector
from serve.schemas.strict import Name, Strict

MEANT_BY_OTHERS = {
    "ids": "documents",
    "points": "documents",
    "points_selector": "documents",
    "query_filter": "filter",
    "where": "filter",
    "with_vector": "with_vectors",
    "include_vector": "with_vectors",
    "collection": "the index in the path",
}


class WrittenDocument(Document):
    """A document to be written."""

    MEANT: ClassVar[Mapping[str, str]] = {"embedding": "vector", "vectors": "vector", "payload": "metadata"}

    vector: Vector | None = None
    """Its vector, of the width of the index, which is scaled to length 1; null: that of the text, by the model."""


class UpsertRequest(Sent):
    """Body of POST /v1/indexes/{name}/documents."""

    MEANT: ClassVar[Mapping[str, str]] = {"points": "documents", "objects": "documents"}

    task: Name
    documents: Annotated[list[WrittenDocument], Field(min_length=1, fail_fast=True)]


class UpsertResponse(Versions):
    """The documents are on the disk and are found from now on."""

    upserted: int
    """Documents; of several of one id and dataset the last one counts."""


class NamedDocument(Sent):
    """Id and dataset, which identify a document."""

    id: DocumentId
    dataset: DatasetName = ""


NamedDocuments = Annotated[list[NamedDocument], Field(min_length=1, fail_fast=True)]


class ChosenDocuments(Sent):
    """Documents that are changed or deleted: by name, or all that fit a filter."""

    MEANT: ClassVar[Mapping[str, str]] = MEANT_BY_OTHERS

    task: Name
    documents: NamedDocuments | None = None
    filter: Filter | None = None
    """Conditions on the metadata, in Qdrant's vocabulary; `{}` fits all documents."""

    @model_validator(mode="after")
    def exactly_one(self) -> Self:
        """Refuse none and both."""
        if (self.documents is None) == (self.filter is None):
            raise ValueError("give exactly one of documents, filter")
        return self


class DeleteRequest(ChosenDocuments):
    """Body of POST /v1/indexes/{name}/documents/delete."""


class DeleteResponse(Versions):
    """The documents are no longer found."""

    deleted: int
    """How many of them there were."""


class ChangeRequest(ChosenDocuments):
    """Body of POST /v1/indexes/{name}/documents/metadata: nothing is encoded, text and vector stay."""

    MEANT: ClassVar[Mapping[str, str]] = {
        **MEANT_BY_OTHERS,
        "payload": "set",
        "metadata": "set",
        "keys": "remove",
        "delete": "remove",
    }

    set: Metadata = Field(default_factory=dict)
    """Fields with their new values; the others stay."""
    remove: Annotated[list[FieldName], Field(max_length=MAX_FIELDS_EACH, fail_fast=True)] = Field(default_factory=list)
    """Fields that go."""
    overwrite: bool = False
    """All fields go but those of `set`."""

    @model_validator(mode="after")
    def says_something(self) -> Self:
        """Refuse a change of nothing, and one that says two things of a field."""
        if not (self.set or self.remove or self.overwrite):
            raise ValueError("give set, remove or overwrite")
        if self.remove and self.overwrite:
            raise ValueError("overwrite removes every field; leave remove out")
        if both := sorted(self.set.keys() & set(self.remove)):
            raise ValueError(f"{both[0]!r} is set and removed")
        return self


class ChangeResponse(Versions):
    """The documents have the new metadata, and are found by it from now on."""

    changed: int
    """How many of them there were."""


class Showing(Sent):
    """How much of each document an answer shows."""

    with_payload: bool = True
    """True: they have text, title and metadata too."""
    with_vectors: bool = False
    """True: they have their vectors too."""


class GetRequest(Showing):
    """Body of POST /v1/indexes/{name}/documents/get."""

    MEANT: ClassVar[Mapping[str, str]] = MEANT_BY_OTHERS

    task: Name
    documents: NamedDocuments


class ShownDocument(Strict):
    """A document as it was written."""

    id: str
    dataset: str
    text: str | None = None
    title: str | None = None
    metadata: dict[str, Any] | None = None
    vector: list[float] | None = None
    """If it was asked for."""


class GetResponse(Versions):
    """Those of the documents that are there, in the order in which they were named."""

    documents: list[ShownDocument]


class CountRequest(Sent):
    """Body of POST /v1/indexes/{name}/documents/count."""

    MEANT: ClassVar[Mapping[str, str]] = MEANT_BY_OTHERS

    task: Name
    filter: Filter | None = None
    """Conditions on the metadata, in Qdrant's vocabulary; null: all documents are counted."""


class CountResponse(Versions):
    """How many documents there are."""

    count: int


class ListRequest(Showing):
    """Body of POST /v1/indexes/{name}/documents/list."""

    MEANT: ClassVar[Mapping[str, str]] = {**MEANT_BY_OTHERS, "offset": "cursor", "after": "cursor", "k": "limit"}

    task: Name
    filter: Filter | None = None
    limit: Annotated[int, Field(ge=1)] | None = None
    """Documents of a page; null: 100, or as many as the service gives."""
    cursor: Annotated[str, StringConstraints(min_length=1, max_length=16384)] | None = None
    """What the page before gave; null: the first page."""


class ListResponse(Versions):
    """A page of the documents, by id and dataset."""

    documents: list[ShownDocument]
    cursor: str | None
    """Of the next page; null: this is the last one."""
