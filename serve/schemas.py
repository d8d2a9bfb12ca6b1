"""Requests and answers on the wire: the OpenAI shape for embeddings, one of our own for search.

https://platform.openai.com/docs/api-reference/embeddings/create; `task` and `input_type` are extensions of ours.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Text = Annotated[str, StringConstraints(min_length=1)]


class Strict(BaseModel):
    """Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid")


class EmbeddingRequest(Strict):
    """Body of POST /v1/embeddings."""

    input: (
        Text
        | Annotated[list[Text], Field(min_length=1)]
        | Annotated[list[int], Field(min_length=1)]
        | Annotated[list[list[int]], Field(min_length=1)]
    )
    """One text or a list of texts. Token ids are refused: those of another tokenizer would give plausible garbage."""
    model: str
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    """Only the model's own width."""
    user: str | None = None
    task: str | None = None
    """Whose instruction stands before each text; none by default."""
    input_type: Literal["query", "document"] = "query"
    """Side of the instruction."""


class Embedding(Strict):
    """One vector; with base64 the little-endian float32 bytes."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(Strict):
    """Tokens the model read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(Strict):
    """Answer of POST /v1/embeddings."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class SearchRequest(Strict):
    """Body of POST /v1/search."""

    query: Text | Annotated[list[Text], Field(min_length=1)]
    task: str
    """Whose passages are searched, with that task's instruction."""
    limit: Annotated[int, Field(ge=1)] = 10
    """Results a query."""


class SearchResult(Strict):
    """One found passage; score is the inner product of unit vectors."""

    id: str
    score: float
    text: str
    title: str | None
    dataset: str
    metadata: dict[str, str | float | bool | list[str | float | bool]] = {}


class ShardCounts(Strict):
    """How many index shards took part; a search that any shard cannot answer fails as a whole."""

    total: int
    successful: int
    failed: int


class SearchResponse(Strict):
    """Answer of POST /v1/search: results by query, best first, ties by id."""

    results: list[list[SearchResult]]
    model_version: str
    index_version: str
    shards: ShardCounts
    time_ms: float


class Model(Strict):
    """The served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "llm-embedder"


class ModelList(Strict):
    """Answer of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[Model]


class ErrorDetail(Strict):
    """What is wrong, and where."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(Strict):
    """Body of every answer that is not 200."""

    error: ErrorDetail
