"""The losses against loops that follow the formulas, and cases worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embedder.training.losses import contrastive, graded_distillation, kl_distillation
from embedder.training.scores import Scores
from tests.unit.judges import quick


def random_scores(seed: int, binary: bool = False) -> Scores:
    """Groups with padding and ties, and a random choice of in-batch columns."""
    random = np.random.default_rng(seed)
    queries, size, columns = random.integers(1, 4), random.integers(1, 6), 20
    own = random.choice(columns, (queries, size), replace=False)
    valid = np.arange(size) < random.integers(1, size + 1, (queries, 1))
    rewards = random.integers(0, 2 if binary else 4, (queries, size)) * valid
    rewards[:, 0] = np.maximum(rewards[:, 0], binary)
    foreign = random.random((queries, columns)) < random.choice([0.0, 0.5, 1.0])
    foreign[np.arange(queries)[:, None], own] = False
    score = torch.tensor(random.normal(0, 5, (queries, columns)))
    tensors = (torch.tensor(array) for array in (own, valid, rewards.astype(float), foreign))
    return Scores(score, *tensors)


def softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in values)
    return [math.exp(value) / total for value in values]


def rows(scores: Scores):
    """Of each query: the valid own scores, their rewards, and the scores of the in-batch columns."""
    for b in range(len(scores.score_BN)):
        kept = [m for m in range(scores.own_BM.shape[1]) if scores.valid_BM[b, m]]
        own = [float(scores.score_BN[b, scores.own_BM[b, m]]) for m in kept]
        others = [float(s) for s, foreign in zip(scores.score_BN[b], scores.foreign_BN[b], strict=True) if foreign]
        yield own, [float(scores.reward_BM[b, m]) for m in kept], others


def attract(own, rewards, others, weights) -> float:
    total = 0.0
    for i, weight in enumerate(weights):
        rivals = [own[j] for j in range(len(own)) if rewards[j] < rewards[i]] + others
        top = math.exp(own[i])
        total -= weight * math.log(top / (top + sum(math.exp(rival) for rival in rivals)))
    return total


def plain_graded(scores: Scores, alpha: float) -> float:
    return np.mean([attract(o, r, others, softmax([x / alpha for x in r])) for o, r, others in rows(scores)])


def plain_contrastive(scores: Scores) -> float:
    return np.mean([attract(o, r, others, [x / sum(r) for x in r]) for o, r, others in rows(scores)])


def plain_kl(scores: Scores, alpha: float) -> float:
    losses = []
    for own, rewards, _ in rows(scores):
        target, model = softmax([x / alpha for x in rewards]), softmax(own)
        losses.append(sum(t * math.log(t / m) for t, m in zip(target, model, strict=True)))
    return np.mean(losses)


@quick
@given(st.integers(0, 10**6), st.sampled_from([0.3, 1.0, 4.0]))
def test_graded_distillation_equals_the_formula(seed, alpha):
    scores = random_scores(seed)
    assert float(graded_distillation(scores, alpha)) == pytest.approx(plain_graded(scores, alpha), abs=1e-6)


@quick
@given(st.integers(0, 10**6))
def test_the_contrastive_loss_equals_the_formula(seed):
    scores = random_scores(seed, binary=True)
    assert float(contrastive(scores)) == pytest.approx(plain_contrastive(scores), abs=1e-6)


@quick
@given(st.integers(0, 10**6), st.sampled_from([0.3, 1.0, 4.0]))
def test_kl_distillation_equals_the_formula(seed, alpha):
    scores = random_scores(seed)
    assert float(kl_distillation(scores, alpha)) == pytest.approx(plain_kl(scores, alpha), abs=1e-6)


def group(own: list[float], rewards: list[float], others: list[float] = ()) -> Scores:
    """One query with its own candidates first and in-batch columns behind them."""
    size, columns = len(own), len(own) + len(others)
    foreign = torch.arange(columns) >= size
    return Scores(
        torch.tensor([[*own, *others]], dtype=torch.float64),
        torch.arange(size).unsqueeze(0),
        torch.ones(1, size, dtype=torch.bool),
        torch.tensor([rewards], dtype=torch.float64),
        foreign.unsqueeze(0),
    )


LN2, LN3 = math.log(2), math.log(3)
HALF = math.e / (2 * math.e + 1)
"""Weight of each of two candidates of reward 1 beside one of reward 0."""


@pytest.mark.parametrize(
    ("scores", "loss"),
    [
        pytest.param(group([0, 0], [99, 0]), LN2, id="polarised rewards are one positive and one negative"),
        pytest.param(group([0, 0], [99, 0], [0]), LN3, id="polarised with one in-batch negative"),
        pytest.param(group([3, -1, 2], [5, 5, 5]), 0.0, id="flat rewards alone teach nothing"),
        pytest.param(group([0, 0], [5, 5], [0]), LN2, id="flat rewards repel in-batch candidates, not each other"),
        pytest.param(group([0, 0, 0], [1, 1, 0]), 2 * HALF * LN2, id="ties never repel each other"),
        pytest.param(group([4], [-3]), 0.0, id="a single candidate has no rival"),
        pytest.param(group([0], [-3], [0, 0]), LN3, id="a single candidate against the batch"),
    ],
)
def test_graded_distillation_worked_by_hand(scores, loss):
    assert float(graded_distillation(scores, 1.0)) == pytest.approx(loss, abs=1e-9)


@pytest.mark.parametrize(
    ("scores", "loss"),
    [
        pytest.param(group([0, 0, 0], [1, 0, 0]), LN3, id="one positive, two negatives"),
        pytest.param(group([0, 0, 0], [1, 1, 0]), LN2, id="two positives never repel each other"),
        pytest.param(group([0, 0], [1, 1], [0, 0]), LN3, id="positives against the batch"),
        pytest.param(group([0, 0], [0, 0], [0]), 0.0, id="no positive, no loss"),
    ],
)
def test_the_contrastive_loss_worked_by_hand(scores, loss):
    assert float(contrastive(scores)) == pytest.approx(loss, abs=1e-9)


def test_kl_distillation_worked_by_hand():
    assert float(kl_distillation(group([3, 1], [3, 1]), 1.0)) == pytest.approx(0, abs=1e-9)
    target = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert float(kl_distillation(group([7, 7], [LN3, 0], [9]), 1.0)) == pytest.approx(target, abs=1e-9)


LOSSES = [lambda s: graded_distillation(s, 0.1), lambda s: kl_distillation(s, 0.1), contrastive]


@pytest.mark.parametrize("loss", LOSSES, ids=["graded", "kl", "contrastive"])
@pytest.mark.parametrize("in_batch", [True, False])
def test_gradients_are_finite_for_extreme_scores_and_padded_groups(loss, in_batch):
    score = (torch.tensor([[1.0, -1.0, 1.0, -1.0], [-1.0, 1.0, 1.0, 1.0]]) / 0.01).requires_grad_()
    own = torch.tensor([[0, 1], [2, 3]])
    valid = torch.tensor([[True, True], [True, False]])
    foreign = torch.tensor([[False, False, True, False], [True, True, False, False]]) & in_batch
    value = loss(Scores(score, own, valid, torch.tensor([[9.0, -9.0], [1.0, 0.0]]), foreign))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(score.grad).all()
    assert score.grad[1, 3] == 0


@pytest.mark.parametrize("loss", LOSSES, ids=["graded", "kl", "contrastive"])
def test_a_step_down_the_gradient_lifts_the_better_candidate(loss):
    score = torch.zeros(1, 2, requires_grad=True)
    loss(Scores(score, *group([0, 0], [1, 0])[1:])).backward()
    assert score.grad[0, 0] < 0 < score.grad[0, 1]
