"""From vectors to the scores of the losses: which candidate counts against which query. Knows no encoder, no workers.

B queries of this worker, M candidates of a group, N candidates of the global batch, D width of the vectors.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NO_KEY = -1
"""Fills up rows of keys; no key is negative."""


class Groups(NamedTuple):
    """What is known of the groups of some queries."""

    own_BM: Tensor
    """Columns of the query's own candidates."""
    valid_BM: Tensor
    """False where a group has fewer than M candidates."""
    reward_BM: Tensor
    """Rewards of the own candidates; 0 where the task has none."""
    positive_BM: Tensor
    """True for known positives."""
    key_BK: Tensor
    """Keys, as in `Columns`, of the own candidates and of what else is no negative of the query; NO_KEY fills up."""

    def select(self, rows: Tensor) -> Groups:
        """The groups of some of the queries."""
        return Groups(*(value[rows] for value in self))


class Columns(NamedTuple):
    """What is known of the candidates of the global batch, in the order of the gathered vectors."""

    key_N2: Tensor
    """Hashes of a candidate's text and of its id, by which equal candidates are found over workers."""
    valid_N: Tensor
    """False for padding."""


class Scores(NamedTuple):
    """Cosines of a batch divided by the temperature tau, and what is known of each candidate."""

    score_BN: Tensor
    """Every query against every candidate of the global batch."""
    own_BM: Tensor
    """Columns of the query's own candidates."""
    valid_BM: Tensor
    """False where a group has fewer than M candidates."""
    reward_BM: Tensor
    """Rewards of the own candidates."""
    positive_BM: Tensor
    """True for known positives."""
    foreign_BN: Tensor
    """True where a column may serve as an in-batch negative: of another group, and neither in text nor in id equal to
    an own candidate or a known positive."""


def batch_scores(
    query_BD: Tensor, candidate_ND: Tensor, groups: Groups, columns: Columns, *, temperature: float, in_batch: bool
) -> Scores:
    """Scores of queries against the candidates of the global batch (unit vectors both).

    Without `in_batch` no other group's candidate is a negative.
    """
    is_own_BN = torch.zeros(len(query_BD), len(candidate_ND), dtype=torch.bool, device=query_BD.device)
    is_own_BN.scatter_(1, groups.own_BM, True)
    foreign_BN = columns.valid_N & ~is_own_BN & ~_known(groups.key_BK, columns.key_N2) & in_batch
    score_BN = query_BD @ candidate_ND.T / temperature
    return Scores(score_BN, groups.own_BM, groups.valid_BM, groups.reward_BM, groups.positive_BM, foreign_BN)


def _known(key_BK: Tensor, key_N2: Tensor) -> Tensor:
    """Whether a column's text or id is among a query's keys, shape (B, N); takes memory of that order."""
    key_U, place_N2 = key_N2.unique(return_inverse=True)
    place_BK = torch.searchsorted(key_U, key_BK).clamp(max=len(key_U) - 1)
    place_BK = place_BK.where(key_U[place_BK] == key_BK, len(key_U))
    known_BU = torch.zeros(len(key_BK), len(key_U) + 1, dtype=torch.bool, device=key_BK.device)
    known_BU.scatter_(1, place_BK, True)
    return known_BU[:, place_N2[:, 0]] | known_BU[:, place_N2[:, 1]]
