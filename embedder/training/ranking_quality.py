"""How well scores rank the candidates of one group: the measures of the validation split, as pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def ndcg(scores: Sequence[float], gains: Sequence[float], cutoff: int) -> float:
    """NDCG@cutoff of one ranking; of equal scores the lesser gain comes first, so that one vector for all earns little.

    Gains are 0 and more, and not all equal.
    """
    gain_M = np.asarray(gains, dtype=np.float64)
    order = np.lexsort((gain_M, -np.asarray(scores, dtype=np.float64)))
    discount = 1 / np.log2(np.arange(2, 2 + min(cutoff, len(gain_M))))
    best = np.sort(gain_M)[::-1][:cutoff] @ discount
    return float(gain_M[order][:cutoff] @ discount / best)


def gains_of(positive_M: Sequence[bool], reward_M: Sequence[float]) -> list[float] | None:
    """What each candidate of a group is worth: 1 for a known positive where there are any, else its reward above the
    least; null where all are worth the same."""
    gains = [float(known) for known in positive_M]
    if not any(gains):
        gains = [reward - min(reward_M) for reward in reward_M]
    return gains if min(gains) < max(gains) else None


def pair_agreement(scores: Sequence[float], rewards: Sequence[float]) -> float | None:
    """Share of the pairs of different rewards that the scores order as the rewards do; 0.5 is chance, 1 is best.

    Pairs of equal score count half; null where all rewards are equal.
    """
    first, second = np.triu_indices(len(rewards), k=1)
    wanted = np.sign(np.asarray(rewards)[first] - np.asarray(rewards)[second])
    given = np.sign(np.asarray(scores)[first] - np.asarray(scores)[second])
    counts = wanted != 0
    if not counts.any():
        return None
    return float(((wanted == given)[counts].sum() + 0.5 * (given == 0)[counts].sum()) / counts.sum())
