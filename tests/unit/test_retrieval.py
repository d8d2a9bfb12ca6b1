"""Ranking measures worked by hand, what is relevant, and rankings without a model."""

from __future__ import annotations

import math

import pytest

from embedder.evaluation.evaluations import EVALUATIONS
from embedder.evaluation.retrieval import (
    measure,
    measure_names,
    own_examples,
    random_rankings,
    recency_rankings,
    relevant_passages,
    without_itself,
)


def ranking(*ids):
    return [(name, 10.0 - rank) for rank, name in enumerate(ids)]


def grades(*ids):
    return dict.fromkeys(ids, 1)


def test_ranking_measures_worked_by_hand():
    names = ["RR", "R@2", "nDCG@2", "R@3", "nDCG@3"]
    values = measure({"q": ranking("a", "x", "b")}, {"q": grades("a", "b")}, names)
    ideal = 1 + 1 / math.log2(3)
    assert values == {
        "RR": {"q": 1.0},
        "R@2": {"q": 0.5},
        "nDCG@2": {"q": pytest.approx(1 / ideal)},
        "R@3": {"q": 1.0},
        "nDCG@3": {"q": pytest.approx(1.5 / ideal)},
    }


def test_ranking_measures_grades_are_gains():
    values = measure({"q": ranking("a", "b")}, {"q": {"a": 1, "b": 3}}, ["nDCG@2", "R@1"])
    assert values["nDCG@2"]["q"] == pytest.approx((1 + 3 / math.log2(3)) / (3 + 1 / math.log2(3)))
    assert values["R@1"]["q"] == 0.5


def test_ranking_measures_the_reciprocal_rank_is_that_of_the_first_relevant_passage():
    relevant = {"q": grades("b", "c"), "r": grades("z")}
    values = measure({"q": ranking("a", "b", "c"), "r": ranking("w", "x", "y", "z")}, relevant, ["RR"])
    assert values["RR"] == {"q": 0.5, "r": 0.25}


NAMES = ["RR", "R@5", "nDCG@5"]


def test_ranking_measures_a_query_with_nothing_found_counts_zero():
    relevant = dict.fromkeys(("found", "wrong", "empty", "absent"), grades("a"))
    rankings = {"found": ranking("a"), "wrong": ranking("b"), "empty": []}
    values = measure(rankings, relevant, NAMES)
    for name in NAMES:
        assert values[name] == {"found": 1.0, "wrong": 0.0, "empty": 0.0, "absent": 0.0}


def test_ranking_measures_nothing_found_at_all_is_zero_everywhere():
    assert measure({"q": []}, {"q": grades("a")}, NAMES) == {name: {"q": 0.0} for name in NAMES}


def test_ranking_measures_a_query_without_relevant_passages_is_left_out():
    values = measure({"q": ranking("a"), "r": ranking("a"), "s": ranking("a")}, {"q": grades("a"), "r": {}}, NAMES)
    assert values["RR"] == {"q": 1.0}


def test_ranking_measures_equal_scores_are_measured_in_the_order_of_the_ranking():
    tied = [(name, 1.0) for name in "dcba"]
    assert measure({"q": tied}, {"q": grades("d")}, ["RR"])["RR"] == {"q": 1.0}
    assert measure({"q": tied}, {"q": grades("a")}, ["RR"])["RR"] == {"q": 0.25}


def test_ranking_measures_without_queries_there_is_nothing():
    assert measure({}, {}, NAMES) == {"RR": {}, "R@5": {}, "nDCG@5": {}}


def test_measure_names_an_evaluation_has_its_own_cutoff_and_the_general_ones():
    assert measure_names(EVALUATIONS["tool"], [5, 10]) == ["nDCG@5", "R@5", "RR", "R@10", "nDCG@10"]
    assert measure_names(EVALUATIONS["convsearch"], [1])[:2] == ["nDCG@3", "R@3"]


def row(query_id, **fields):
    empty = {"positive_ids": [], "positive_grades": None, "answers": [], "pool_ids": None, "example_ids": []}
    return {"query_id": query_id, **empty, **fields}


def test_relevant_passages_known_positives_are_relevant_with_their_grades():
    rows = [row("q", positive_ids=["a", "b"]), row("r", positive_ids=["a", "c"], positive_grades=[2, 1]), row("s")]
    found = relevant_passages(EVALUATIONS["qa"], rows, {})
    assert found == {"q": {"a": 1, "b": 1}, "r": {"a": 2, "c": 1}}


def test_relevant_passages_worked_examples_with_the_querys_answer_are_relevant_but_not_itself():
    answers = {"own": "yes", "e1": "yes", "e2": "no", "e3": None}
    rows = [row("q", answers=["yes"], example_ids=["own"]), row("e2", answers=["no"])]
    rows += [row("s", answers=["maybe"]), row("t")]
    found = relevant_passages(EVALUATIONS["icl"], rows, answers)
    assert found == {"q": {"e1": 1}, "e2": {"e2": 1}}


def test_without_itself_no_query_finds_itself():
    rankings = {"q": ranking("a", "own", "b"), "r": ranking("a", "own", "b")}
    found = without_itself(rankings, 2, own_examples([row("q", example_ids=["own"]), row("r")]))
    assert [[one for one, _ in found[query]] for query in ("q", "r")] == [["a", "b"], ["a", "own"]]


def test_without_itself_keeps_a_passage_that_has_the_id_of_the_query():
    """A perfect ranking of queries and passages that are both numbered from 0, case 04-id-collision."""
    relevant = {str(i): {str(i): 1} for i in range(4)}
    perfect = {query: ranking(query, *(str(i) for i in range(6) if str(i) != query)) for query in relevant}
    assert measure(without_itself(perfect, 5), relevant, ["R@5"])["R@5"] == dict.fromkeys(relevant, 1.0)


def test_random_rankings_random_passages_are_seeded_by_query_and_drawn_from_its_pool():
    ids = [f"p{i}" for i in range(50)]
    rows = [row("q"), row("r"), row("s", pool_ids=["p1", "p2"])]
    found = random_rankings(rows, ids, 5, seed=0)
    assert random_rankings(rows[::-1], ids, 5, seed=0) == found
    assert random_rankings(rows, ids, 5, seed=1) != found
    drawn = {query: [one for one, _ in entries] for query, entries in found.items()}
    assert [len(set(drawn[query])) for query in "qrs"] == [5, 5, 2]
    assert drawn["q"] != drawn["r"] and set(drawn["s"]) == {"p1", "p2"}


def test_recency_rankings_recency_puts_the_latest_of_a_history_first():
    found = recency_rankings([row("q", pool_ids=["old", "older", "new"]), row("r")], 2)
    assert [one for one, _ in found["q"]] == ["new", "older"]
    assert found["r"] == []
