"""Losses as pure functions of scores: no encoder, no gathering, no state.

B queries of this worker, M candidates of a group, N candidates of all groups of the global batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from embedder.training.scores import Scores


def graded_distillation(scores: Scores, reward_temperature: float) -> Tensor:
    """Equation 4 of the paper, mean over B.

    Every own candidate is a target, weighted by softmax(reward / reward_temperature). Its denominator holds itself,
    the own candidates of strictly lower reward (ties never repel), and the in-batch candidates.
    """
    weight_BM = torch.softmax(_masked(scores.reward_BM / reward_temperature, scores.valid_BM), dim=-1)
    return _attract(scores, weight_BM)


def contrastive(scores: Scores) -> Tensor:
    """InfoNCE over known positives (reward 1), mean over B; several positives share the weight and never repel."""
    positive_BM = (scores.reward_BM > 0) & scores.valid_BM
    weight_BM = positive_BM / positive_BM.sum(1, keepdim=True).clamp(min=1)
    return _attract(scores, weight_BM)


def kl_distillation(scores: Scores, reward_temperature: float) -> Tensor:
    """KL divergence from softmax(reward / reward_temperature) to softmax(score) within the group, mean over B."""
    own_BM = _masked(scores.score_BN.gather(1, scores.own_BM), scores.valid_BM)
    log_target_BM = torch.log_softmax(_masked(scores.reward_BM / reward_temperature, scores.valid_BM), dim=-1)
    log_model_BM = torch.log_softmax(own_BM, dim=-1)
    term_BM = log_target_BM.exp() * (log_target_BM - log_model_BM)
    return term_BM.masked_fill(~scores.valid_BM, 0.0).sum(1).mean()


def _attract(scores: Scores, weight_BM: Tensor) -> Tensor:
    """- sum_i w_i log exp(s_i) / (exp(s_i) + sum of exp over lower own candidates and in-batch ones), mean over B."""
    own_BM = _masked(scores.score_BN.gather(1, scores.own_BM), scores.valid_BM)
    foreign_B1 = torch.logsumexp(_masked(scores.score_BN, scores.foreign_BN), dim=1, keepdim=True)
    lower_BMM = scores.reward_BM.unsqueeze(1) < scores.reward_BM.unsqueeze(2)
    lower_BMM = lower_BMM & scores.valid_BM.unsqueeze(1)
    rivals_BM = torch.logsumexp(_masked(own_BM.unsqueeze(1).expand_as(lower_BMM), lower_BMM), dim=2)
    denominator_BM = torch.logsumexp(torch.stack([own_BM, rivals_BM, foreign_B1.expand_as(own_BM)]), dim=0)
    term_BM = (weight_BM * (denominator_BM - own_BM)).masked_fill(~scores.valid_BM, 0.0)
    return term_BM.sum(1).mean()


def _masked(values: Tensor, keep: Tensor) -> Tensor:
    """Values outside `keep` become so low that they vanish from a softmax; finite, so that no gradient is NaN."""
    return values.masked_fill(~keep, -1e9)
