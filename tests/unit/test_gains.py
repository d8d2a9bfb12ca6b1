"""What the training gained: the numbers of `summary.json`, and the table, which fits a log file."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from embedder.config.evaluate import EvaluateConfig
from embedder.evaluation.comparison import summarise
from embedder.evaluation.evaluations import EVALUATIONS
from embedder.evaluation.gains import gains, gains_table, kept_table
from embedder.evaluation.measurements import DatasetValues
from tests.unit.evaluated import RANKINGS, chat, qa, ranked, results, row, tool


def with_control(task):
    """Four queries that `control` ranks as its base does."""
    one = DatasetValues(f"{task}-set", task, EVALUATIONS[task], [row(task, i) for i in range(4)])
    one.enter_rankings({**RANKINGS, "control": ranked({0: 1, 1: 1, 2: 0, 3: 1})}, [5])
    settings = {"retrievers": ["base", "trained", "control"], "resamples": 100}
    return summarise([one], EvaluateConfig.model_validate(settings))


def test_gains_take_the_ranking_measure_of_each_task_and_the_likelihood_beside_it():
    found = gains(results(qa(), tool(), chat()))
    assert {task: gain["measure"] for task, gain in found["tasks"].items()} == {
        "qa": "nDCG@10",
        "chat": "perplexity",
        "tool": "nDCG@5",
    }
    assert found["tasks"]["qa"]["likelihood"]["measure"] == "log-likelihood"
    assert found["tasks"]["tool"]["likelihood"] is None
    assert found["tasks"]["qa"]["base"] < found["tasks"]["qa"]["trained"]


def test_gains_count_a_task_as_better_where_the_perplexity_falls():
    found = gains(results(chat()))
    assert found["tasks"]["chat"]["difference"]["value"] < 0
    assert (found["tasks"]["chat"]["better"], found["tasks_better"]) == (True, 1)


def test_gains_have_no_task_where_nothing_was_trained():
    one = DatasetValues("tool-set", "tool", EVALUATIONS["tool"], [row("tool", 0)])
    one.enter_rankings({"base": ranked({0: 1})}, [5])
    settings = EvaluateConfig.model_validate({"retrievers": ["base"], "resamples": 100})
    assert gains(summarise([one], settings)) == {"split": "test", "baseline": "base", "tasks_better": 0, "tasks": {}}


def test_gains_beyond_the_control_are_those_beyond_the_base_where_both_rank_alike():
    gain = gains(with_control("tool"))["tasks"]["tool"]
    assert gain["llm_share"]["value"] == pytest.approx(gain["difference"]["value"])
    assert gain["llm_share"]["low"] == pytest.approx(gain["difference"]["low"])
    assert gains(results(tool()))["tasks"]["tool"]["llm_share"] is None


def test_gains_table_fits_a_log_file_of_100_columns_with_nothing_cut_off():
    found = gains(with_control("convsearch"))
    found["tasks"]["convsearch"]["likelihood"] = {
        **found["tasks"]["convsearch"],
        "measure": "log-likelihood",
        "queries": 1000,
        "lower_is_better": True,
        "base": 1234.56,
        "trained": 1234.56,
        "difference": {"value": -123.45, "low": -123.45, "high": -123.45},
    }
    out = io.StringIO()
    Console(file=out, width=100, highlight=False, soft_wrap=True).print(gains_table(found))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    assert "…" not in out.getvalue()
    first = next(line for line in lines if line.startswith("convsearch"))
    assert first.split()[:4] == ["convsearch", "nDCG@3", "4", "0.723"]
    assert first.split()[-1] == "better"
    assert "-123.45 [-123.45, -123.45]" in out.getvalue()


def test_gains_are_kept_in_a_file_from_which_the_table_is_made(tmp_path):
    assert kept_table(tmp_path / "summary.json") == []
    found = gains(results(tool()))
    (tmp_path / "summary.json").write_text(json.dumps(found), encoding="utf-8")
    (table,) = kept_table(tmp_path / "summary.json")
    assert table.title == "what the training gained: 1 of 1 tasks are better"
