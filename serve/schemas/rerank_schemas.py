"""Reranking on the wire, in the shapes of Cohere (and Jina), Voyage and TEI.

https://docs.cohere.com/reference/rerank, https://docs.voyageai.com/reference/reranker-api,
https://huggingface.github.io/text-embeddings-inference
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticSerializationError

from embedder.index.sent import ANY, Sent
from serve.schemas.embedding_schemas import Usage
from serve.schemas.strict import Name, Strict, Text, TextOrEmpty


class RankedDocument(Sent):
    """A document to be reranked, with whatever its client keeps beside the text; it comes back with it."""

    model_config = ConfigDict(extra="allow")

    text: TextOrEmpty | None = None
    """What is compared with the query, unless `rank_fields` names other fields."""

    @model_validator(mode="after")
    def can_be_given_back(self) -> RankedDocument:
        """Refuse a lone surrogate in a field of the client's own."""
        try:
            self.model_dump_json()
        except PydanticSerializationError as error:
            raise ValueError("not a valid Unicode text, or nested too deeply") from error
        return self


class RerankRequest(Sent):
    """Body of POST /v1/rerank."""

    # Cohere's and vLLM's: the model reads as much of a text as it was trained for, in one piece.
    PASSED_OVER: ClassVar[Mapping[str, object]] = {
        "max_tokens_per_doc": ANY,
        "max_chunks_per_doc": ANY,
        "priority": ANY,
        "truncate_prompt_tokens": -1,
        "user": ANY,
    }
    MEANT: ClassVar[Mapping[str, str]] = {"texts": "documents", "k": "top_n"}

    model: Name | None = None
    """Null: that of the index that is served by default."""
    query: Text
    documents: Annotated[list[TextOrEmpty | RankedDocument], Field(min_length=1, fail_fast=True)]
    """Texts, or objects with a text; an empty text fits nothing."""
    top_n: Annotated[int, Field(ge=0)] | None = None
    """How many are answered, the best first; null and 0: all."""
    top_k: Annotated[int, Field(ge=0)] | None = None
    """Voyage's name for `top_n`; with it, or `truncation`, the answer is in Voyage's shape too."""
    rank_fields: Annotated[list[Name], Field(max_length=64, fail_fast=True)] | None = None
    """Fields of the documents whose texts are compared with the query, joined by spaces; null: `text`."""
    return_documents: bool = False
    raw_scores: bool = False
    """Scores are those of the reranker, without bounds, or cosines; by default they are brought between 0 and 1."""
    truncation: bool | None = None
    """Whether a text longer than the model reads is cut at its end, as it is by default; else it is refused."""
    task: Name | None = None
    """Task whose instructions the encoder reads before query and documents; the reranker takes its order of turns
    alone. None by default."""


class RerankResult(Strict):
    """A document's position in the request, and how well it fits: from 0 to 1, 1 / (1 + exp(-score)) of the reranker's
    score, or (1 + cosine) / 2 where the index has no reranker."""

    index: int
    relevance_score: float
    document: RankedDocument | None = None
    """As it was sent, if it was asked for; else there is no such field."""


class VoyageResult(Strict):
    """The same in Voyage's shape."""

    index: int
    relevance_score: float
    document: str | None = None


class RerankResponse(Strict):
    """Answer of POST /v1/rerank: the best first, ties by index."""

    id: str
    results: list[RerankResult]
    model: str
    usage: Usage
    object: Literal["list"] | None = None
    data: list[VoyageResult] | None = None
    """The results once more, if the request was Voyage's."""


class TeiRerankRequest(Sent):
    """Body of POST /rerank with `texts`."""

    MEANT: ClassVar[Mapping[str, str]] = {"return_documents": "return_text"}

    query: Text
    texts: Annotated[list[TextOrEmpty], Field(min_length=1, fail_fast=True)]
    raw_scores: bool = False
    """Scores are those of the reranker, without bounds, or cosines; by default they are brought between 0 and 1."""
    return_text: bool = False
    truncate: bool = True
    truncation_direction: Literal["Right", "right"] = "Right"


class TeiRank(Strict):
    """A text's position in the request, and how well it fits."""

    index: int
    score: float
    text: str | None = None
    """If it was asked for; else there is no such field."""
