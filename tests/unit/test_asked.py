"""Which questions are asked: chosen queries, equal prompts once, units that do not depend on what is done."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.config.evaluate import EvaluateConfig
from embedder.evaluation.asked import chosen_queries, plan_units
from embedder.evaluation.evaluations import EVALUATIONS
from embedder.evaluation.measurements import DatasetValues, ask_about
from tests.unit.judges import quick


def row(number, **fields):
    known = {"task": "qa", "dataset": "d", "query_id": f"q{number}", "query": f"question {number}"}
    rest = {"answers": [f"answer {number}"], "options": None, "category": None, "pool_ids": None}
    return {**known, **rest, **fields}


ROWS = [row(number) for number in range(20)]


def settings(**fields):
    return EvaluateConfig.model_validate({"llm_queries": 6, **fields})


def test_chosen_queries_a_seeded_choice_grows_with_its_limit_and_needs_no_order():
    chosen = [one["query_id"] for one in chosen_queries(EVALUATIONS["qa"], ROWS, settings())]
    assert len(chosen) == 6
    assert [one["query_id"] for one in chosen_queries(EVALUATIONS["qa"], ROWS[::-1], settings())] == chosen
    more = [one["query_id"] for one in chosen_queries(EVALUATIONS["qa"], ROWS, settings(llm_queries=9))]
    assert more[:6] == chosen
    other = [one["query_id"] for one in chosen_queries(EVALUATIONS["qa"], ROWS, settings(seed=1))]
    assert other != chosen


def test_chosen_queries_what_has_no_answer_or_no_options_is_not_asked():
    rows = [row(1, answers=[]), row(2), row(3, options=["answer 3", "x"])]
    assert [one["query_id"] for one in chosen_queries(EVALUATIONS["choice"], rows, settings())] == ["q3"]
    assert {one["query_id"] for one in chosen_queries(EVALUATIONS["qa"], rows, settings())} == {"q2", "q3"}


@pytest.mark.parametrize("name", ["tool", "convsearch"])
def test_chosen_queries_rankings_alone_ask_nobody(name):
    assert chosen_queries(EVALUATIONS[name], ROWS, settings()) == []
    assert chosen_queries(EVALUATIONS["qa"], ROWS, settings(llm_queries={"chat": 5})) == []


TEXTS = {f"p{i}": f"passage {i}" for i in range(5)}
RANKINGS = {
    "none": {},
    "one": {"q0": [("p1", 3.0), ("p2", 2.0), ("p3", 1.0)], "q1": [("p1", 1.0)]},
    "two": {"q0": [("p1", 9.0), ("p2", 8.0), ("p4", 7.0)], "q1": [("p4", 1.0)]},
}


def asked_about(rows=ROWS[:2], count=2, rankings=RANKINGS, name="qa"):
    dataset = DatasetValues("d", name, EVALUATIONS[name], rows, rankings=rankings)
    limits = settings(llm_queries={name: 99}, passages={name: count})
    return ask_about([dataset], lambda *_: TEXTS, limits, lambda task, dataset: f"{task} {dataset}")


def test_ask_about_retrievers_that_find_the_same_share_a_question():
    asked = asked_about()
    assert set(asked.ids) == {("d", retriever, query) for retriever in RANKINGS for query in ("q0", "q1")}
    assert asked.ids["d", "one", "q0"] == asked.ids["d", "two", "q0"]
    assert asked.ids["d", "one", "q1"] != asked.ids["d", "two", "q1"]
    assert len(asked.rows) == 5
    texts = [[passage["text"] for passage in one["passages"]] for one in asked.rows.values()]
    assert sorted(texts) == [[], [], ["passage 1"], ["passage 1", "passage 2"], ["passage 4"]]


def test_ask_about_passages_of_a_history_carry_their_position():
    asked = asked_about([row(0, pool_ids=["p3", "p2", "p1"])], 3, {"one": RANKINGS["one"]}, "chat")
    (one,) = asked.rows.values()
    assert [(passage["id"], passage["position"]) for passage in one["passages"]] == [("p1", 2), ("p2", 1), ("p3", 0)]


def planned_ids(units):
    return [[one["row_id"] for one in unit] for unit in units]


def unit_rows(queries, retrievers):
    return [
        {"row_id": f"{dataset}{query:02}{retriever}", "evaluation": "qa", "dataset": dataset, "query_id": f"{query:02}"}
        for dataset in "ab"
        for query in range(queries)
        for retriever in range(retrievers)
    ]


@quick
@given(st.integers(1, 9), st.integers(1, 3), st.integers(1, 4), st.randoms(use_true_random=False))
def test_plan_units_units_hold_everything_once_and_do_not_depend_on_the_order(queries, retrievers, size, random):
    rows = unit_rows(queries, retrievers)
    units = planned_ids(plan_units(rows, size, set()))
    assert sorted(one for unit in units for one in unit) == sorted(one["row_id"] for one in rows)
    for unit in units:
        assert len({one[0] for one in unit}) == 1
        assert len({one[:3] for one in unit}) <= size
    shuffled = random.sample(rows, len(rows))
    assert planned_ids(plan_units(shuffled, size, set())) == units


@quick
@given(st.integers(1, 9), st.integers(1, 4), st.sets(st.integers(0, 9)))
def test_plan_units_what_whole_units_leave_is_asked_in_the_same_units(queries, size, finished):
    """As after a kill: some units are committed, and the others are asked as they would have been."""
    rows = unit_rows(queries, 2)
    units = planned_ids(plan_units(rows, size, set()))
    done = {one for i in finished if i < len(units) for one in units[i]}
    left = planned_ids(plan_units(rows, size, done))
    assert left == [unit for i, unit in enumerate(units) if i not in finished]


def test_plan_units_a_further_retriever_asks_only_what_is_new():
    first = unit_rows(4, 1)
    done = {one["row_id"] for one in first}
    left = planned_ids(plan_units(unit_rows(4, 2), 2, done))
    assert left == [["a001", "a011"], ["a021", "a031"], ["b001", "b011"], ["b021", "b031"]]
