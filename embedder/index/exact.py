"""Exact search by inner product, several queries at a time: a blocked matrix product, then the best pairs scored again.

The product finds candidates; their scores are then computed pair by pair in float64 and rounded to float32. So a score
depends on its two vectors alone, not on the batch, the block or the shard, and equal vectors tie exactly.

Q queries, P passages, B passages of a block, D width, K results.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]

BLOCK_ROWS = 8192
BLOCK_SCORES = 2**18
"""A block's scores fill 1 MiB at most, also for more than 32 queries."""
PAIRS_AT_ONCE = 4096
"""Pairs that are scored again together: 25 MB at 384 dimensions."""
ROUNDING = 2e-6
"""How far a float32 product of unit vectors may be off: a pair this close to the k-th best is scored again."""
GATHER_SHARE = 8
"""Where fewer than one row in 8 is allowed, these are copied together instead of leaving out the others."""


@dataclass(frozen=True)
class Ranked:
    """Rows by query, best first, ties by row; -1 where a query has fewer results."""

    score_QK: Vectors
    row_QK: NDArray[np.int64]


def exact_search(query_QD: Vectors, passage_PD: Vectors, k: int, allowed_P: NDArray[np.bool_] | None = None) -> Ranked:
    """The k best of the allowed passages (all by default)."""
    if allowed_P is not None:
        rows = np.flatnonzero(allowed_P)
        if len(rows) * GATHER_SHARE <= len(passage_PD):
            return rows_search(query_QD, passage_PD, k, rows)
    best = _Best(query_QD, passage_PD, k)
    height = _block_rows(len(query_QD))
    score_QB = np.empty((len(query_QD), height), dtype=np.float32)
    for first in range(0, len(passage_PD), height):
        block_BD = passage_PD[first : first + height]
        scores = np.matmul(query_QD, block_BD.T, out=score_QB[:, : len(block_BD)])
        if allowed_P is not None:
            # Added in place: indexing the allowed columns would copy the block.
            scores += np.where(allowed_P[first : first + height], np.float32(0), np.float32(-np.inf))
        best.add(scores, first)
    return best.ranked()


def _block_rows(num_queries: int) -> int:
    return max(512, min(BLOCK_ROWS, BLOCK_SCORES // max(1, num_queries)))


def rows_search(query_QD: Vectors, passage_PD: Vectors, k: int, rows: NDArray[np.int64]) -> Ranked:
    """The k best of some passages, given by ascending row, which are copied block by block."""
    best = _Best(query_QD, passage_PD, k, rows)
    height = _block_rows(len(query_QD))
    for first in range(0, len(rows), height):
        best.add(query_QD @ passage_PD[rows[first : first + height]].T, first)
    return best.ranked()


def pair_scores(one_PD: Vectors, other_PD: Vectors) -> Vectors:
    """Inner product of each pair of rows, exact to float32."""
    scores: Vectors = np.einsum("pd,pd->p", one_PD, other_PD, dtype=np.float64).astype(np.float32)
    return scores


class _Best:
    """The best pairs of a query and a row so far: at most k of each query, besides those that came in last."""

    def __init__(self, query_QD: Vectors, passage_PD: Vectors, k: int, rows: NDArray[np.int64] | None = None) -> None:
        self.query_QD, self.passage_PD, self.k, self.rows = query_QD, passage_PD, k, rows
        lengths = np.linalg.norm(query_QD, axis=1)
        self.slack_Q = ROUNDING * np.maximum(lengths, 1).astype(np.float32)
        self.floor_Q = np.full(len(query_QD), -np.inf, dtype=np.float32)
        """A pair below it cannot be among the k best."""
        self.query = self.row = np.empty(0, dtype=np.int64)
        self.score = np.empty(0, dtype=np.float32)
        self.waiting: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        self.num_waiting = 0

    def add(self, score_QB: Vectors, first: int) -> None:
        """Take in the scores of a block that begins at row `first`."""
        width = score_QB.shape[1]
        # Only until every query has a floor: afterwards exact scores raise it, and partitioning every block costs time.
        if not np.isfinite(self.floor_Q).all() and width > self.k:
            kth_Q = np.partition(score_QB, width - self.k, axis=1)[:, width - self.k]
            self.floor_Q = np.maximum(self.floor_Q, kth_Q - self.slack_Q)
        # Finite, because rows that are not allowed have the score -inf and must not reach a floor of -inf.
        reached = score_QB >= np.maximum(self.floor_Q, np.finfo(np.float32).min)[:, None]
        query, position = np.divmod(np.flatnonzero(reached), width)
        self.waiting.append((query, position + first))
        self.num_waiting += len(query)
        # Not after each block, because gathering rows pays for many pairs at a time; not only at the end, because
        # waiting pairs take memory and the floor would stay low.
        if self.num_waiting > 4 * self.k * len(self.query_QD):
            self._settle()

    def ranked(self) -> Ranked:
        """The result, after the last block."""
        self._settle()
        score_QK = np.full((len(self.query_QD), self.k), -np.inf, dtype=np.float32)
        row_QK = np.full(score_QK.shape, -1, dtype=np.int64)
        rank = rank_within_query(self.query)
        score_QK[self.query, rank], row_QK[self.query, rank] = self.score, self.row
        if self.rows is not None:
            row_QK[self.query, rank] = self.rows[self.row]
        return Ranked(score_QK, row_QK)

    def _settle(self) -> None:
        """Score the waiting pairs exactly, keep the k best of each query, and raise the floor to the last of them."""
        for query, position in self.waiting:
            for first in range(0, len(query), PAIRS_AT_ONCE):
                self._merge(query[first : first + PAIRS_AT_ONCE], position[first : first + PAIRS_AT_ONCE])
        self.waiting, self.num_waiting = [], 0

    def _merge(self, query: NDArray[np.int64], position: NDArray[np.int64]) -> None:
        rows = position if self.rows is None else self.rows[position]
        # Float32 products differ in the last bits with the shape of the block; pair by pair they do not.
        score = pair_scores(self.query_QD[query], self.passage_PD[rows])
        query, position = np.concatenate([self.query, query]), np.concatenate([self.row, position])
        score = np.concatenate([self.score, score])
        order = np.lexsort((position, -score, query))
        query = query[order]
        rank = rank_within_query(query)
        kept = order[rank < self.k]
        last = rank == self.k - 1
        # Below the k-th exact score by the rounding error, since the next block's scores are float32 products again.
        self.floor_Q[query[last]] = np.maximum(
            self.floor_Q[query[last]], score[order[last]] - self.slack_Q[query[last]]
        )
        self.query, self.row, self.score = query[rank < self.k], position[kept], score[kept]


def rank_within_query(query: NDArray[np.int64] | NDArray[np.int32]) -> NDArray[np.int64]:
    """For sorted query numbers, the rank of each within its query, from 0."""
    return np.arange(len(query)) - np.searchsorted(query, query)
