"""Summaries of stages and the closing table."""

from __future__ import annotations

import io

from rich.console import Console

from embedder.console import console
from embedder.run.stage_report import STAGES, StageReport, read_reports, stage_table


def test_stage_reports_are_read_in_the_order_of_the_pipeline(tmp_path):
    reports = [
        StageReport("label", 7, "groups", 2.0, ["one line"], {"errors": 1}),
        StageReport("prepare", 3, "rows"),
    ]
    for report in reports:
        report.write(tmp_path / "reports")
    assert read_reports(tmp_path / "reports") == reports[::-1]


def test_stage_report_of_a_repeat_keeps_time_and_cost_of_the_run_that_did_the_work(tmp_path):
    cost = {"cost": {"pairs": 448}, "estimate": {"flops": 1.0}, "resources": {"seconds": 250.0}}
    StageReport("label", 60, "groups", 251.5, details={**cost, "labelled_before": 0}).write(tmp_path)
    again = StageReport("label", 60, "groups", 0.4, details={"resources": {"seconds": 0.4}, "labelled_before": 60})
    again.keep_cost(tmp_path)
    assert again.seconds == 0.4
    again.repeats = True
    again.keep_cost(tmp_path)
    assert (again.seconds, again.details) == (251.5, {**cost, "labelled_before": 60})
    assert again.lines == ["all was done before: the report keeps the 251.5 s and the cost of that run"]
    first = StageReport("train", 4, "steps", 2.0, repeats=True)
    first.keep_cost(tmp_path)
    assert first.seconds == 2.0 and first.lines == []


def test_stage_reports_of_a_new_run_are_none(tmp_path):
    assert read_reports(tmp_path / "reports") == []


def test_stage_names_are_known_once():
    assert len(set(STAGES)) == len(STAGES) == 8


def test_stage_table_shows_rates_and_the_total():
    out = io.StringIO()
    reports = [StageReport("mine", 3000, "groups", 2.0), StageReport("label", 5, "groups", 0.0)]
    Console(file=out, width=100).print(stage_table(reports))
    lines = {line.split()[1]: line.split()[2:] for line in out.getvalue().splitlines() if line.startswith("│")}
    assert [word for word in lines["mine"] if word != "│"] == ["3,000", "groups", "2.0", "1,500.0"]
    assert [word for word in lines["label"] if word != "│"] == ["5", "groups", "0.0", "-"]
    assert "2.0" in lines["total"]


def test_stage_table_in_a_file_is_plain_and_breaks_no_line(capsys):
    out = console()
    assert not out.is_terminal
    out.print("x" * 300, markup=False)
    assert capsys.readouterr().out == "x" * 300 + "\n"
