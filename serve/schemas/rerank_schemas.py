"""Reranking on the wire, in Cohere's shape: https://docs.cohere.com/reference/rerank."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from serve.schemas.embedding_schemas import Usage
from serve.schemas.strict import Name, Strict, Text


class DocumentText(Strict):
    """A document to be reranked, or one that was."""

    text: Text


class RerankRequest(Strict):
    """Body of POST /v1/rerank."""

    model: Name | None = None
    """Null: that of the index that is served by default."""
    query: Text
    documents: Annotated[list[Text | DocumentText], Field(min_length=1, fail_fast=True)]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool = False
    task: Name | None = None
    """Task whose instructions are put before query and documents; none by default."""


class RerankResult(Strict):
    """A document's position in the request, and how well it fits: (1 + cosine) / 2."""

    index: int
    relevance_score: float
    document: DocumentText | None = None


class RerankResponse(Strict):
    """Answer of POST /v1/rerank: the best first, ties by index."""

    id: str
    results: list[RerankResult]
    model: str
    usage: Usage
