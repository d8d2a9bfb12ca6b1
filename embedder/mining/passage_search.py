"""Dense search over passages that pass by: the best of each query, and the scores of pairs that are named.

Q queries, P passages of a block, D width, N pairs, K results.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedder.index.exact import PAIRS_AT_ONCE, Vectors, pair_scores
from embedder.mining.device_search import DeviceSearch
from embedder.mining.ranking import Found, Ranking, best


@dataclass(frozen=True)
class NamedPairs:
    """Pairs of a query and a passage whose scores are wanted whatever their rank."""

    query_N: NDArray[np.int64]
    id_N: pa.Array

    def unscored(self) -> Vectors:
        """A score for each pair, not known yet."""
        return np.full(len(self.query_N), np.nan, dtype=np.float32)


def joined_scores(parts: Sequence[Vectors]) -> Vectors:
    """The scores of the same pairs from several shares of the passages; NaN where none of them has the passage."""
    return reduce(np.fmax, parts)


class PassageSearch:
    """Searches passages that pass by: the best of each free query, and the scores of named pairs.

    `ids` are those of the passages to come, ascending and distinct; a passage is told by its place among them.
    """

    def __init__(
        self,
        query_QD: Vectors,
        is_free_Q: NDArray[np.bool_],
        pairs: NamedPairs,
        ids: pa.Array,
        depth: int,
        device: torch.device,
    ) -> None:
        self.query_QD, self.is_free_Q, self.pairs, self.ids, self.depth = query_QD, is_free_Q, pairs, ids, depth
        self._search = DeviceSearch(query_QD[is_free_Q], depth, device) if is_free_Q.any() else None
        place = pc.fill_null(pc.index_in(pairs.id_N, ids), -1).to_numpy(zero_copy_only=False)
        self._pair_N = np.argsort(place, kind="stable")
        self._place_N = place[self._pair_N]
        self._score_N = pairs.unscored()

    def add(self, vector_PD: Tensor, number_P: Tensor) -> None:
        """Take in passages (float32) with their places (int64) among the ids."""
        if self._search is not None:
            self._search.add(vector_PD, number_P)
        numbers = number_P.numpy()
        first, last = (np.searchsorted(self._place_N, numbers, side) for side in ("left", "right"))
        count = last - first
        row = np.repeat(np.arange(len(numbers)), count)
        # The pairs of each passage follow one another.
        pair = self._pair_N[np.arange(len(row)) + np.repeat(first - np.cumsum(count) + count, count)]
        for begin in range(0, len(pair), PAIRS_AT_ONCE):
            own, rows = pair[begin : begin + PAIRS_AT_ONCE], row[begin : begin + PAIRS_AT_ONCE]
            self._score_N[own] = pair_scores(self.query_QD[self.pairs.query_N[own]], vector_PD.numpy()[rows])

    def found(self) -> tuple[Found, Vectors]:
        """The best passages of all queries, none of those that are not free, and the scores of the pairs."""
        score_QK = np.full((len(self.query_QD), self.depth), -np.inf, dtype=np.float32)
        row_QK = np.full(score_QK.shape, -1, dtype=np.int64)
        if self._search is not None:
            ranked = self._search.ranked()
            score_QK[self.is_free_Q], row_QK[self.is_free_Q] = ranked.score_QK, ranked.row_QK
        return Found(score_QK, row_QK, self.ids).compact(), self._score_N


def search_on_device(
    query_QD: Vectors,
    pools: Sequence[set[str] | None],
    ids: Sequence[str],
    passage_PD: Vectors,
    depth: int,
    device: torch.device,
) -> list[Ranking]:
    """The `depth` best passages of each query, of passages that fit into memory; a pool limits them to its ids."""
    ordered = sorted(ids)
    numbers = {passage_id: number for number, passage_id in enumerate(ordered)}
    named = [(row, passage_id) for row, pool in enumerate(pools) for passage_id in sorted(pool or ())]
    pairs = NamedPairs(
        np.array([row for row, _ in named], dtype=np.int64), pa.array([name for _, name in named], pa.string())
    )
    is_free_Q = np.array([pool is None for pool in pools], dtype=bool)
    search = PassageSearch(query_QD, is_free_Q, pairs, pa.array(ordered, pa.string()), depth, device)
    search.add(torch.from_numpy(passage_PD), torch.tensor([numbers[passage_id] for passage_id in ids]))
    found, score_N = search.found()
    rankings = found.rankings()
    of_pools: dict[int, Ranking] = {row: [] for row in np.flatnonzero(~is_free_Q).tolist()}
    for (row, passage_id), score in zip(named, score_N.tolist(), strict=True):
        if not math.isnan(score):
            of_pools[row].append((passage_id, score))
    return [best(of_pools[row], depth) if row in of_pools else ranking for row, ranking in enumerate(rankings)]
