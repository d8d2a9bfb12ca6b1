"""Searches on the wire: hits, and a prompt that is ready for the LLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from embedder.config.index import SearchParameters
from embedder.data.metadata import without_nulls
from embedder.index.filters import Filter, Key
from embedder.index.results import EVERYTHING, Shown
from embedder.index.search_options import Mode
from embedder.index.sent import Sent
from serve.grouping import Grouping
from serve.schemas.document_schemas import ShownDocument
from serve.schemas.index_schemas import Versions
from serve.schemas.sent_vectors import OneOrMoreVectors, as_vectors
from serve.schemas.strict import Name, Strict, Text, TextOrTexts

MAX_SEARCHES = 64
"""Searches of one request; the limit on its queries may be lower."""


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
        "score_cutoff": "score_threshold",
        "with_vector": "with_vectors",
        "query_vector": "vector",
        "embedding": "vector",
        "skip": "offset",
        "rerank": "rerank_from",
        "reranker": "rerank_from",
    }

    index: Name | None = None
    """Alias of the index; null: the one that is served by default."""
    k: Annotated[int, Field(ge=1)] = 10
    """Results a query."""
    mode: Mode = "dense"
    """Ranking by vectors, by words (BM25), or both fused."""
    filter: Filter | None = None
    """Conditions on the metadata, in Qdrant's vocabulary."""
    offset: Annotated[int, Field(ge=0)] = 0
    """Best hits of a query that are passed over."""
    score_threshold: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """Least score of a hit."""
    rerank_from: Annotated[int, Field(ge=1)] | None = None
    """So many of the best hits are read by the reranker, each with the query, and answered in its order; needs an index
    that has one. Offset, k and score_threshold are of that order, whose scores are from 0 to 1."""
    parameters: Annotated[SearchParameters, BeforeValidator(without_nulls)] = SearchParameters()
    """How thoroughly an approximate index is searched."""

    @model_validator(mode="after")
    def reranks_what_it_answers(self) -> SearchFields:
        """Refuse to answer hits that were not reranked."""
        if self.rerank_from is not None and self.rerank_from < self.k + self.offset:
            raise ValueError(
                f"rerank_from {self.rerank_from} is less than offset {self.offset} and k {self.k} together"
            )
        return self

    @property
    def shown(self) -> Shown:
        """How much of the hits is fetched for the answer."""
        return EVERYTHING

    @property
    def grouping(self) -> Grouping | None:
        """How hits are grouped; None: not at all."""
        return None


class SearchRequest(SearchFields):
    """Body of POST /v1/search."""

    query: TextOrTexts | None = None
    """One text or several; else give `vector`."""
    vector: OneOrMoreVectors | None = None
    """In place of texts: a vector of the width of the index, or several; they are scaled to length 1."""
    task: Name
    """Whose documents are searched, with that task's instruction."""
    with_payload: bool = True
    """True: hits have text, title and metadata too."""
    with_vectors: bool = False
    """True: hits have their vectors too."""
    group_by: Key | None = None
    """Field of the metadata, or `dataset` or `id`: the k best values of it, each with its best hits."""
    group_size: Annotated[int, Field(ge=1)] | None = None
    """Hits of a value; null: one."""

    @model_validator(mode="after")
    def says_one_thing(self) -> SearchRequest:
        """Refuse what would be passed over."""
        if (self.query is None) == (self.vector is None):
            raise ValueError("give exactly one of query, vector")
        if self.vector is not None and self.mode != "dense":
            raise ValueError(f"mode {self.mode} needs the words of a query; with vector the mode is dense")
        if self.rerank_from is not None and (self.vector is not None or self.group_by is not None):
            other = "group_by" if self.vector is None else "vector"
            raise ValueError(f"rerank_from and {other} are given together; the reranker reads query and hit as texts")
        if self.group_by is None:
            if self.group_size is not None:
                raise ValueError("group_size is given without group_by")
        elif self.offset:
            raise ValueError("offset and group_by are given together; take a larger k")
        elif self.num_queries > 1:
            raise ValueError("group_by takes one query; send several to /v1/search/batch")
        return self

    @property
    def num_queries(self) -> int:
        return len(self.texts) or len(self.vectors)

    @property
    def texts(self) -> list[str]:
        """The queries in words."""
        return [self.query] if isinstance(self.query, str) else self.query or []

    @property
    def vectors(self) -> list[list[float]]:
        """The queries that are vectors."""
        return as_vectors(self.vector) if self.vector is not None else []

    @property
    def shown(self) -> Shown:
        # The values by which hits are grouped are a part of the payload, and so are the texts for the reranker.
        is_read = self.group_by is not None or self.rerank_from is not None
        return Shown(payload=self.with_payload or is_read, vectors=self.with_vectors)

    @property
    def grouping(self) -> Grouping | None:
        return None if self.group_by is None else Grouping(self.group_by, self.group_size or 1)


class SearchResult(ShownDocument):
    """One hit. Score: inner product of unit vectors; BM25 by words; sum of reciprocal ranks where both are fused; from
    0 to 1 of the reranker."""

    score: float
    group: str | float | bool | None = None
    """The value of `group_by` for which it stands here."""


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
    rerank: float = 0.0
    """Scores of the reranker, if it was asked for."""
    total: float


class SearchResponse(Versions):
    """Answer of POST /v1/search: results by query, best first, ties by id."""

    results: list[list[SearchResult]]
    shards: ShardCounts
    time_ms: Timing


class BatchRequest(Sent):
    """Body of POST /v1/search/batch."""

    MEANT: ClassVar[Mapping[str, str]] = {"queries": "searches", "requests": "searches", "prefetch": "searches"}

    searches: Annotated[list[SearchRequest], Field(min_length=1, max_length=MAX_SEARCHES, fail_fast=True)]
    """Each with an index, a task, a filter and a k of its own. Queries, texts and filters count together."""


class BatchResponse(Strict):
    """Answer of POST /v1/search/batch: one for each search, in their order."""

    answers: list[SearchResponse]


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
