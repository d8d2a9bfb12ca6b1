"""From values to the numbers of the report, and the queries to read."""

from __future__ import annotations

import json
import math

import pytest

from embedder.evaluation.comparison import headline_entries, summarise
from embedder.evaluation.evaluations import EVALUATIONS
from embedder.evaluation.examples import compared, won_and_lost
from embedder.evaluation.measurements import DatasetValues, value_rows
from tests.unit.evaluated import RANKINGS, SETTINGS, TEXTS, chat, qa, results, row, tool

GAIN = 1 / math.log2(3)


def test_summarise_a_ranking_is_summarised_with_intervals_and_differences():
    entry = results(tool())["datasets"]["tool-set"]["measures"]["nDCG@5"]
    assert (entry["kind"], entry["queries"], entry["units"], entry["left_out"]) == ("mean", 4, 4, 0)
    assert set(entry["retrievers"]) == {"bm25", "base", "trained"}
    assert entry["retrievers"]["base"]["value"] == pytest.approx((3 * GAIN + 1) / 4)
    assert entry["retrievers"]["trained"]["value"] == pytest.approx((2 + GAIN + 0.5) / 4)
    assert entry["retrievers"]["bm25"]["value"] == 0
    change = entry["differences"]["trained"]
    assert change["value"] == pytest.approx((2 * (1 - GAIN) - 0.5) / 4)
    assert change["low"] <= change["value"] <= change["high"]
    assert set(entry["differences"]) == {"bm25", "trained"}


def test_summarise_a_perplexity_is_token_weighted_over_the_queries_that_all_retrievers_have():
    one = results(chat())["datasets"]["chat-set"]
    entry = one["measures"]["perplexity"]
    assert (entry["kind"], entry["queries"], entry["left_out"], entry["units"]) == ("perplexity", 3, 1, 2)
    assert (one["errors"], one["units"]) == (1, 2)
    tokens = [10, 30, 40]
    mean = sum(count * (1.0 + number / 10) for count, number in zip(tokens, (0, 2, 3), strict=True)) / sum(tokens)
    assert entry["retrievers"]["base"]["value"] == pytest.approx(math.exp(mean))
    assert entry["differences"]["trained"]["value"] == pytest.approx(math.exp(mean - 0.5) - math.exp(mean))


def test_summarise_the_headline_is_what_the_llm_says_where_it_was_asked():
    found = results(qa(), tool(), chat())
    assert {name: one["headline"] for name, one in found["datasets"].items()} == {
        "qa-set": "exact match",
        "tool-set": "nDCG@5",
        "chat-set": "perplexity",
    }
    silent = DatasetValues("qa-set", "qa", EVALUATIONS["qa"], [row("qa", 0)])
    silent.enter_rankings(RANKINGS, [5])
    assert silent.headline == "nDCG@10"
    assert DatasetValues("x", "lrlm", EVALUATIONS["lrlm"], [row("lrlm", 0)]).headline is None


def test_summarise_a_task_is_the_mean_of_its_datasets():
    other = tool()
    other.name = "other-set"
    other.values = {
        name: {who: dict.fromkeys(found, (1.0, 1.0)) for who, found in values.items()}
        for name, values in other.values.items()
    }
    found = results(tool(), other)
    alone = found["datasets"]["tool-set"]["measures"]["nDCG@5"]["retrievers"]["base"]["value"]
    entry = found["tasks"]["tool"]["measures"]["nDCG@5"]
    assert entry["retrievers"]["base"]["value"] == pytest.approx((alone + 1) / 2)
    assert (entry["datasets"], entry["queries"]) == (2, 8)
    assert headline_entries(found)["tool"][0] == "nDCG@5"


def test_summarise_multiple_choice_is_averaged_apart_from_open_questions():
    options = [row("qa", i, dataset="mmlu", options=[f"answer {i}", "x"], positive_ids=[]) for i in range(2)]
    one = DatasetValues("mmlu", "qa", EVALUATIONS["choice"], options)
    one.values = {"accuracy": {"base": {"q0": (1.0, 1.0), "q1": (0.0, 1.0)}}}
    found = results(qa(), one)
    assert set(found["tasks"]) == {"qa", "choice"}
    assert found["tasks"]["choice"]["measures"]["accuracy"]["retrievers"]["base"]["value"] == 0.5


