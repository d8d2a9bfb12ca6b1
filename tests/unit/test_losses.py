"""The losses and their gradients against loops that follow the formulas, and cases worked by hand."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embedder.training.losses import (
    Scores,
    contrastive,
    graded_distillation,
    kl_distillation,
    margin_mse,
    reference_distillation,
)
from tests.unit.judges import quick


def random_scores(seed: int) -> Scores:
    """Groups with padding and ties, positives at random places, and a random choice of in-batch columns."""
    random = np.random.default_rng(seed)
    queries, size, columns = random.integers(1, 4), random.integers(1, 6), 18
    own = random.choice(columns, (queries, size), replace=False)
    valid = np.arange(size) < random.integers(1, size + 1, (queries, 1))
    rewards = random.choice([-2.0, 0.0, 0.5, 3.0], (queries, size)) * valid
    positive = (random.random((queries, size)) < random.choice([0.0, 0.3, 1.0])) & valid
    foreign = random.random((queries, columns)) < random.choice([0.0, 0.5, 1.0])
    foreign[np.arange(queries)[:, None], own] = False
    score = torch.tensor(random.normal(0, 5, (queries, columns)))
    return Scores(score, *(torch.tensor(array) for array in (own, valid, rewards, positive, foreign)))


def softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in values)
    return [math.exp(value) / total for value in values]


def rows(scores: Scores):
    """Of each query: the valid own scores, their rewards, which are positive, and the scores of in-batch columns."""
    for b in range(len(scores.score_BN)):
        kept = [m for m in range(scores.own_BM.shape[1]) if scores.valid_BM[b, m]]
        own = [float(scores.score_BN[b, scores.own_BM[b, m]]) for m in kept]
        others = [float(s) for s, foreign in zip(scores.score_BN[b], scores.foreign_BN[b], strict=True) if foreign]
        rewards = [float(scores.reward_BM[b, m]) for m in kept]
        yield own, rewards, [bool(scores.positive_BM[b, m]) for m in kept], others


def pull(own, weights, rivals, others) -> float:
    """Each candidate i pulled with its weight, against own candidates j where rivals(i, j), and in-batch ones."""
    total = 0.0
    for i, weight in enumerate(weights):
        against = [own[j] for j in range(len(own)) if rivals(i, j)] + others
        top = math.exp(own[i])
        total -= weight * math.log(top / (top + sum(math.exp(rival) for rival in against)))
    return total


def plain_graded(own, rewards, positives, others, alpha):
    return pull(own, softmax([reward / alpha for reward in rewards]), lambda i, j: rewards[j] < rewards[i], others)


def plain_contrastive(own, rewards, positives, others):
    count = max(1, sum(positives))
    return pull(own, [positive / count for positive in positives], lambda i, j: not positives[j], others)


def plain_kl(own, rewards, positives, others, alpha):
    target, model = softmax([reward / alpha for reward in rewards]), softmax(own)
    return sum(t * math.log(t / m) for t, m in zip(target, model, strict=True))


def plain_margin_mse(own, rewards, positives, others, alpha):
    pairs = [(i, j) for i in range(len(own)) for j in range(i)]
    errors = [((own[i] - own[j]) - (rewards[i] - rewards[j]) / alpha) ** 2 for i, j in pairs]
    return sum(errors) / max(1, len(pairs))


def plain_reference(own, rewards, positives, others):
    chosen = positives.index(True) if any(positives) else rewards.index(max(rewards))
    negatives = [m for m in range(len(own)) if m != chosen and not positives[m]]
    order = [chosen, *sorted(negatives, key=lambda m: (-rewards[m], m))]
    placed = [own[m] for m in order]
    return pull(placed, softmax([rewards[m] for m in order]), lambda i, j: j > i, others)


LOSSES = {
    **{
        f"graded {alpha}": (partial(graded_distillation, reward_temperature=alpha), partial(plain_graded, alpha=alpha))
        for alpha in (0.3, 1.0, 4.0)
    },
    **{
        f"kl {alpha}": (partial(kl_distillation, reward_temperature=alpha), partial(plain_kl, alpha=alpha))
        for alpha in (0.3, 1.0, 4.0)
    },
    "margin_mse 0.3": (partial(margin_mse, reward_temperature=0.3), partial(plain_margin_mse, alpha=0.3)),
    "contrastive": (contrastive, plain_contrastive),
    "reference": (reference_distillation, plain_reference),
}


def plain_losses(plain, scores: Scores) -> list[float]:
    return [plain(own, rewards, positives, others) for own, rewards, positives, others in rows(scores)]


@pytest.mark.parametrize(("loss", "plain"), LOSSES.values(), ids=LOSSES.keys())
@quick
@given(st.integers(0, 10**6))
def test_losses_equal_the_formulas(loss, plain, seed):
    scores = random_scores(seed)
    assert loss(scores).tolist() == pytest.approx(plain_losses(plain, scores), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("loss", "plain"), LOSSES.values(), ids=LOSSES.keys())
@quick
@given(st.integers(0, 10**6))
def test_losses_have_the_slope_of_the_formula_as_gradient(loss, plain, seed):
    scores = random_scores(seed)
    score_BN = scores.score_BN.clone().requires_grad_()
    loss(scores._replace(score_BN=score_BN)).sum().backward()
    step = 1e-5
    for column in range(score_BN.shape[1]):
        nudge = torch.zeros_like(scores.score_BN)
        nudge[:, column] = step
        above, below = (
            plain_losses(plain, scores._replace(score_BN=scores.score_BN + sign * nudge)) for sign in (1, -1)
        )
        slopes = [(one - other) / (2 * step) for one, other in zip(above, below, strict=True)]
        assert score_BN.grad[:, column].tolist() == pytest.approx(slopes, rel=1e-5, abs=1e-6)


def group(own: list[float], rewards: list[float], others: list[float] = (), positives: list[int] = ()) -> Scores:
    """One query with its own candidates first and in-batch columns behind them."""
    size, columns = len(own), len(own) + len(others)
    foreign = torch.arange(columns) >= size
    return Scores(
        torch.tensor([[*own, *others]], dtype=torch.float64),
        torch.arange(size).unsqueeze(0),
        torch.ones(1, size, dtype=torch.bool),
        torch.tensor([rewards], dtype=torch.float64),
        torch.tensor([[m in positives for m in range(size)]]),
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
    ("scores", "gradient"),
    [
        pytest.param(group([0, 0], [99, 0]), [-1 / 2, 1 / 2], id="polarised: the better up, the worse down"),
        pytest.param(group([0, 0], [5, 5], [0]), [-1 / 4, -1 / 4, 1 / 2], id="flat: both up, the batch down"),
        pytest.param(group([0, 0, 0], [1, 1, 0]), [-HALF / 2, -HALF / 2, HALF], id="tied: both up alike"),
        pytest.param(group([7], [3]), [0.0], id="a single candidate is left alone"),
    ],
)
def test_graded_distillation_gradient_worked_by_hand(scores, gradient):
    score = scores.score_BN.requires_grad_()
    graded_distillation(scores, 1.0).backward()
    assert score.grad[0].tolist() == pytest.approx(gradient, abs=1e-9)


@pytest.mark.parametrize(
    ("scores", "loss"),
    [
        pytest.param(group([0, 0, 0], [0] * 3, [], [0]), LN3, id="one positive, two negatives"),
        pytest.param(group([0, 0, 0], [0] * 3, [], [0, 1]), LN2, id="two positives never repel each other"),
        pytest.param(group([0, 0], [0] * 2, [0, 0], [0, 1]), LN3, id="positives against the batch"),
        pytest.param(group([0, 0], [9, 0], [0]), 0.0, id="no positive, no loss, whatever the rewards"),
    ],
)
def test_contrastive_worked_by_hand(scores, loss):
    assert float(contrastive(scores)) == pytest.approx(loss, abs=1e-9)


def test_kl_distillation_worked_by_hand():
    assert float(kl_distillation(group([3, 1], [3, 1]), 1.0)) == pytest.approx(0, abs=1e-9)
    target = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert float(kl_distillation(group([7, 7], [LN3, 0], [9]), 1.0)) == pytest.approx(target, abs=1e-9)


@pytest.mark.parametrize(
    ("scores", "loss"),
    [
        pytest.param(group([9, 4], [3, -2]), 0.0, id="the same margin at another height is no error"),
        pytest.param(group([9, 4], [3, 0]), 4.0, id="a margin of 5 where 3 was wanted"),
        pytest.param(group([0, 0, 0], [0, 1, 3]), (1 + 9 + 4) / 3, id="three pairs"),
        pytest.param(group([5], [-3], [7]), 0.0, id="a single candidate has no margin"),
    ],
)
def test_margin_mse_worked_by_hand(scores, loss):
    assert float(margin_mse(scores, 1.0)) == pytest.approx(loss, abs=1e-9)


def test_margin_mse_takes_the_margin_of_rewards_over_their_temperature():
    assert float(margin_mse(group([9, 4], [10, 0]), 2.0)) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("scores", "loss"),
    [
        pytest.param(group([0, 0], [0, 99], [], [0]), 0.0, id="a better negative stands behind the positive"),
        pytest.param(group([0, 0], [99, 0], [], [0]), LN2, id="polarised as labelled: contrastive"),
        pytest.param(group([0, 0], [5, 5], [], [0]), LN2 / 2, id="the equal one repels"),
        pytest.param(group([0, 0, 0], [7, 7, 7], [], [1]), (LN3 + LN2) / 3, id="two equal negatives repel in turn"),
        pytest.param(group([0, 0], [5, 5], [], [0, 1]), 0.0, id="other positives are not of the group"),
        pytest.param(group([0, 0], [0, 99]), LN2, id="without a positive the best rewarded stands for it"),
        pytest.param(group([0], [1], [0], [0]), LN2, id="the batch stands in every denominator"),
    ],
)
def test_reference_distillation_worked_by_hand(scores, loss):
    assert float(reference_distillation(scores)) == pytest.approx(loss, abs=1e-9)


@quick
@given(st.integers(0, 10**6))
def test_reference_distillation_without_ties_and_with_the_best_as_positive_is_equation_4(seed):
    scores = random_scores(seed)
    size = scores.own_BM.shape[1]
    rewards = torch.rand(scores.own_BM.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    best = rewards.masked_fill(~scores.valid_BM, -1).argmax(1, keepdim=True)
    distinct = scores._replace(reward_BM=3 * rewards, positive_BM=torch.arange(size) == best)
    assert reference_distillation(distinct).tolist() == pytest.approx(graded_distillation(distinct, 1.0).tolist())


def test_losses_are_not_changed_by_padding():
    plain = group([1, -2, 3], [2, 0, -1], [4], [0])
    padded = Scores(
        torch.tensor([[1, -2, 3, 4, 50.0]], dtype=torch.float64),
        torch.tensor([[0, 1, 2, 4]]),
        torch.tensor([[True, True, True, False]]),
        torch.tensor([[2, 0, -1, 9.0]], dtype=torch.float64),
        torch.tensor([[True, False, False, True]]),
        torch.tensor([[False, False, False, True, False]]),
    )
    for loss, _ in LOSSES.values():
        assert loss(padded).tolist() == pytest.approx(loss(plain).tolist(), abs=1e-12)


@pytest.mark.parametrize("loss", [loss for loss, _ in LOSSES.values()], ids=LOSSES.keys())
@pytest.mark.parametrize("in_batch", [True, False])
def test_losses_have_finite_gradients_for_extreme_scores_and_padded_groups(loss, in_batch):
    score = (torch.tensor([[1.0, -1.0, 1.0, -1.0], [-1.0, 1.0, 1.0, 1.0]]) / 0.01).requires_grad_()
    own = torch.tensor([[0, 1], [2, 3]])
    valid = torch.tensor([[True, True], [True, False]])
    foreign = torch.tensor([[False, False, True, False], [True, True, False, False]]) & in_batch
    positive = torch.tensor([[False, True], [True, False]])
    value = loss(Scores(score, own, valid, torch.tensor([[9.0, -9.0], [1.0, 0.0]]), positive, foreign))
    assert value.shape == (2,)
    value.mean().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(score.grad).all()
    assert score.grad[1, 3] == 0


@pytest.mark.parametrize("loss", [loss for loss, _ in LOSSES.values()], ids=LOSSES.keys())
def test_losses_lift_the_better_candidate_in_a_step_down_the_gradient(loss):
    score = torch.zeros(1, 2, requires_grad=True)
    loss(Scores(score, *group([0, 0], [1, 0], positives=[0])[1:])).backward()
    assert score.grad[0, 0] < 0 < score.grad[0, 1]
