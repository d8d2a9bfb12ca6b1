"""Rewards from log-likelihoods, and their temperature, worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embedder.config.tasks import TaskSpec
from embedder.labelling.rewards import (
    desired_rank,
    distinct_samples,
    group_rewards,
    is_flat,
    is_saturated,
    judged,
    mean_gain,
    median_spread,
    rank_reward,
    rank_then_gain,
    spread,
    task_rewards,
    whole_margins,
)
from tests.unit.judges import quick


@pytest.mark.parametrize(
    ("scores", "rank"),
    [
        pytest.param([-1.0], 1, id="alone"),
        pytest.param([-1.0, -2.0, -3.0], 1, id="first"),
        pytest.param([-2.0, -1.0, -3.0], 2, id="second"),
        pytest.param([-3.0, -1.0, -2.0], 3, id="last"),
        pytest.param([-2.0, -2.0], 1.5, id="one tie"),
        pytest.param([-2.0, -2.0, -2.0, -1.0], 3, id="one above and two ties"),
        pytest.param([-2.0, -2.0, -3.0, -1.0], 2.5, id="one above, one tie, one below"),
    ],
)
def test_desired_rank_counts_those_above_and_half_the_ties(scores, rank):
    assert desired_rank(scores) == rank


@pytest.mark.parametrize(
    ("with_candidate", "reward"),
    [
        pytest.param([-1.0, -2.0, -3.0], 2, id="rises to first"),
        pytest.param([-2.5, -2.0, -3.0], 1, id="rises by one"),
        pytest.param([-2.0, -2.0, -3.0], 1.5, id="rises to a tie"),
        pytest.param([-9.0, -1.0, -2.0], 0, id="stays last although less likely"),
        pytest.param([6.0, 8.0, 7.0], 0, id="a constant added to all changes nothing"),
    ],
)
def test_rank_reward_is_the_gain_in_rank(with_candidate, reward):
    assert rank_reward([-3.0, -1.0, -2.0], with_candidate) == reward


def test_rank_reward_no_candidate_helps_where_the_desired_output_is_first_already():
    assert group_rewards("rank", [-1.0, -2.0, -3.0], [[-1.0, -2.0, -3.0], [-4.0, -2.0, -3.0]]) == [0, -2]


def test_likelihood_reward_is_the_score_of_the_desired_output():
    assert group_rewards("likelihood", [-1.0, -2.0], [[-0.5, -9.0], [-3.0, -0.1]]) == [-0.5, -3.0]


def test_gain_reward_is_what_a_candidate_adds_to_the_score_of_the_desired_output():
    assert group_rewards("gain", [-1.0, -2.0], [[-0.5, -9.0], [-3.0, -0.1]]) == [0.5, -2.0]
    assert group_rewards("gain", [-1.0], []) == group_rewards("gain", [-1.0], [], 0.5) == []


def test_gain_reward_without_a_margin_orders_the_candidates_of_a_group_as_their_likelihoods_do():
    scores = [[-0.5], [-3.0], [-0.6], [-3.0]]
    gain, likelihood = (group_rewards(kind, [-1.25], scores) for kind in ("gain", "likelihood"))
    assert [a - b for a, b in zip(gain, likelihood, strict=True)] == [1.25] * 4


@pytest.mark.parametrize(
    ("gains", "margin", "rewards"),
    [
        pytest.param([0.75, 0.5, -0.25], 0.5, [0.75, 0.75, -0.25], id="nearer than the margin, and two margins away"),
        pytest.param([0.25, -0.25], 0.5, [0.25, -0.25], id="just a margin away"),
        pytest.param([-1.0, -1.25, -1.375], 0.5, [-1.0, -1.0, -1.0], id="all near: flat"),
        pytest.param([0.75, 0.5], 0.0, [0.75, 0.5], id="no margin"),
    ],
)
def test_whole_margins_leave_the_best_and_take_whole_margins_off_the_others(gains, margin, rewards):
    assert whole_margins(gains, margin) == rewards
    assert group_rewards("gain", [-2.0], [[gain - 2.0] for gain in gains], margin) == rewards


eighths = st.integers(-80, 80).map(lambda number: number / 8)


@quick
@given(st.lists(eighths, min_size=1, max_size=6), st.sampled_from([0.25, 0.5, 2.0]), eighths, st.randoms())
def test_whole_margins_are_flat_within_a_margin_and_know_neither_order_nor_a_constant(gains, margin, constant, draw):
    rewards = whole_margins(gains, margin)
    assert is_flat(rewards) == (max(gains) - min(gains) < margin)
    assert all(gain <= reward < gain + margin for gain, reward in zip(gains, rewards, strict=True))
    assert whole_margins([gain + constant for gain in gains], margin) == [reward + constant for reward in rewards]
    assert whole_margins([8 * gain for gain in gains], 8 * margin) == [8 * reward for reward in rewards]
    order = draw.sample(range(len(gains)), len(gains))
    assert whole_margins([gains[i] for i in order], margin) == [rewards[i] for i in order]


def test_rank_then_gain_is_the_rank_and_where_it_is_flat_the_gain():
    base, moved = [-3.0, -1.0, -2.0], [[-3.0, -1.0, -2.0], [-1.5, -1.0, -2.0], [-2.5, -1.0, -2.0]]
    assert group_rewards("rank_then_gain", base, moved) == [0, 1, 0]
    last = [[-3.0, -1.0, -2.0], [-2.5, -1.0, -2.0], [-5.0, -1.0, -2.0]]  # gains 0, 0.5, -2
    assert group_rewards("rank_then_gain", base, last) == [0.8, 1.0, 0.0]
    assert group_rewards("rank_then_gain", base, last, 1.0) == [1.0, 1.0, 0.0]
    assert group_rewards("rank_then_gain", base, last, 3.0) == [0, 0, 0]
    assert rank_then_gain([], []) == []


def test_task_rewards_by_sums_prefer_the_shorter_output():
    """Two rivals as likely a token as the desired output, one of them of twice and one of half its length."""
    task = TaskSpec(query_instruction="", passage_instruction="", reward="rank")
    base, scores, tokens = [-1.5, -1.0, -1.0], [[-1.0, -1.0, -1.0]], [2, 4, 1]
    assert task_rewards(task, base, scores, tokens) == [1.0]  # from third to a tie of all
    summed = task.model_copy(update={"reward_sum": "sum"})
    assert task_rewards(summed, base, scores, tokens) == [0.0]  # sums -3 -4 -1 and -2 -4 -1: second in both
    gain = summed.model_copy(update={"reward": "gain", "reward_margin": 0.0})
    assert task_rewards(gain, base, scores, tokens) == [1.0]
    assert task_rewards(gain, base, [[-1.0, -1.0, -1.0], [-2.0, -1.0, -1.0]], tokens) == [1.0, -1.0]
    with pytest.raises(ValueError, match="numbers of tokens are not known"):
        task_rewards(gain, base, scores, None)


def test_median_spread_is_that_of_the_groups_that_are_not_flat():
    groups = [[0.0, 2.0], [3.0, 3.0], [0.0, 0.0, 3.0, 3.0], [-7.0, 7.0], []]
    assert [spread(group) for group in groups[:4]] == [1.0, 0.0, 1.5, 7.0]
    assert median_spread(groups) == 1.5
    assert median_spread(groups[:3]) == 1.25
    assert median_spread([[3.0, 3.0]]) == median_spread([]) == 1.0


GROUPS = st.lists(st.lists(st.integers(-40, 40), min_size=1, max_size=5), min_size=1, max_size=5)


@quick
@given(GROUPS, st.floats(0.01, 100), st.integers(-50, 50), st.randoms())
def test_median_spread_makes_targets_that_a_scale_does_not_change(groups, scale, constant, draw):
    def targets(rewards):
        alpha = median_spread(rewards)
        return [torch.softmax(torch.tensor(group, dtype=torch.float64) / alpha, 0).tolist() for group in rewards]

    scaled = [[scale * reward + constant for reward in group] for group in groups]
    for found, expected in zip(targets(scaled), targets(groups), strict=True):
        assert found == pytest.approx(expected, abs=1e-6)
    shuffled = [draw.sample(group, len(group)) for group in draw.sample(groups, len(groups))]
    assert median_spread(shuffled) == median_spread(groups)


whole = st.lists(st.integers(-20, 0), min_size=4, max_size=4)


@quick
@given(whole, st.lists(whole, min_size=1, max_size=3), st.integers(-30, 30))
def test_rank_reward_does_not_change_with_a_constant_added_to_a_candidates_scores(base, scores, constant):
    shifted = [[score + constant for score in row] for row in scores]
    rewards = group_rewards("rank", base, scores)
    assert group_rewards("rank", base, shifted) == rewards
    assert all(-3 <= reward <= 3 for reward in rewards)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", ["rank", "likelihood", "gain", "rank_then_gain"])
def test_group_rewards_a_score_that_is_no_number_is_refused(kind, bad):
    with pytest.raises(ValueError, match="not finite"):
        group_rewards(kind, [-1.0, bad], [[-1.0, -2.0]])
    with pytest.raises(ValueError, match="not finite"):
        group_rewards(kind, [-1.0, -2.0], [[-1.0, -2.0], [-1.0, bad]])


def test_group_rewards_an_unknown_kind_of_reward_is_refused():
    with pytest.raises(ValueError, match="use rank, likelihood, gain, rank_then_gain, own_answers or judgement"):
        group_rewards("none", [-1.0], [[-1.0]])


@pytest.mark.parametrize(
    ("rewards", "flat"), [([1.0], True), ([1.0, 1.0], True), ([0.0, 1.0], False), ([2, 1, 2], False)]
)
def test_is_flat_a_group_is_flat_when_all_rewards_are_equal(rewards, flat):
    assert is_flat(rewards) == flat


@pytest.mark.parametrize(
    ("base", "saturated"), [([-1.0], True), ([-1.0, -2.0], True), ([-2.0, -1.0], False), ([-1.0, -1.0], False)]
)
def test_is_saturated_a_group_is_saturated_when_the_desired_output_is_first_already(base, saturated):
    assert is_saturated(base) == saturated


def test_distinct_samples_lose_copies_of_answers_repetitions_and_empty_ones():
    samples = ["Paris.", "London", "", "paris", '"london" ', "the  city", "Lyon", "THE CITY"]
    assert distinct_samples(samples, ["Paris", "Lyons"]) == ["London", "the  city", "Lyon"]


def test_own_answers_are_the_mean_gain_of_all_of_them_in_whole_margins():
    base, scores = [-2.0, -1.0, -2.0], [[-1.0, -1.0, -1.0], [-2.0, -1.1, -2.0], [-2.0, -1.0, -2.0]]
    assert mean_gain(base, scores[0]) == pytest.approx(2 / 3)
    assert group_rewards("own_answers", base, scores) == pytest.approx([2 / 3, -0.1 / 3, 0.0])
    assert group_rewards("own_answers", base, scores, 0.5) == pytest.approx([2 / 3, 2 / 3 - 0.5, 2 / 3 - 0.5])


def test_judgement_is_the_mean_verdict_under_calibrated_probabilities():
    third = math.log(1 / 3)
    assert judged([third] * 3, [third] * 3) == pytest.approx(0.5)
    assert judged([third] * 3, [math.log(0.7), math.log(0.2), math.log(0.1)]) == pytest.approx(0.7 + 0.2 / 2)
    # An LLM that says yes whatever it reads has said nothing, and log-likelihoods far from 0 lose nothing.
    assert judged([-0.1, -3.0, -4.0], [-0.1, -3.0, -4.0]) == pytest.approx(0.5)
    assert judged([-900.0, -901.0, -902.0], [-900.0, -901.0, -952.0]) == pytest.approx(0.75)


def test_judgement_counts_whole_verdicts_however_many_tokens_they_have():
    task = TaskSpec(query_instruction="", passage_instruction="", reward="judgement")
    base, scores = [-1.0, -1.0, -1.0], [[-0.5, -1.0, -1.0]]
    assert task_rewards(task, base, scores, [2, 1, 1]) == pytest.approx([(math.e + 0.5) / (math.e + 2)])
    once = math.exp(0.5)
    assert task_rewards(task, base, scores, [1, 1, 1]) == pytest.approx([(once + 0.5) / (once + 2)])
    with pytest.raises(ValueError, match="numbers of tokens"):
        task_rewards(task, base, scores, None)
