"""A typed client of the service, for programs that wait (`Client`) and for those that do not (`AsyncClient`).

    with Client("http://127.0.0.1:8000", api_key=KEY) as client:
        vectors = client.ask(embed(EmbeddingRequest(model="live", input=["a text"], task="qa")))
        hits = client.ask(search(SearchRequest(query="a question", task="qa", k=3))).results[0]

Each function here makes a `Call`, which both clients take, as httpx's clients that they also are. Overload, and a part
that is not ready, are tried again after the time that the service asks for. A refusal is a `ServiceError`; errors of
the network are httpx's own.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx
import numpy as np
from pydantic import BaseModel, ValidationError

from serve.schemas import (
    DeleteRequest,
    DeleteResponse,
    EmbeddingRequest,
    EmbeddingResponse,
    ErrorResponse,
    IndexList,
    PointRequest,
    PointResponse,
    RerankRequest,
    RerankResponse,
    RetrieveRequest,
    RetrieveResponse,
    SearchRequest,
    SearchResponse,
    UpsertRequest,
    UpsertResponse,
)

R = TypeVar("R")
TRIED_AGAIN = {429, 503}


class ServiceError(Exception):
    """The service refused a request."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message, self.param, self.code = status, message, param, code


@dataclass(frozen=True)
class Call(Generic[R]):
    """One request, and how its answer is read."""

    method: str
    path: str
    read: Callable[[bytes], R]
    body: BaseModel | None = None

    @property
    def json(self) -> dict[str, Any] | None:
        if self.body is None:
            return None
        return self.body.model_dump(mode="json", by_alias=True, exclude_none=True)

    def answer(self, response: httpx.Response) -> R:
        """What the service says.

        Raises:
            ServiceError: it is a refusal.
        """
        if response.is_success:
            return self.read(response.content)
        try:
            error = ErrorResponse.model_validate_json(response.content).error
        except ValidationError:
            raise ServiceError(response.status_code, response.text[:500]) from None
        raise ServiceError(response.status_code, error.message, error.param, error.code)


def embed(request: EmbeddingRequest) -> Call[np.ndarray]:
    """Vectors (N, D), float32, of texts."""
    packed = request.model_copy(update={"encoding_format": "base64"})
    return Call("POST", "/v1/embeddings", _vectors, packed)


def _vectors(answer: bytes) -> np.ndarray:
    """Vectors (N, D), float32, of an answer in base64."""
    packed = [base64.b64decode(str(row.embedding)) for row in EmbeddingResponse.model_validate_json(answer).data]
    return np.stack([np.frombuffer(raw, dtype="<f4") for raw in packed])


def search(request: SearchRequest) -> Call[SearchResponse]:
    """Hits of one or more queries."""
    return Call("POST", "/v1/search", SearchResponse.model_validate_json, request)


def retrieve(task: str, request: RetrieveRequest) -> Call[RetrieveResponse]:
    """A prompt for the LLM."""
    return Call("POST", f"/v1/retrieve/{quote(task, safe='')}", RetrieveResponse.model_validate_json, request)


def rerank(request: RerankRequest) -> Call[RerankResponse]:
    """Documents in the order of how well they fit."""
    return Call("POST", "/v1/rerank", RerankResponse.model_validate_json, request)


def indexes() -> Call[IndexList]:
    """The state of each alias, and all versions."""
    return Call("GET", "/v1/indexes", IndexList.model_validate_json)


def upsert(index: str, request: UpsertRequest) -> Call[UpsertResponse]:
    """Write documents."""
    return Call("POST", f"{_index(index)}/documents", UpsertResponse.model_validate_json, request)


def delete(index: str, request: DeleteRequest) -> Call[DeleteResponse]:
    """Remove documents."""
    return Call("POST", f"{_index(index)}/documents/delete", DeleteResponse.model_validate_json, request)


def point(index: str, version: str) -> Call[PointResponse]:
    """Let an alias serve a version."""
    return Call("PUT", _index(index), PointResponse.model_validate_json, PointRequest(version=version))


def _index(name: str) -> str:
    return f"/v1/indexes/{quote(name, safe='')}"


def _headers(api_key: str | None) -> dict[str, str]:
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}


def _pause(response: httpx.Response) -> float:
    """Seconds that the service asks to wait."""
    given = response.headers.get("retry-after", "")
    return float(given) if given.isdecimal() else 1.0


class Client(httpx.Client):
    """The service, for a program that waits."""

    def __init__(self, url: str, api_key: str | None = None, timeout_s: float = 60.0, retries: int = 2) -> None:
        super().__init__(base_url=url, headers=_headers(api_key), timeout=timeout_s)
        self.retries = retries

    def ask(self, call: Call[R]) -> R:
        """The answer of the service; raises ServiceError for a refusal."""
        for _ in range(self.retries):
            response = self.request(call.method, call.path, json=call.json)
            if response.status_code not in TRIED_AGAIN:
                return call.answer(response)
            time.sleep(_pause(response))
        return call.answer(self.request(call.method, call.path, json=call.json))


class AsyncClient(httpx.AsyncClient):
    """The same for a program that does not wait."""

    def __init__(self, url: str, api_key: str | None = None, timeout_s: float = 60.0, retries: int = 2) -> None:
        super().__init__(base_url=url, headers=_headers(api_key), timeout=timeout_s)
        self.retries = retries

    async def ask(self, call: Call[R]) -> R:
        """The answer of the service; raises ServiceError for a refusal."""
        for _ in range(self.retries):
            response = await self.request(call.method, call.path, json=call.json)
            if response.status_code not in TRIED_AGAIN:
                return call.answer(response)
            await asyncio.sleep(_pause(response))
        return call.answer(await self.request(call.method, call.path, json=call.json))
