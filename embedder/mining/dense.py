"""Dense search by exact inner products, one block of passage vectors at a time, merged as blocks come in.

Q queries, P passages of a block, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from embedder.mining.lexical import Ranking, best, top_positions


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


def merge(one: Ranking, other: Ranking, depth: int) -> Ranking:
    """The `depth` best of the rankings of two blocks; a passage that stands in both counts once."""
    return best(list({**dict(one), **dict(other)}.items()), depth)
