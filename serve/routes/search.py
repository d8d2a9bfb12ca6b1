"""Routes that search: /v1/search for hits, /v1/retrieve/{task} for a prompt that is ready for the LLM."""

from __future__ import annotations

from collections.abc import Sequence
from secrets import token_hex

from fastapi import APIRouter

from embedder.config.tasks import PromptTemplate
from embedder.data.rows import untitled
from embedder.index.filters import both, equals
from embedder.index.results import Hit
from serve.middleware.request_body import BoundedRoute
from serve.routes.dependencies import Here
from serve.schemas.search_schemas import (
    RetrieveRequest,
    RetrieveResponse,
    SearchRequest,
    SearchResponse,
    SearchResult,
    ShardCounts,
)

router = APIRouter(route_class=BoundedRoute, tags=["search"])

PLAIN = PromptTemplate(context="{passage}\n\n", input="{query}")
"""For a task without a template of its own."""
SESSION = "session"
"""Field of the metadata that says which conversation a document belongs to."""


@router.post("/v1/search")
async def search(request: SearchRequest, service: Here) -> SearchResponse:
    """The best documents of a task for each query, over all shards."""
    version = await service.named(request.index)
    texts = service.texts(request.query, "query", service.settings.max_queries)
    answers, timing = await service.search(version, request.task, request, texts)
    return SearchResponse(
        results=[[result(hit, request.with_payload) for hit in hits] for hits in answers],
        shards=ShardCounts(total=version.manifest.num_shards, successful=version.manifest.num_shards, failed=0),
        time_ms=timing,
        **version.stamp.model_dump(),
    )


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
    named = SearchResult(id=hit.id, dataset=hit.dataset, score=hit.score)
    if not with_payload:
        return named
    return named.model_copy(
        update={"text": untitled(hit.title, hit.text), "title": hit.title, "metadata": hit.metadata}
    )


def fitting(hits: Sequence[Hit], max_characters: int) -> list[Hit]:
    """The best hits whose texts fit together."""
    kept: list[Hit] = []
    for hit in hits:
        max_characters -= len(hit.text) + 1
        if max_characters < -1:
            break
        kept.append(hit)
    return kept
