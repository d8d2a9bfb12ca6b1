"""Route /v1/rerank in Cohere's shape: documents of a request in the order of how well they fit, by the embedder."""

from __future__ import annotations

from uuid import uuid4

import numpy as np
from fastapi import APIRouter, Response

from serve.request_body import BoundedRoute
from serve.routes.dependencies import Here, stamp
from serve.schemas.embedding_schemas import Usage
from serve.schemas.rerank_schemas import DocumentText, RerankRequest, RerankResponse, RerankResult

router = APIRouter(route_class=BoundedRoute, tags=["rerank"])


@router.post("/v1/rerank")
@router.post("/v2/rerank", include_in_schema=False)
async def rerank(request: RerankRequest, response: Response, service: Here) -> RerankResponse:
    """Documents by the cosine of their vectors with the query's."""
    served = service.served
    version = served.named(None) if request.model is None else served.model(request.model)
    given = [document if isinstance(document, str) else document.text for document in request.documents]
    (query,), documents = service.texts(request.query, "query"), service.texts(given, "documents")
    prompted = service.prompted(version, request.task, "query", [query])
    prompted += service.prompted(version, request.task, "passage", documents)
    encoded = await service.encode(version, prompted, True)
    # Clipped: rounding brings cosines of equal vectors beyond 1, and clients of this API expect 0 to 1.
    score_N = (1 + np.clip(encoded.vector_ND[1:] @ encoded.vector_ND[0], -1, 1)) / 2
    order = np.argsort(-score_N, kind="stable")[: request.top_n].tolist()
    stamp(response, version)
    tokens = sum(encoded.tokens)
    return RerankResponse(
        id=uuid4().hex,
        results=[
            RerankResult(
                index=i,
                relevance_score=float(score_N[i]),
                document=DocumentText(text=documents[i]) if request.return_documents else None,
            )
            for i in order
        ],
        model=request.model or version.manifest.name,
        usage=Usage(prompt_tokens=tokens, total_tokens=tokens),
    )
