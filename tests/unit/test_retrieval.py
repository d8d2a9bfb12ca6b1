"""Ranking measures worked by hand, and the interval of a difference."""

from __future__ import annotations

import math

import pytest

from embedder.evaluation.retrieval import mean, measure, paired_difference


def ranking(*ids):
    return [(name, 10.0 - place) for place, name in enumerate(ids)]


def test_measures_worked_by_hand():
    values = measure({"q": ranking("a", "x", "b")}, {"q": ["a", "b"]}, [2, 3])
    ideal = 1 + 1 / math.log2(3)
    assert values == {
        "RR": {"q": 1.0},
        "R@2": {"q": 0.5},
        "nDCG@2": {"q": pytest.approx(1 / ideal)},
        "R@3": {"q": 1.0},
        "nDCG@3": {"q": pytest.approx(1.5 / ideal)},
    }


def test_the_reciprocal_rank_is_that_of_the_first_relevant_passage():
    relevant = {"q": ["b", "c"], "r": ["z"]}
    values = measure({"q": ranking("a", "b", "c"), "r": ranking("w", "x", "y", "z")}, relevant, [1])
    assert values["RR"] == {"q": 0.5, "r": 0.25}


def test_a_query_with_nothing_found_counts_zero():
    relevant = {"found": ["a"], "wrong": ["a"], "empty": ["a"], "absent": ["a"]}
    rankings = {"found": ranking("a"), "wrong": ranking("b"), "empty": []}
    values = measure(rankings, relevant, [5])
    for name in ("RR", "R@5", "nDCG@5"):
        assert values[name] == {"found": 1.0, "wrong": 0.0, "empty": 0.0, "absent": 0.0}
        assert mean(values[name]) == 0.25


def test_nothing_found_at_all_is_zero_everywhere():
    assert measure({"q": []}, {"q": ["a"]}, [5]) == {"RR": {"q": 0.0}, "R@5": {"q": 0.0}, "nDCG@5": {"q": 0.0}}


def test_a_query_without_relevant_passages_is_left_out():
    values = measure({"q": ranking("a"), "r": ranking("a"), "s": ranking("a")}, {"q": ["a"], "r": []}, [5])
    assert values["RR"] == {"q": 1.0}


def test_equal_scores_are_measured_in_the_order_of_the_ranking():
    tied = [(name, 1.0) for name in "dcba"]
    assert measure({"q": tied}, {"q": ["d"]}, [1])["RR"] == {"q": 1.0}
    assert measure({"q": tied}, {"q": ["a"]}, [1])["RR"] == {"q": 0.25}


def test_without_queries_there_is_no_mean():
    assert mean({}) is None
    assert measure({}, {}, [5]) == {"RR": {}, "R@5": {}, "nDCG@5": {}}


BASE = {f"q{i}": i / 20 for i in range(20)}


def test_a_constant_gain_has_an_interval_of_no_width():
    better = {query: value + 0.25 for query, value in BASE.items()}
    assert paired_difference(better, BASE, seed=0) == pytest.approx((0.25, 0.25, 0.25))
    assert paired_difference(BASE, better, seed=0) == pytest.approx((-0.25, -0.25, -0.25))


def test_an_interval_holds_the_mean_and_is_as_wide_as_theory_says():
    noisy = {query: value + (1 if i % 2 else -0.5) for i, (query, value) in enumerate(BASE.items())}
    middle, low, high = paired_difference(noisy, BASE, seed=0)
    assert middle == pytest.approx(0.25)
    assert low < middle < high
    assert high - low == pytest.approx(2 * 1.96 * 0.75 / math.sqrt(20), rel=0.15)


def test_a_difference_is_over_shared_queries_and_seeded():
    one, other = {"a": 1.0, "b": 0.0, "c": 9.0}, {"a": 0.0, "b": 0.0, "d": 9.0}
    assert paired_difference(one, other, seed=3) == paired_difference(one, other, seed=3)
    assert paired_difference(one, other, seed=3)[0] == 0.5
    assert paired_difference({"a": 1.0}, {"b": 1.0}, seed=0) is None
