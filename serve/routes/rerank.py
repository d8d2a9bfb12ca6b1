"""Routes that put documents of a request by how well they fit: Cohere's shape, Voyage's and TEI's.

By the reranker of the index, or where it has none by the encoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any
from uuid import uuid4

import numpy as np
from fastapi import APIRouter, Body, Response
from pydantic import ValidationError

from serve.access.scoped_service import ScopedService
from serve.http_errors import ApiError, refusal
from serve.middleware.request_body import BoundedRoute
from serve.reranking import FITS_NOTHING, best_first, relevance
from serve.routes.dependencies import Here, stamp
from serve.schemas.embedding_schemas import Usage
from serve.schemas.rerank_schemas import (
    RankedDocument,
    RerankRequest,
    RerankResponse,
    RerankResult,
    TeiRank,
    TeiRerankRequest,
    VoyageResult,
)
from serve.versions.served import Version

router = APIRouter(route_class=BoundedRoute, tags=["rerank"])


@router.post("/v1/rerank", response_model_exclude_none=True)
async def rerank(request: RerankRequest, response: Response, service: Here) -> RerankResponse:
    """Documents as the reranker of the index orders them, or by the cosine of their vectors with the query's."""
    version = await (service.named(None) if request.model is None else service.model(request.model))
    texts = service.texts([text_of(request, i) for i in range(len(request.documents))], "documents")
    is_cut = request.truncation is not False
    asked = _Asked(request.query, texts, "documents", is_cut, request.raw_scores, request.task)
    score_N, tokens = await _scores(service, version, asked)
    order = best_first(score_N)[: request.top_n or request.top_k or None]
    stamp(response, version)
    results = [
        RerankResult(
            index=i,
            relevance_score=float(score_N[i]),
            document=as_object(request.documents[i]) if request.return_documents else None,
        )
        for i in order
    ]
    answer = RerankResponse(
        id=uuid4().hex,
        results=results,
        model=request.model or version.manifest.name,
        usage=Usage(prompt_tokens=tokens, total_tokens=tokens),
    )
    if request.top_k is None and request.truncation is None:
        return answer
    shown = texts if request.return_documents else [None] * len(texts)
    data = [VoyageResult(index=i, relevance_score=float(score_N[i]), document=shown[i]) for i in order]
    return answer.model_copy(update={"object": "list", "data": data})


@router.post("/rerank", response_model_exclude_none=True, include_in_schema=False)
async def rerank_of_any(
    body: Annotated[dict[str, Any], Body()], response: Response, service: Here
) -> list[TeiRank] | RerankResponse:
    """TEI's route with `texts`; the one above, as infinity and vLLM have it, with `documents`."""
    try:
        if "texts" not in body:
            return await rerank(RerankRequest.model_validate(body), response, service)
        request = TeiRerankRequest.model_validate(body)
    except ValidationError as error:
        lines = [{**line, "loc": ("body", *line["loc"])} for line in error.errors()]
        raise refusal(lines, body) from error
    version = await service.named(None)
    texts = service.texts(request.texts, "texts")
    asked = _Asked(request.query, texts, "texts", request.truncate, request.raw_scores)
    score_N, _ = await _scores(service, version, asked)
    stamp(response, version)
    return [
        TeiRank(index=i, score=float(score_N[i]), text=texts[i] if request.return_text else None)
        for i in best_first(score_N)
    ]


def text_of(request: RerankRequest, position: int) -> str:
    """What of a document is compared with the query.

    Raises:
        ApiError: it has none of the fields, or one that is no text.
    """
    document = request.documents[position]
    if isinstance(document, str):
        return document
    # Each once, or a text would be read as often as its field is named.
    names = ["text"] if request.rank_fields is None else list(dict.fromkeys(request.rank_fields))
    fields = document.model_dump(exclude_none=True)
    texts = [fields[name] for name in names if name in fields]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ApiError(400, f"documents.{position}: needs a text in {' or '.join(names):.200}", param="documents")
    return " ".join(texts)


def as_object(document: str | RankedDocument) -> RankedDocument:
    """A document as Cohere answers it."""
    return RankedDocument(text=document) if isinstance(document, str) else document


@dataclass(frozen=True)
class _Asked:
    """What is to be put in order, in whichever shape it came."""

    query: str
    texts: list[str]
    param: str
    """The field of the texts."""
    truncate: bool
    raw: bool
    task: str | None = None


async def _scores(service: ScopedService, version: Version, asked: _Asked) -> tuple[np.ndarray, int]:
    """How well each text fits the query (N,), and the tokens of all; an empty text fits nothing."""
    service.texts(asked.query, "query")
    if not version.has_reranker:
        cosine_N, tokens = await _cosines(service, version, asked)
        return cosine_N if asked.raw else (1 + cosine_N) / 2, tokens
    pairs = service.pairs(version, asked.task, asked.query, asked.texts)
    scored = await service.score(version, pairs, asked.truncate, asked.param)
    # Read like the others, so that a refusal names a text by its place in the request.
    score_N = np.where([bool(text) for text in asked.texts], scored.vector_ND[:, 0], FITS_NOTHING)
    return score_N if asked.raw else relevance(score_N), sum(scored.tokens)


async def _cosines(service: ScopedService, version: Version, asked: _Asked) -> tuple[np.ndarray, int]:
    """The cosine (N,) of each text with the query, and the tokens of all; -1 where a text is empty."""
    positions = [i for i, text in enumerate(asked.texts) if text]
    prompted = service.prompted(version, asked.task, "query", [asked.query])
    prompted += service.prompted(version, asked.task, "passage", [asked.texts[i] for i in positions])
    encoded = await service.encode(version, prompted, asked.truncate)
    cosine_N = np.full(len(asked.texts), -1, dtype=np.float32)
    # Clipped: rounding brings cosines of equal vectors beyond 1, and clients of this API expect 0 to 1.
    cosine_N[positions] = np.clip(encoded.vector_ND[1:] @ encoded.vector_ND[0], -1, 1)
    return cosine_N, sum(encoded.tokens)
