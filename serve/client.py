"""A typed client of the service, for programs that wait (`Client`) and for those that do not (`AsyncClient`).

    with Client("http://127.0.0.1:8000", api_key=KEY) as client:
        vectors = client.embed(EmbeddingRequest(model="live", input=["a text"], task="qa"))
        hits = client.search(SearchRequest(query="a question", task="qa", k=3)).results[0]

Overload, and a part that is not ready, are tried again after the time that the service asks for, but never after more
than `timeout_s`. A refusal is a `ServiceError`; errors of the network are httpx's own.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx
import numpy as np
from pydantic import BaseModel, ValidationError
from typing_extensions import Self

from serve.schemas.document_schemas import (
    ChangeRequest,
    ChangeResponse,
    CountRequest,
    CountResponse,
    DeleteRequest,
    DeleteResponse,
    GetRequest,
    GetResponse,
    ListRequest,
    ListResponse,
    ShownDocument,
    UpsertRequest,
    UpsertResponse,
)
from serve.schemas.embedding_schemas import EmbeddingRequest, EmbeddingResponse
from serve.schemas.index_schemas import IndexList, PointRequest, PointResponse
from serve.schemas.rerank_schemas import RerankRequest, RerankResponse
from serve.schemas.search_schemas import (
    BatchRequest,
    BatchResponse,
    RetrieveRequest,
    RetrieveResponse,
    SearchRequest,
    SearchResponse,
)
from serve.schemas.state_schemas import ErrorResponse

R = TypeVar("R", bound=BaseModel)
TRIED_AGAIN = {429, 503}


class ServiceError(Exception):
    """The service refused a request."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message, self.param, self.code = status, message, param, code


@dataclass(frozen=True)
class Call(Generic[R]):
    """One request, and the model of its answer."""

    method: str
    path: str
    answer: type[R]
    body: BaseModel | None = None

    @property
    def content(self) -> dict[str, Any]:
        """Body and headers, as httpx takes them."""
        if self.body is None:
            return {}
        sent = self.body.model_dump_json(by_alias=True, exclude_none=True)
        return {"content": sent.encode(), "headers": {"Content-Type": "application/json"}}

    def read(self, response: httpx.Response) -> R:
        """The answer.

        Raises:
            ServiceError: it is a refusal.
        """
        if response.is_success:
            return self.answer.model_validate_json(response.content)
        try:
            error = ErrorResponse.model_validate_json(response.content).error
        except ValidationError:
            raise ServiceError(response.status_code, response.text[:500]) from None
        raise ServiceError(response.status_code, error.message, error.param, error.code)


def _embed(request: EmbeddingRequest) -> Call[EmbeddingResponse]:
    packed = request.model_copy(update={"encoding_format": "base64"})
    return Call("POST", "/v1/embeddings", EmbeddingResponse, packed)


def _vectors(answer: EmbeddingResponse) -> np.ndarray:
    """Vectors (N, D), float32, of an answer in base64."""
    packed = [base64.b64decode(str(embedding.embedding)) for embedding in answer.data]
    return np.stack([np.frombuffer(raw, dtype="<f4") for raw in packed])


def _search(request: SearchRequest) -> Call[SearchResponse]:
    return Call("POST", "/v1/search", SearchResponse, request)


def _retrieve(task: str, request: RetrieveRequest) -> Call[RetrieveResponse]:
    return Call("POST", f"/v1/retrieve/{quote(task, safe='')}", RetrieveResponse, request)


def _rerank(request: RerankRequest) -> Call[RerankResponse]:
    return Call("POST", "/v1/rerank", RerankResponse, request)


def _indexes() -> Call[IndexList]:
    return Call("GET", "/v1/indexes", IndexList)


def _search_batch(request: BatchRequest) -> Call[BatchResponse]:
    return Call("POST", "/v1/search/batch", BatchResponse, request)


def _documents(index: str, what: str, answer: type[R], request: BaseModel) -> Call[R]:
    return Call("POST", f"/v1/indexes/{quote(index, safe='')}/documents{what}", answer, request)


def _upsert(index: str, request: UpsertRequest) -> Call[UpsertResponse]:
    return _documents(index, "", UpsertResponse, request)


def _delete(index: str, request: DeleteRequest) -> Call[DeleteResponse]:
    return _documents(index, "/delete", DeleteResponse, request)


def _change(index: str, request: ChangeRequest) -> Call[ChangeResponse]:
    return _documents(index, "/metadata", ChangeResponse, request)


def _get(index: str, request: GetRequest) -> Call[GetResponse]:
    return _documents(index, "/get", GetResponse, request)


def _count(index: str, request: CountRequest) -> Call[CountResponse]:
    return _documents(index, "/count", CountResponse, request)


def _list(index: str, request: ListRequest) -> Call[ListResponse]:
    return _documents(index, "/list", ListResponse, request)


def _point(index: str, version: str) -> Call[PointResponse]:
    return Call("PUT", f"/v1/indexes/{quote(index, safe='')}", PointResponse, PointRequest(version=version))


def _headers(api_key: str | None) -> dict[str, str]:
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}


def _pause(response: httpx.Response, most: float) -> float:
    """Seconds that the service asks to wait, at most so many: whatever answers must not hold its client for hours."""
    given = response.headers.get("retry-after", "")
    return min(float(given) if given.isdecimal() else 1.0, most)


