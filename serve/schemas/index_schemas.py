"""Indexes on the wire: documents written and deleted, aliases and versions."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from embedder.index.documents import DatasetName, Document, DocumentId
from embedder.index.sent import Sent
from serve.schemas.strict import Name, Strict


class Versions(Strict):
    """The versions that answered. Both change together, with the alias."""

    model_version: str
    index_version: str


class UpsertRequest(Sent):
    """Body of POST /v1/indexes/{name}/documents."""

    task: Name
    documents: Annotated[list[Document], Field(min_length=1, fail_fast=True)]


class UpsertResponse(Versions):
    """The documents are on the disk and are found from now on."""

    upserted: int
    """Documents; of several of one id and dataset the last one counts."""


class NamedDocument(Sent):
    """Id and dataset, which identify a document."""

    id: DocumentId
    dataset: DatasetName = ""


class DeleteRequest(Sent):
    """Body of POST /v1/indexes/{name}/documents/delete."""

    task: Name
    documents: Annotated[list[NamedDocument], Field(min_length=1, fail_fast=True)]


class DeleteResponse(Versions):
    """The documents are no longer found."""

    deleted: int
    """How many of them there were."""


class CollectionState(Strict):
    """The documents of one task."""

    documents: int
    uncompacted: int | None
    """Writes that are not compacted into the index yet; null where the key sees some documents only."""


class IndexState(Versions):
    """The version that an alias serves, and its sizes."""

    name: str
    """The alias."""
    version: str
    model: str
    dimension: int
    shards: int
    default: bool
    collections: dict[str, CollectionState]


class IndexList(Strict):
    """Answer of GET /v1/indexes."""

    data: list[IndexState]
    versions: list[str]
    """All there are; an alias can be pointed at each."""


class PointRequest(Sent):
    """Body of PUT /v1/indexes/{name}."""

    version: Name


class PointResponse(Versions):
    """The alias names this version from now on."""

    name: str
    version: str


class Removed(Strict):
    """An alias that is no more; its version stays."""

    name: str
