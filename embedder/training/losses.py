"""Losses as pure functions of scores: no encoder, no gathering, no state. Each gives one value a query, shape (B,).

B queries of this worker, M candidates of a group, N candidates of all groups of the global batch. In-batch candidates
are those of `Scores.foreign_BN`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


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


def graded_distillation(scores: Scores, reward_temperature: float) -> Tensor:
    """Equation 4 of the paper.

    Every own candidate is a target, weighted by softmax(reward / reward_temperature). Its denominator holds itself,
    the own candidates of strictly lower reward (ties never repel), and the in-batch candidates.
    """
    weight_BM = torch.softmax(_masked(scores.reward_BM / reward_temperature, scores.valid_BM), dim=-1)
    lower_BMM = scores.reward_BM.unsqueeze(1) < scores.reward_BM.unsqueeze(2)
    return _attract(scores, weight_BM, lower_BMM & scores.valid_BM.unsqueeze(1))


def contrastive(scores: Scores) -> Tensor:
    """InfoNCE over the known positives, which share the weight and never repel each other; 0 where there is none."""
    positive_BM = scores.positive_BM & scores.valid_BM
    # A query without a positive has weight 0 everywhere; clamped, because 0 / 0 would make the whole batch NaN.
    weight_BM = positive_BM.to(scores.score_BN.dtype) / positive_BM.sum(1, keepdim=True).clamp(min=1)
    negative_BM = scores.valid_BM & ~positive_BM
    return _attract(scores, weight_BM, negative_BM.unsqueeze(1).expand(-1, positive_BM.shape[1], -1))


def kl_distillation(scores: Scores, reward_temperature: float) -> Tensor:
    """KL divergence from softmax(reward / reward_temperature) to softmax(score) within the group."""
    return group_kl(_own(scores), scores.reward_BM / reward_temperature, scores.valid_BM)


def group_kl(score_BM: Tensor, target_BM: Tensor, valid_BM: Tensor) -> Tensor:
    """KL divergence from softmax(target) to softmax(score) within each group, in nats."""
    log_target_BM = torch.log_softmax(_masked(target_BM, valid_BM), dim=-1)
    log_model_BM = torch.log_softmax(_masked(score_BM, valid_BM), dim=-1)
    term_BM = log_target_BM.exp() * (log_target_BM - log_model_BM)
    return term_BM.masked_fill(~valid_BM, 0.0).sum(1)


def margin_mse(scores: Scores, reward_temperature: float) -> Tensor:
    """Margin-MSE (arXiv 2010.02666) over all pairs of a group, of which none need be the positive one.

    Mean over pairs i < j of ((s_i - s_j) - (r_i - r_j))^2, with r = reward / reward_temperature; 0 for a single
    candidate. Computed as twice the variance of s - r, which is the same.
    """
    apart_BM = (_own(scores) - scores.reward_BM / reward_temperature).masked_fill(~scores.valid_BM, 0.0)
    count_B1 = scores.valid_BM.sum(1, keepdim=True)
    centred_BM = (apart_BM - apart_BM.sum(1, keepdim=True) / count_B1).masked_fill(~scores.valid_BM, 0.0)
    return 2 * centred_BM.square().sum(1) / (count_B1.squeeze(1) - 1).clamp(min=1)


def reference_distillation(scores: Scores) -> Tensor:
    """The "stable distill" of the released code (FlagEmbedding `research/llm_embedder`), for comparison.

    It departs from equation 4 in four ways. The rewards' softmax has no temperature. The chosen positive (the first
    known one; without one, the first of the highest reward) stands before all negatives, so that a negative of higher
    reward is pushed away from it. The negatives follow by reward, and each repels all after it, equal ones too. Other
    known positives are not of the group.
    """
    positive_BM = scores.positive_BM & scores.valid_BM
    best_BM = scores.reward_BM == _masked(scores.reward_BM, scores.valid_BM).amax(1, keepdim=True)
    eligible_BM = torch.where(positive_BM.any(1, keepdim=True), positive_BM, best_BM & scores.valid_BM)
    first_B1 = eligible_BM.to(torch.int8).argmax(1, keepdim=True)
    chosen_BM = torch.zeros_like(positive_BM).scatter_(1, first_B1, True)
    kept_BM = scores.valid_BM & (chosen_BM | ~positive_BM)
    order_BM = scores.reward_BM.masked_fill(chosen_BM, torch.inf).argsort(dim=1, descending=True, stable=True)
    position_BM = order_BM.argsort(dim=1)
    later_BMM = (position_BM.unsqueeze(1) > position_BM.unsqueeze(2)) & kept_BM.unsqueeze(1)
    weight_BM = torch.softmax(_masked(scores.reward_BM, kept_BM), dim=-1)
    return _attract(scores._replace(valid_BM=kept_BM), weight_BM, later_BMM)


def _attract(scores: Scores, weight_BM: Tensor, rival_BMM: Tensor) -> Tensor:
    """- sum_i w_i log exp(s_i) / (exp(s_i) + sum of exp over i's rivals and the in-batch candidates).

    `rival_BMM`: whether own candidate j (last axis) stands in the denominator of own candidate i.
    """
    # Everything stays in logarithms, because exp(1 / tau) of a cosine at tau = 0.01 has no float32.
    own_BM = _masked(_own(scores), scores.valid_BM)
    foreign_B1 = torch.logsumexp(_masked(scores.score_BN, scores.foreign_BN), dim=1, keepdim=True)
    rivals_BM = torch.logsumexp(_masked(own_BM.unsqueeze(1).expand_as(rival_BMM), rival_BMM), dim=2)
    denominator_BM = torch.logsumexp(torch.stack([own_BM, rivals_BM, foreign_B1.expand_as(own_BM)]), dim=0)
    term_BM = (weight_BM * (denominator_BM - own_BM)).masked_fill(~scores.valid_BM, 0.0)
    return term_BM.sum(1)


def _own(scores: Scores) -> Tensor:
    """Scores of the own candidates, shape (B, M)."""
    return scores.score_BN.gather(1, scores.own_BM)


def _masked(values: Tensor, keep: Tensor) -> Tensor:
    """Values outside `keep` become so low that they vanish from a softmax; finite, so that no gradient is NaN."""
    return values.masked_fill(~keep, -1e9)
