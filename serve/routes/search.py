"""Routes that search: /v1/search for hits, one search or several, /v1/retrieve/{task} for a prompt for the LLM."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from secrets import token_hex

from fastapi import APIRouter, Response
from pydantic import BaseModel

from embedder.config.tasks import PromptTemplate
from embedder.errors import DataError
from embedder.index.filters import both, equals
from embedder.index.results import Hit
from serve.access.scoped_service import ScopedService
from serve.http_errors import ApiError
from serve.middleware.request_body import BoundedRoute
from serve.routes.dependencies import Here
from serve.routes.document_routes import document
from serve.schemas.search_schemas import (
    BatchRequest,
    BatchResponse,
    RetrieveRequest,
    RetrieveResponse,
    SearchRequest,
    SearchResponse,
    SearchResult,
    ShardCounts,
)
from serve.search_limits import check_queries

router = APIRouter(route_class=BoundedRoute, tags=["search"])

TOGETHER = 8
"""Searches of a batch that are under way at once, so that one request does not fill the queues of the shards."""
PLAIN = PromptTemplate(context="{passage}\n\n", input="{query}")
"""For a task without a template of its own."""
SESSION = "session"
"""Field of the metadata that says which conversation a document belongs to."""


@router.post("/v1/search", response_model=SearchResponse)
async def search(request: SearchRequest, service: Here) -> Response:
    """The best documents of a task for each query, over all shards."""
    _check_queries(service, [request])
    answer = await _answer(request, service)
    return await _written(service, answer, [answer])


@router.post("/v1/search/batch", response_model=BatchResponse)
async def search_batch(request: BatchRequest, service: Here) -> Response:
    """Several searches at once, each with an index, a task, a filter and a k of its own; one that fails fails all."""
    _check_queries(service, request.searches)
    turns = asyncio.Semaphore(TOGETHER)

    async def answer(number: int, one: SearchRequest) -> SearchResponse:
        async with turns:
            try:
                return await _answer(one, service, share=len(request.searches))
            except (ApiError, DataError) as error:
                if isinstance(error, ApiError) and error.status != 400:
                    raise
                raise ApiError(400, f"searches.{number}: {error}", param="searches") from error

    answers = await asyncio.gather(*(answer(i, one) for i, one in enumerate(request.searches)))
    return await _written(service, BatchResponse(answers=answers), answers)


def _check_queries(service: ScopedService, searches: Sequence[SearchRequest]) -> None:
    """Refuse more than one search may have, which several share.

    Raises:
        ApiError: their queries, texts or filters are too many, or too long.
    """
    check_queries(searches, service.settings)
    for texts in filter(None, (one.texts for one in searches)):
        service.texts(texts, "query", service.settings.max_queries)


async def _answer(request: SearchRequest, service: ScopedService, share: int = 1) -> SearchResponse:
    version = await service.named(request.index)
    answers, timing = await service.search(version, request.task, request, request.texts, request.vectors, share)

    def results() -> list[list[SearchResult]]:
        return [[result(hit, request.with_payload) for hit in hits] for hits in answers]

    return SearchResponse(
        results=await service.large.beside(sum(map(len, answers)), results),
        shards=ShardCounts(total=version.manifest.num_shards, successful=version.manifest.num_shards, failed=0),
        time_ms=timing,
        **version.stamp.model_dump(),
    )


async def _written(service: ScopedService, answer: BaseModel, searches: Sequence[SearchResponse]) -> Response:
    """An answer on the wire. Not by FastAPI, which would write thousands of hits in the event loop."""
    hits = sum(len(found) for one in searches for found in one.results)
    return Response(await service.large.beside(hits, answer.model_dump_json), media_type="application/json")


@router.post("/v1/retrieve/{task}")
async def retrieve(task: str, request: RetrieveRequest, service: Here) -> RetrieveResponse:
    """The best documents of a task in the prompt of that task, followed by the query."""
    version = await service.named(request.index)
    texts = service.texts(request.query, "query")
    fields = request
    if request.session is not None:
        fields = request.model_copy(update={"filter": both(equals(SESSION, request.session), request.filter)})
    (hits,), timing = await service.search(version, task, fields, texts)
    kept = fitting(hits, request.max_characters)
    spec = service.tasks.get(task)
    template = (spec.template if spec else None) or PLAIN
    texts = [hit.text for hit in kept]
    passages = "\n".join(delimited(texts) if request.delimit else texts)
    context = template.context.format(passage=passages) if kept else ""
    return RetrieveResponse(
        prompt=context + template.input.format(query=request.query),
        context=context,
        passages=[result(hit) for hit in kept],
        left_out=len(hits) - len(kept),
        time_ms=timing,
        **version.stamp.model_dump(),
    )


def delimited(passages: Sequence[str]) -> list[str]:
    """Each passage between two lines with a mark that stands in none of them."""
    # Random, because whoever writes documents could write down any mark that is known before.
    mark = token_hex(8)
    while any(mark in passage for passage in passages):
        mark = token_hex(8)
    return [f"<passage {mark}>\n{passage}\n</passage {mark}>" for passage in passages]


def result(hit: Hit, with_payload: bool = True) -> SearchResult:
    """A hit on the wire."""
    return SearchResult(**document(hit, with_payload).model_dump(), score=hit.score, group=hit.group)


def fitting(hits: Sequence[Hit], max_characters: int) -> list[Hit]:
    """The best hits whose texts fit together."""
    kept: list[Hit] = []
    for hit in hits:
        max_characters -= len(hit.text) + 1
        if max_characters < -1:
            break
        kept.append(hit)
    return kept
