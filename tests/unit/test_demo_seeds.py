"""Runs of the demo with several seeds side by side."""

from __future__ import annotations

import json

import pytest

from embedder.demo.seeds import main
from embedder.evaluation.gains import gains
from tests.unit.evaluated import chat, results, tool


@pytest.fixture
def runs(tmp_path):
    """Two runs; in the second one chat has become worse."""
    first = gains(results(tool(), chat()))
    second = json.loads(json.dumps(first))
    second["tasks"]["chat"] |= {"better": False, "difference": {"value": 2.5, "low": 1.0, "high": 4.0}}
    second["tasks_better"] = 1
    for name, found in (("0", first), ("1", second)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps(found), encoding="utf-8")
    return tmp_path


def test_seeds_table_has_each_task_with_the_gain_of_each_run(runs, capsys):
    main([str(runs / "0"), str(runs / "1")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "tasks better: 0: 2 of 2, 1: 1 of 2"
    told = {line.split(":")[0]: line for line in lines}
    assert told["tool"].endswith(", 0 +0.060, 1 +0.060, better in 2 of 2")
    assert told["chat"].endswith(", base 3.40, 0 -1.34, 1 +2.50, better in 1 of 2")


def test_seeds_of_a_run_that_has_not_ended_are_refused_in_one_line(runs, capsys):
    with pytest.raises(SystemExit) as ended:
        main([str(runs / "0"), str(runs / "2")])
    assert ended.value.code == 2
    assert "summary.json: not there; run the pipeline with --set paths.work=" in capsys.readouterr().out
