"""The labelling report: its files, its page and its pictures."""

from __future__ import annotations

import io
import json

import pytest
from matplotlib import image

from embedder.labelling.label_report import draw_task, page, write_report
from embedder.labelling.rounding import Rounding
from embedder.reporting.plots import DARK, LIGHT
from tests.unit.labelled_rows import COST, EVIL, GROUPS, counted, evil_rows, statistics_of, unlabelled
from tests.unit.parsed_page import Page


def test_label_page_of_a_task_without_rewards_counts_its_groups():
    statistics = counted([unlabelled(task="tool", reward="none")])
    assert statistics["tool"].shares() == {"groups": 1, "rewarded": 0, "errors": 0}
    text = page(statistics, None, "run")
    assert "unrewarded: 1" in text
    assert "<img" not in text
    assert "text 1" in text


def test_label_report_of_no_rows_is_empty(tmp_path):
    write_report({}, None, tmp_path, "run")
    assert json.loads((tmp_path / "labelling.json").read_text()) == {
        "cost": None,
        "devices": [],
        "rounding": None,
        "tasks": {},
    }
    assert "no labelled groups" in Page.of((tmp_path / "labelling.html").read_text()).text


def test_label_page_has_a_section_a_task_that_its_contents_lead_to():
    rows = [*GROUPS, *(group | {"task": "icl"} for group in GROUPS)]
    parsed = Page.of(page(counted(rows), COST, "first"))
    assert {"#cost", "#tasks", "#task-0", "#task-1"} <= set(parsed.values("href"))
    # Seven groups to read a task, one in which LLM and labels disagree, and one of a candidate as good as a positive.
    assert parsed.tags.count("details") == 18 and "False negatives?" in parsed.text
    for shown in ("Labels of first", "7.5%", "66.7%", "no candidates", "known positive", "2.5", "−0.500"):
        assert shown in parsed.text
    assert all(shown in parsed.text for shown in ("flat by rank", "by likelihood", "by gain"))
    assert parsed.tags.count("img") == parsed.tags.count("picture") == 2


def test_label_report_tells_what_scored_and_what_bfloat16_changed(tmp_path):
    devices, rounding = ["cuda, bfloat16, flex", "cpu, bfloat16, chunked tree"], Rounding(24, 192, 21, 1.0, 0, 0.023)
    path = write_report(counted(GROUPS), COST, tmp_path, "run", devices, rounding)
    shown = Page.of(path.read_text(encoding="utf-8")).text
    assert "; ".join(devices) in shown and "21 of 192 rank rewards differ (10.9%)" in shown
    numbers = json.loads((tmp_path / "labelling.json").read_text())
    assert (numbers["devices"], numbers["rounding"]["differing"]) == (devices, 21)
    assert "not measured" in Page.of(page({}, None, "run", devices, "not measured")).text


def test_label_report_has_tasks_in_order_whatever_comes_first(tmp_path):
    path = write_report(counted([GROUPS[0], GROUPS[0] | {"task": "chat"}]), COST, tmp_path, "run")
    assert list(json.loads((tmp_path / "labelling.json").read_text())["tasks"]) == ["chat", "qa"]
    text = path.read_text(encoding="utf-8")
    assert text.index('href="#task-0">chat') < text.index('href="#task-1">qa')


def test_label_report_replaces_both_files_and_leaves_no_other(tmp_path):
    folder = tmp_path / "reports"
    write_report(counted(GROUPS[:1]), COST, folder, "first")
    path = write_report(counted(GROUPS), None, folder, "second")
    assert path == folder / "labelling.html"
    assert sorted(file.name for file in folder.iterdir()) == ["labelling.html", "labelling.json"]
    assert "Labels of second" in path.read_text(encoding="utf-8")
    numbers = json.loads((folder / "labelling.json").read_text())
    assert (numbers["tasks"]["qa"]["groups"], numbers["cost"]) == (7, None)


def test_label_report_holds_whatever_the_texts_are(tmp_path):
    path = write_report(counted(evil_rows()), COST, tmp_path, EVIL)
    assert "known positive" in Page.of(path.read_text(encoding="utf-8")).text
    assert json.loads((tmp_path / "labelling.json").read_text())["cost"]["pairs"] == 50


def test_label_report_stays_when_a_new_page_fails(tmp_path, monkeypatch):
    path = write_report(counted(GROUPS), None, tmp_path, "first")
    before = path.read_bytes()
    monkeypatch.setattr("embedder.labelling.label_report.draw_task", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(counted(GROUPS), None, tmp_path, "second")
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_draw_task_has_colours_for_light_and_for_dark():
    light, dark = (image.imread(io.BytesIO(draw_task(statistics_of(GROUPS), colors))) for colors in (LIGHT, DARK))
    assert light.shape == dark.shape
    assert light[0, 0, 3] == 0  # a transparent background
    assert light[..., 3].max() == 1
    brightness = [picture[picture[..., 3] == 1][:, :3].mean() for picture in (light, dark)]
    assert brightness[0] < brightness[1]


def test_draw_task_grows_by_a_row_for_a_third_panel():
    two = statistics_of(GROUPS)
    three = statistics_of([*GROUPS, unlabelled(rewards=[0.5, 0.1], row_id="other teacher")])
    shapes = [image.imread(io.BytesIO(draw_task(task, LIGHT))).shape for task in (two, three)]
    assert shapes[1][0] == 2 * shapes[0][0]
    assert shapes[1][1] == shapes[0][1]