def test_summarise_without_the_baseline_there_is_no_difference():
    one = tool()
    for values in one.values.values():
        del values["base"]
    entry = results(one)["datasets"]["tool-set"]["measures"]["nDCG@5"]
    assert entry["differences"] == {} and set(entry["retrievers"]) == {"bm25", "trained"}


def test_summarise_results_are_json_and_the_same_every_time():
    first, again = (json.dumps(results(qa(), tool(), chat())) for _ in range(2))
    assert first == again


def test_value_rows_values_of_every_query_are_rows():
    rows = value_rows([qa(), chat()]).to_pylist()
    assert {one["measure"] for one in rows if one["dataset"] == "chat-set"} == {"perplexity"}
    (one,) = (
        one
        for one in rows
        if (one["measure"], one["retriever"], one["query_id"], one["dataset"])
        == ("perplexity", "base", "q2", "chat-set")
    )
    assert (one["value"], one["weight"], one["origin"]) == (pytest.approx(1.2), 30.0, "c1")


def test_summarise_nothing_measured_gives_no_numbers():
    found = results(DatasetValues("x", "lrlm", EVALUATIONS["lrlm"], [row("lrlm", 0)]))
    assert found["datasets"]["x"]["measures"] == {} and headline_entries(found) == {}


def test_won_and_lost_queries_won_and_lost_stand_with_what_was_found():
    examples = won_and_lost(tool(), lambda _: TEXTS, SETTINGS)
    assert (examples["retriever"], examples["measure"]) == ("trained", "nDCG@5")
    assert {one["query_id"] for one in examples["won"]} == {"q0", "q1"}
    assert [one["query_id"] for one in examples["lost"]] == ["q2"]
    sides = examples["lost"][0]["retrievers"]
    assert [passage["id"] for passage in sides["base"]["passages"]] == ["p2", "p0", "p1"]
    assert [passage["relevant"] for passage in sides["trained"]["passages"]] == [False, False, True]
    assert (sides["base"]["value"], sides["base"]["reply"]) == (1.0, None)


def test_won_and_lost_a_perplexity_is_won_where_it_is_lower_and_shown_as_one():
    examples = won_and_lost(chat(), lambda _: TEXTS, SETTINGS)
    assert len(examples["won"]) == 2 and examples["lost"] == []
    number = int(examples["won"][0]["query_id"][1:])
    sides = examples["won"][0]["retrievers"]
    assert sides["trained"]["value"] == pytest.approx(math.exp(0.5 + number / 10))
    assert [len(one["passages"]) for one in sides.values()] == [1, 1]


def test_won_and_lost_what_the_llm_wrote_is_shown_without_control_characters():
    examples = won_and_lost(qa(), lambda _: TEXTS, SETTINGS)
    assert {one["query_id"] for one in examples["won"]} == {"q0", "q2"}
    replies = {name: one["reply"] for name, one in examples["won"][0]["retrievers"].items()}
    assert replies["trained"].startswith("the answer") and "\x00" not in replies["base"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["none", "base", "trained", "bm25"], "trained"),
        (["base", {"name": "mine", "model": "/m"}], "mine"),
        (["base", "bm25"], "bm25"),
        (["none", "base", "random"], None),
    ],
)
def test_compared_retriever_is_the_trained_or_the_last(names, expected):
    settings = SETTINGS.model_validate({"retrievers": names})
    assert compared(settings) == expected
    assert won_and_lost(tool(), lambda _: TEXTS, settings)["retriever"] == expected


def test_won_and_lost_no_examples_are_kept_where_none_are_wanted():
    examples = won_and_lost(tool(), lambda _: TEXTS, SETTINGS.model_copy(update={"examples": 0}))
    assert (examples["won"], examples["lost"]) == ([], [])


def test_summarise_does_not_depend_on_the_order_of_queries():
    one, other = tool(), tool()
    other.rows = other.rows[::-1]
    assert summarise([one], SETTINGS) == summarise([other], SETTINGS)


def test_units_of_a_conversation_and_a_query_of_one_name_are_two():
    """An id is a name within its table, case 04-id-collision."""
    rows = [row("chat", 0, origin="q2"), row("chat", 1, origin="q2"), row("chat", 2), row("chat", 3)]
    one = DatasetValues("chat-set", "chat", EVALUATIONS["chat"], rows)
    assert sorted(one.units(["q0", "q1", "q2", "q3"]).tolist()) == [0, 0, 1, 2]
