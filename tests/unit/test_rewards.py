"""Rewards from log-likelihoods, worked by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.labelling.rewards import (
    desired_rank,
    distinct_samples,
    group_rewards,
    is_flat,
    is_saturated,
    rank_reward,
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


def test_lift_reward_is_what_a_candidate_adds_to_the_score_of_the_desired_output():
    assert group_rewards("lift", [-1.0, -2.0], [[-0.5, -9.0], [-3.0, -0.1]]) == [0.5, -2.0]
    assert group_rewards("lift", [-1.0], []) == []


def test_lift_reward_orders_the_candidates_of_a_group_as_their_likelihoods_do():
    scores = [[-0.5], [-3.0], [-0.6], [-3.0]]
    lift, likelihood = (group_rewards(kind, [-1.25], scores) for kind in ("lift", "likelihood"))
    assert [a - b for a, b in zip(lift, likelihood, strict=True)] == [1.25] * 4


whole = st.lists(st.integers(-20, 0), min_size=4, max_size=4)


@quick
@given(whole, st.lists(whole, min_size=1, max_size=3), st.integers(-30, 30))
def test_rank_reward_does_not_change_with_a_constant_added_to_a_candidates_scores(base, scores, constant):
    shifted = [[score + constant for score in row] for row in scores]
    rewards = group_rewards("rank", base, scores)
    assert group_rewards("rank", base, shifted) == rewards
    assert all(-3 <= reward <= 3 for reward in rewards)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", ["rank", "likelihood", "lift"])
def test_group_rewards_a_score_that_is_no_number_is_refused(kind, bad):
    with pytest.raises(ValueError, match="not finite"):
        group_rewards(kind, [-1.0, bad], [[-1.0, -2.0]])
    with pytest.raises(ValueError, match="not finite"):
        group_rewards(kind, [-1.0, -2.0], [[-1.0, -2.0], [-1.0, bad]])


def test_group_rewards_an_unknown_kind_of_reward_is_refused():
    with pytest.raises(ValueError, match="use rank, likelihood or lift"):
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
