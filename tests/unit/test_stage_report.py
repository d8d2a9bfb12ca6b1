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


def test_stage_reports_of_a_new_run_are_none(tmp_path):
    assert read_reports(tmp_path / "reports") == []


def test_stage_names_are_known_once():
    assert len(set(STAGES)) == len(STAGES) == 7


def test_stage_table_shows_rates_and_the_total():
    out = io.StringIO()
    reports = [StageReport("mine", 3000, "groups", 2.0), StageReport("label", 5, "groups", 0.0)]
    Console(file=out, width=100).print(stage_table(reports))
    lines = {line.split()[1]: line.split()[2:] for line in out.getvalue().splitlines() if line.startswith("│")}
    assert [word for word in lines["mine"] if word != "│"] == ["3,000", "groups", "2.0", "1,500.0"]
    assert [word for word in lines["label"] if word != "│"] == ["5", "groups", "0.0", "-"]
    assert "2.0" in lines["total"]


def test_stage_table_in_a_file_is_plain_and_wide_enough(capsys):
    out = console()
    assert not out.is_terminal
    assert out.width == 110
    out.print("x" * 300, markup=False)
    assert capsys.readouterr().out == "x" * 300 + "\n"
