"""From vectors to the scores of the losses: which candidate counts against which query. Knows no encoder, no workers.

B queries of this worker, M candidates of a group, N candidates of the global batch, D width of the vectors.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Groups(NamedTuple):
    """What is known of the groups of some queries."""

    own_BM: Tensor
    """Columns of the query's own candidates."""
    valid_BM: Tensor
    """False where a group has fewer than M candidates."""
    reward_BM: Tensor
    """Rewards of the own candidates; for the contrastive loss 1 for a known positive, else 0."""
    key_BM: Tensor
    """Hash of each own candidate's text."""


class Columns(NamedTuple):
    """What is known of the candidates of the global batch, in the order of the gathered vectors."""

    key_N: Tensor
    """Hash of each candidate's text, by which equal candidates are found over workers."""
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
    """Rewards of the own candidates; for the contrastive loss 1 for a known positive, else 0."""
    foreign_BN: Tensor
    """True where a column may serve as an in-batch negative: of another group, and not equal in text to an own
    candidate."""


def batch_scores(
    query_BD: Tensor, candidate_ND: Tensor, groups: Groups, columns: Columns, *, temperature: float, in_batch: bool
) -> Scores:
    """Scores of queries against the candidates of the global batch (unit vectors both).

    Without `in_batch` no other group's candidate is a negative.
    """
    is_own_BN = torch.zeros(len(query_BD), len(candidate_ND), dtype=torch.bool, device=query_BD.device)
    is_own_BN.scatter_(1, groups.own_BM, True)
    # A column equal in text to an own candidate is that candidate once more, not a negative.
    same_text_BN = (groups.key_BM.unsqueeze(2) == columns.key_N).any(1)
    foreign_BN = columns.valid_N & ~is_own_BN & ~same_text_BN & in_batch
    score_BN = query_BD @ candidate_ND.T / temperature
    return Scores(score_BN, groups.own_BM, groups.valid_BM, groups.reward_BM, foreign_BN)
