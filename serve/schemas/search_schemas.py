"""Searches on the wire: hits, and a prompt that is ready for the LLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, StringConstraints

from embedder.config.index import SearchParameters
from embedder.data.metadata import without_nulls
from embedder.index.filters import Filter
from embedder.index.search_options import Mode
from embedder.index.sent import Sent
from serve.schemas.index_schemas import Versions
from serve.schemas.strict import Name, Strict, Text, TextOrTexts


class SearchFields(Sent):
    """What every request that searches an index may say."""

    MEANT: ClassVar[Mapping[str, str]] = {
        "limit": "k",
        "top": "k",
        "top_k": "k",
        "top_n": "k",
        "n_results": "k",
        "collection": "index",
        "collection_name": "index",
        "query_filter": "filter",
        "where": "filter",
        "text": "query",
    }

    index: Name | None = None
    """Alias of the index; null: the one that is served by default."""
    k: Annotated[int, Field(ge=1)] = 10
    """Results a query."""
    mode: Mode = "dense"
    """Ranking by vectors, by words (BM25), or both fused."""
    filter: Filter | None = None
    """Conditions on the metadata, in Qdrant's vocabulary."""
    parameters: Annotated[SearchParameters, BeforeValidator(without_nulls)] = SearchParameters()
    """How thoroughly an approximate index is searched."""

    @property
    def shows_payload(self) -> bool:
        """Tell whether text, title and metadata of the hits are needed."""
        return True


class SearchRequest(SearchFields):
    """Body of POST /v1/search."""

    query: TextOrTexts
    task: Name
    """Whose documents are searched, with that task's instruction."""
    with_payload: bool = True
    """True: hits have text, title and metadata too."""

    @property
    def shows_payload(self) -> bool:
        return self.with_payload


class SearchResult(Strict):
    """One hit. Score: inner product of unit vectors; BM25 by words; sum of reciprocal ranks where both are fused."""

    id: str
    dataset: str
    score: float
    text: str | None = None
    title: str | None = None
    metadata: dict[str, Any] | None = None


class ShardCounts(Strict):
    """How many index shards took part; a search that any shard cannot answer fails as a whole."""

    total: int
    successful: int
    failed: int


class Timing(Strict):
    """Milliseconds of an answer by stage."""

    encode: float
    """The query: waiting, tokens, forward pass."""
    search: float
    """The slowest shard, and merging."""
    total: float


class SearchResponse(Versions):
    """Answer of POST /v1/search: results by query, best first, ties by id."""

    results: list[list[SearchResult]]
    shards: ShardCounts
    time_ms: Timing


class RetrieveRequest(SearchFields):
    """Body of POST /v1/retrieve/{task}."""

    query: Text
    k: Annotated[int, Field(ge=1)] = 3
    session: Annotated[str, StringConstraints(min_length=1, max_length=1024)] | None = None
    """Only documents whose metadata field `session` is this: the memory of one conversation."""
    max_characters: Annotated[int, Field(ge=1)] = 8000
    """Of the passages together; what does not fit is left out from the least relevant up, whole passages at a time."""
    delimit: bool = False
    """Put each passage of the prompt between two lines with a mark that is new in every answer, so that no document can
    pretend to be what stands around it."""


class RetrieveResponse(Versions):
    """Answer of POST /v1/retrieve/{task}."""

    prompt: str
    """What the LLM is given: the passages in the task's template, then the query."""
    context: str
    """The part of it before the query."""
    passages: list[SearchResult]
    """The passages in the prompt, best first."""
    left_out: int
    """Hits that did not fit."""
    time_ms: Timing
