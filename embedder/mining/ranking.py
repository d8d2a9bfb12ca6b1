"""Ranks passages for queries: lexically by BM25, densely by exact inner products. Both are cut and merged alike.

Q queries, P passages of a block, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import bm25s
import numpy as np

from embedder.words import query_words, tokenized

Ranking = list[tuple[str, float]]
"""Passage ids with scores, best first, ties by id."""


class LexicalIndex:
    """BM25 (Lucene's variant, k1 1.5, b 0.75) over the passages of one dataset."""

    def __init__(self, ids: Sequence[str], texts: Sequence[str], stop_words: str | None = None) -> None:
        self.ids = list(ids)
        self.stop_words = stop_words
        self.positions = {passage_id: i for i, passage_id in enumerate(self.ids)}
        tokens = tokenized(texts)
        self._bm25 = bm25s.BM25()
        self._vocabulary: dict[str, int] = {}
        # bm25s cannot index passages without a single word.
        if tokens.vocab:
            self._bm25.index(tokens, show_progress=False)
            self._vocabulary = self._bm25.vocab_dict

    def search(self, queries: Sequence[str], pools: Sequence[list[str] | None], depth: int) -> list[Ranking]:
        """The `depth` best passages of each query; a pool limits them to its ids, and keeps scores of 0."""
        words = [query_words(query, self.stop_words) for query in queries]
        return [self._rank(asked, pool, depth) for asked, pool in zip(words, pools, strict=True)]

    def _rank(self, words: list[str], pool: list[str] | None, depth: int) -> Ranking:
        # bm25s looks every word up, so it gets only those that the passages have.
        known = [word for word in words if word in self._vocabulary]
        scores = self._bm25.get_scores(known) if known else np.zeros(len(self.ids), dtype=np.float32)
        # A query's own passages are candidates even if they share no word with it; those of a whole corpus are not.
        if pool is not None:
            return best([(passage_id, float(scores[self.positions[passage_id]])) for passage_id in pool], depth)
        return best([(self.ids[i], float(scores[i])) for i in top_positions(scores, depth) if scores[i] > 0], depth)


def search_block(
    query_QD: np.ndarray, pools: Sequence[set[str] | None], ids: Sequence[str], passage_PD: np.ndarray, depth: int
) -> list[Ranking]:
    """The `depth` best passages of one block for each query; a pool limits them to its ids."""
    score_QP = query_QD @ passage_PD.T
    positions = {passage_id: i for i, passage_id in enumerate(ids)}
    rankings = []
    for scores, pool in zip(score_QP, pools, strict=True):
        if pool is None:
            top = top_positions(scores, depth)
        else:
            top = [positions[passage_id] for passage_id in pool if passage_id in positions]
        rankings.append(best([(ids[i], float(scores[i])) for i in top], depth))
    return rankings


def merge(left: Ranking, right: Ranking, depth: int) -> Ranking:
    """The `depth` best of the rankings of two blocks; a passage that stands in both counts once."""
    return best(list({**dict(left), **dict(right)}.items()), depth)


def top_positions(scores: np.ndarray, depth: int) -> list[int]:
    """Positions of the `depth` highest scores, and of those equal to the last of them: the caller breaks the tie."""
    if len(scores) <= depth:
        return list(range(len(scores)))
    last = np.partition(scores, len(scores) - depth)[len(scores) - depth]
    return [int(i) for i in np.flatnonzero(scores >= last)]


def best(scored: Ranking, depth: int) -> Ranking:
    """Sort by score, highest first, ties by id, and keep `depth`."""
    # By id, because blocks come in another order in each run, and the ranking must stay the same.
    return sorted(scored, key=lambda entry: (-entry[1], entry[0]))[:depth]
