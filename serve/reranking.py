"""The order that a reranker gives. N pairs of a query with a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from embedder.config.cutting import prompted_text
from embedder.config.serve import ServeConfig
from embedder.index.results import Hit
from serve.backend import Backend, Encoded, Pair
from serve.http_errors import ApiError
from serve.schemas.search_schemas import SearchFields
from serve.search_limits import check_pairs
from serve.versions.served import Version

FITS_NOTHING = -1000.0
"""Score of an empty text, whatever a model makes of it: so low that its relevance is 0."""


def relevance(score_N: NDArray[np.floating]) -> NDArray[np.float64]:
    """Scores without bounds as numbers from 0 to 1, in the same order, by the logistic function."""
    probability_N: NDArray[np.float64] = np.exp(-np.logaddexp(0, -score_N.astype(np.float64)))
    return probability_N


def best_first(score_N: NDArray[np.floating]) -> list[int]:
    """Positions by score, ties by position."""
    order: list[int] = np.argsort(-score_N, kind="stable").tolist()
    return order


def reranked(hits: Sequence[Hit], score_N: NDArray[np.floating], k: int, offset: int, least: float | None) -> list[Hit]:
    """The hits by the reranker's scores, with their relevance as score: k from a rank on, of at least that score."""
    shown_N = relevance(score_N)
    kept = [replace(hits[i], score=float(shown_N[i])) for i in best_first(score_N)[offset : offset + k]]
    return [hit for hit in kept if least is None or hit.score >= least]


class Reranker:
    """The rerankers of the served versions, within the limits of the service."""

    def __init__(self, settings: ServeConfig, backend: Backend) -> None:
        self._settings, self._backend = settings, backend

    def pairs(self, version: Version, task: str | None, query: str, texts: Sequence[str]) -> list[Pair]:
        """A query with each of some texts; its turns are in the order of a task, if one is named.

        Raises:
            ApiError: the version knows no such task.
        """
        version.check_task(task, "task")
        cut = "end" if task is None else version.manifest.tasks[task].query_cut
        read = prompted_text("", query, cut)
        return [Pair(read, text) for text in texts]

    async def score(self, version: Version, pairs: list[Pair], truncate: bool, param: str, share: int = 1) -> Encoded:
        """The score of each pair, as vectors (N, 1): higher is better, without bounds.

        Raises:
            ApiError: they are too many, or too long together; `param` names what asks for them.
        """
        check_pairs(len(pairs), self._settings, param)
        # Before tokens are made, which takes far longer than to count what they are made of.
        characters, most = sum(map(len, pairs)), self._settings.max_request_characters // share
        if characters > most:
            said = f"{param}: {characters} characters for the reranker, the query with each text; at most {most}"
            raise ApiError(400, said, param=param)
        return await self._backend.encode(version.name, pairs, truncate)

    async def ordered(
        self,
        version: Version,
        task: str,
        fields: SearchFields,
        texts: Sequence[str],
        found: list[list[Hit]],
        share: int,
    ) -> list[list[Hit]]:
        """The hits of each query in its order, cut to what is asked for.

        Raises:
            ApiError: they are too long together.
        """
        pairs = [
            pair
            for text, hits in zip(texts, found, strict=True)
            for pair in self.pairs(version, task, text, [hit.text for hit in hits])
        ]
        if not pairs:
            return found
        scored = await self.score(version, pairs, truncate=True, param="rerank_from", share=share)
        ends = np.cumsum([len(hits) for hits in found])[:-1]
        return [
            reranked(hits, score_N, fields.k, fields.offset, fields.score_threshold)
            for hits, score_N in zip(found, np.split(scored.vector_ND[:, 0], ends), strict=True)
        ]