class Client:
    """The service, for a program that waits."""

    def __init__(self, url: str, api_key: str | None = None, timeout_s: float = 60.0, retries: int = 2) -> None:
        self._http = httpx.Client(base_url=url, headers=_headers(api_key), timeout=timeout_s)
        self._retries, self._timeout_s = retries, timeout_s

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def embed(self, request: EmbeddingRequest) -> np.ndarray:
        """Vectors (N, D), float32, of texts."""
        return _vectors(self._send(_embed(request)))

    def search(self, request: SearchRequest) -> SearchResponse:
        """Hits of one or more queries."""
        return self._send(_search(request))

    def search_batch(self, request: BatchRequest) -> BatchResponse:
        """Hits of several searches."""
        return self._send(_search_batch(request))

    def retrieve(self, task: str, request: RetrieveRequest) -> RetrieveResponse:
        """A prompt for the LLM."""
        return self._send(_retrieve(task, request))

    def rerank(self, request: RerankRequest) -> RerankResponse:
        """Documents in the order of how well they fit."""
        return self._send(_rerank(request))

    def indexes(self) -> IndexList:
        return self._send(_indexes())

    def upsert(self, index: str, request: UpsertRequest) -> UpsertResponse:
        """Write documents."""
        return self._send(_upsert(index, request))

    def delete(self, index: str, request: DeleteRequest) -> DeleteResponse:
        """Remove documents."""
        return self._send(_delete(index, request))

    def change(self, index: str, request: ChangeRequest) -> ChangeResponse:
        """Change the metadata of documents."""
        return self._send(_change(index, request))

    def get(self, index: str, request: GetRequest) -> GetResponse:
        """Documents by id and dataset."""
        return self._send(_get(index, request))

    def count(self, index: str, request: CountRequest) -> CountResponse:
        """How many documents there are, or fit a filter."""
        return self._send(_count(index, request))

    def list(self, index: str, request: ListRequest) -> ListResponse:
        """A page of the documents."""
        return self._send(_list(index, request))

    def documents(self, index: str, request: ListRequest) -> Iterator[ShownDocument]:
        """All documents from a page on, asked for page by page."""
        while True:
            page = self.list(index, request)
            yield from page.documents
            if page.cursor is None:
                return
            request = request.model_copy(update={"cursor": page.cursor})

    def point(self, index: str, version: str) -> PointResponse:
        """Let an alias serve a version."""
        return self._send(_point(index, version))

    def _send(self, call: Call[R]) -> R:
        for _ in range(self._retries):
            response = self._http.request(call.method, call.path, **call.content)
            if response.status_code not in TRIED_AGAIN:
                return call.read(response)
            time.sleep(_pause(response, self._timeout_s))
        return call.read(self._http.request(call.method, call.path, **call.content))


class AsyncClient:
    """The same for a program that does not wait."""

    def __init__(self, url: str, api_key: str | None = None, timeout_s: float = 60.0, retries: int = 2) -> None:
        self._http = httpx.AsyncClient(base_url=url, headers=_headers(api_key), timeout=timeout_s)
        self._retries, self._timeout_s = retries, timeout_s

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def embed(self, request: EmbeddingRequest) -> np.ndarray:
        """Vectors (N, D), float32, of texts."""
        return _vectors(await self._send(_embed(request)))

    async def search(self, request: SearchRequest) -> SearchResponse:
        """Hits of one or more queries."""
        return await self._send(_search(request))

    async def search_batch(self, request: BatchRequest) -> BatchResponse:
        """Hits of several searches."""
        return await self._send(_search_batch(request))

    async def retrieve(self, task: str, request: RetrieveRequest) -> RetrieveResponse:
        """A prompt for the LLM."""
        return await self._send(_retrieve(task, request))

    async def rerank(self, request: RerankRequest) -> RerankResponse:
        """Documents in the order of how well they fit."""
        return await self._send(_rerank(request))

    async def indexes(self) -> IndexList:
        return await self._send(_indexes())

    async def upsert(self, index: str, request: UpsertRequest) -> UpsertResponse:
        """Write documents."""
        return await self._send(_upsert(index, request))

    async def delete(self, index: str, request: DeleteRequest) -> DeleteResponse:
        """Remove documents."""
        return await self._send(_delete(index, request))

    async def change(self, index: str, request: ChangeRequest) -> ChangeResponse:
        """Change the metadata of documents."""
        return await self._send(_change(index, request))

    async def get(self, index: str, request: GetRequest) -> GetResponse:
        """Documents by id and dataset."""
        return await self._send(_get(index, request))

    async def count(self, index: str, request: CountRequest) -> CountResponse:
        """How many documents there are, or fit a filter."""
        return await self._send(_count(index, request))

    async def list(self, index: str, request: ListRequest) -> ListResponse:
        """A page of the documents."""
        return await self._send(_list(index, request))

    async def documents(self, index: str, request: ListRequest) -> AsyncIterator[ShownDocument]:
        """All documents from a page on, asked for page by page."""
        while True:
            page = await self.list(index, request)
            for document in page.documents:
                yield document
            if page.cursor is None:
                return
            request = request.model_copy(update={"cursor": page.cursor})

    async def point(self, index: str, version: str) -> PointResponse:
        """Let an alias serve a version."""
        return await self._send(_point(index, version))

    async def _send(self, call: Call[R]) -> R:
        for _ in range(self._retries):
            response = await self._http.request(call.method, call.path, **call.content)
            if response.status_code not in TRIED_AGAIN:
                return call.read(response)
            await asyncio.sleep(_pause(response, self._timeout_s))
        return call.read(await self._http.request(call.method, call.path, **call.content))
