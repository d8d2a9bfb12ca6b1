"""Mined candidates that the LLM finds as good as a known positive: which they are, and that they are counted."""

from __future__ import annotations

import random

import pytest

from embedder.labelling.false_negatives import SHOWN, FalseNegatives, as_good_as_positive


@pytest.mark.parametrize(
    ("rewards", "relevance", "found"),
    [
        ([2.0, 2.0, 3.0, 0.0, 1.0], [1, 0, 0, 0, 0], [1, 2]),
        ([2.0, 0.0, 1.0], [1, 0, 0], []),
        ([1.0, 3.0, 3.0, 0.0, 0.0], [1, 1, 0, 0, 0], [2]),  # as good as the best of two
        ([0.0, 1.0, 2.0], [1, 0, 0], []),  # the positive is the worst: LLM and labels disagree
        ([1.0, 1.0, 1.0], [1, 0, 0], []),  # flat
        ([1.0, 2.0], [0, 0], []),
        ([1.0, 2.0], [1, 1], []),
        ([], [], []),
    ],
)
def test_as_good_candidates_have_the_reward_of_the_best_positive_that_the_llm_approves_of(rewards, relevance, found):
    assert as_good_as_positive(rewards, relevance) == found


def rows_of(count):
    rewards = ([1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0])
    return [{"row_id": f"row-{i}", "rewards": rewards[i % 2], "relevance": [1, 0, 0, 0]} for i in range(count)]


def test_false_negatives_are_counted_and_some_groups_kept_whatever_the_order():
    rows = [*rows_of(40), {"row_id": "none", "rewards": [1.0, 2.0], "relevance": [0, 0]}]
    found, other = FalseNegatives(0), FalseNegatives(0)
    for row in rows:
        found.add(row)
    random.Random(1).shuffle(rows)
    for row in rows:
        other.add(row)
    assert found.numbers() == other.numbers() == {"mined": 120, "as_good": 20, "groups": 20}
    assert found.rows == other.rows and len(found.rows) == SHOWN
    assert (
        found.line == "the LLM finds 20 of 120 mined candidates (17%), in 20 groups, as good as the best known positive"
    )
    assert FalseNegatives(0).line == ""
