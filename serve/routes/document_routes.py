"""Routes of the documents of an index: written and deleted, read by name, counted, listed, their metadata changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Path

from embedder.data.rows import untitled
from embedder.index.documents import DocumentName
from embedder.index.filters import Filter
from embedder.index.metadata_change import MetadataChange
from embedder.index.results import Shown, StoredDocument
from serve.access.scoped_service import ScopedService
from serve.cursor import from_cursor, to_cursor
from serve.http_errors import ApiError
from serve.middleware.request_body import BoundedRoute
from serve.routes.dependencies import Here
from serve.schemas.document_schemas import (
    ChangeRequest,
    ChangeResponse,
    ChosenDocuments,
    CountRequest,
    CountResponse,
    DeleteRequest,
    DeleteResponse,
    GetRequest,
    GetResponse,
    ListRequest,
    ListResponse,
    NamedDocument,
    Showing,
    ShownDocument,
    UpsertRequest,
    UpsertResponse,
)

router = APIRouter(route_class=BoundedRoute, tags=["documents"])
PAGE = 100
"""Documents of a page where no limit is named."""
Alias = Annotated[str, Path(max_length=128)]


@router.post("/v1/indexes/{name}/documents")
async def upsert(name: Alias, request: UpsertRequest, service: Here) -> UpsertResponse:
    """Write documents: new ones, and new versions of old ones. They are on the disk and found when this answers."""
    version = await service.named(name, "name")
    service.texts([document.text for document in request.documents], "documents")
    upserted = await service.upsert(version, request.task, request.documents)
    return UpsertResponse(upserted=upserted, **version.stamp.model_dump())


@router.post("/v1/indexes/{name}/documents/delete")
async def delete(name: Alias, request: DeleteRequest, service: Here) -> DeleteResponse:
    """Remove documents by id and dataset, passing over those that are not there, or all that fit a filter."""
    version = await service.named(name, "name")
    deleted = await service.delete(version, request.task, _chosen(service, request))
    return DeleteResponse(deleted=deleted, **version.stamp.model_dump())


@router.post("/v1/indexes/{name}/documents/metadata")
async def change(name: Alias, request: ChangeRequest, service: Here) -> ChangeResponse:
    """Change the metadata of documents, by id and dataset or of all that fit a filter, without encoding them."""
    version = await service.named(name, "name")
    wanted = MetadataChange(request.set, request.remove, request.overwrite)
    changed = await service.change(version, request.task, _chosen(service, request), wanted)
    return ChangeResponse(changed=changed, **version.stamp.model_dump())


@router.post("/v1/indexes/{name}/documents/get")
async def get(name: Alias, request: GetRequest, service: Here) -> GetResponse:
    """Documents by id and dataset; those that are not there are passed over."""
    version = await service.named(name, "name")
    found = await service.documents(version, request.task, _names(service, request.documents), _shown(request))
    return GetResponse(documents=[document(one, request.with_payload) for one in found], **version.stamp.model_dump())


@router.post("/v1/indexes/{name}/documents/count")
async def count(name: Alias, request: CountRequest, service: Here) -> CountResponse:
    """How many documents there are, or fit a filter."""
    version = await service.named(name, "name")
    return CountResponse(count=await service.count(version, request.task, request.filter), **version.stamp.model_dump())


@router.post("/v1/indexes/{name}/documents/list")
async def list_documents(name: Alias, request: ListRequest, service: Here) -> ListResponse:
    """A page of the documents, in the order of id and dataset; `cursor` leads to the next one."""
    version = await service.named(name, "name")
    most = service.settings.max_inputs
    limit = min(PAGE, most) if request.limit is None else request.limit
    if limit > most:
        raise ApiError(400, f"limit {limit}: at most {most}", param="limit")
    after = None if request.cursor is None else from_cursor(request.cursor)
    found, last = await service.page(version, request.task, after, limit, request.filter, _shown(request))
    return ListResponse(
        documents=[document(one, request.with_payload) for one in found],
        cursor=None if last is None else to_cursor(last),
        **version.stamp.model_dump(),
    )


def document(one: StoredDocument, with_payload: bool = True) -> ShownDocument:
    """A document on the wire, with title and text as they were written."""
    named = ShownDocument(id=one.id, dataset=one.dataset, vector=one.vector)
    if not with_payload:
        return named
    return named.model_copy(
        update={"text": untitled(one.title, one.text), "title": one.title, "metadata": one.metadata}
    )


def _shown(request: Showing) -> Shown:
    return Shown(payload=request.with_payload, vectors=request.with_vectors)


def _chosen(service: ScopedService, request: ChosenDocuments) -> Sequence[DocumentName] | Filter:
    return request.filter if request.filter is not None else _names(service, request.documents or [])


def _names(service: ScopedService, documents: Sequence[NamedDocument]) -> list[DocumentName]:
    """The names in a request.

    Raises:
        ApiError: they are too many.
    """
    most = service.settings.max_inputs
    if len(documents) > most:
        raise ApiError(400, f"documents: {len(documents)}; at most {most}", param="documents")
    return [(one.id, one.dataset) for one in documents]
