"""What searches may ask for together: results, queries, texts and filters."""

from __future__ import annotations

from collections.abc import Sequence

from embedder.config.serve import ServeConfig
from embedder.index.filters import MAX_ALL_VALUES, MAX_CLAUSES
from serve.http_errors import ApiError
from serve.schemas.search_schemas import SearchFields, SearchRequest


def check_results(fields: SearchFields, most: int) -> None:
    """Refuse more results than a search may have.

    Raises:
        ApiError: it names what makes them so many.
    """
    size = fields.grouping.size if fields.grouping else 1
    if fields.k > most:
        raise ApiError(400, f"k {fields.k}: at most {most}", param="k")
    if fields.k * size > most:
        raise ApiError(400, f"k {fields.k} times group_size {size}: at most {most}", param="group_size")
    if fields.k + fields.offset > most:
        raise ApiError(400, f"offset {fields.offset} and k {fields.k}: at most {most} together", param="offset")
    if (fields.rerank_from or 0) > most:
        raise ApiError(400, f"rerank_from {fields.rerank_from}: at most {most}", param="rerank_from")


def check_queries(searches: Sequence[SearchRequest], settings: ServeConfig) -> None:
    """Refuse more than one search may have, which several share.

    Raises:
        ApiError: their queries, pairs for the reranker, characters or filters are too many.
    """
    if (queries := sum(one.num_queries for one in searches)) > (most := settings.max_queries):
        param = "query" if searches[0].texts else "vector"
        raise ApiError(400, f"{param}: {queries} queries; at most {most}", param=param)
    check_pairs(sum(one.num_queries * (one.rerank_from or 0) for one in searches), settings, "rerank_from")
    characters = sum(len(text) for one in searches for text in one.texts)
    if characters > (longest := settings.max_request_characters):
        raise ApiError(400, f"{characters} characters in one request; at most {longest}; send fewer texts")
    # One filter is bounded as it is read; many of that size would take as many times as long.
    filters = [one.filter for one in searches if one.filter is not None]
    for name, counted, limit in (
        ("clauses", sum(one.clauses for one in filters), MAX_CLAUSES),
        ("values", sum(one.num_values for one in filters), MAX_ALL_VALUES),
    ):
        if counted > limit:
            raise ApiError(400, f"searches: filters with {counted} {name} together; at most {limit}", param="searches")


def check_pairs(pairs: int, settings: ServeConfig, param: str) -> None:
    """Refuse more pairs than the reranker may be asked for at once.

    Raises:
        ApiError: they are too many.
    """
    if pairs > settings.max_pairs:
        raise ApiError(400, f"{param}: {pairs} pairs for the reranker; at most {settings.max_pairs}", param=param)
