"""`llm-embedder status` and `index list`: what a run has done, what is missing, what it cost."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from embedder.config.load import load_run
from embedder.data.records import GROUP, write_table
from embedder.errors import ConfigError
from embedder.run.run_status import PAGE, index_versions, read_status
from embedder.run.stage_report import StageReport
from embedder.run.stages import STAGES, Contents, mark_done
from tests.storage import files_end_at
from tests.unit.tiny_folders import write_jsonl


@pytest.fixture
def run_file(tmp_path, tiny_encoder_folder):
    """A run of two rounds whose source has training rows."""
    write_jsonl(tmp_path / "data" / "corpus.jsonl", [{"id": "p", "text": "a passage"}])
    write_jsonl(tmp_path / "data" / "train.jsonl", [{"query": "q", "answers": ["a"]}])
    run = {
        "paths": {"work": str(tmp_path / "work"), "cache": str(tmp_path / "cache")},
        "encoder": {"model": str(tiny_encoder_folder), "pooling": "mean"},
        "prepare": {"sources": [{"task": "qa", "dataset": "d", "path": str(tmp_path / "data")}]},
        "train": {"steps": 40},
        "pipeline": {"rounds": 2},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run), encoding="utf-8")
    return path


def states(run_file, **compares):
    found = read_status(run_file, [], **{"compares": True, **compares})
    return {stage["stage"]: stage["state"] for stage in found.record()["stages"]}


def test_status_of_a_new_run_names_every_stage_of_every_round_and_the_next_command(run_file):
    found = read_status(run_file, [], compares=True)
    rounds = ["mine", "label", "train", "mine, round 2", "label, round 2", "train, round 2"]
    assert found.missing == ["prepare", *rounds, "index, round 2", "evaluate, round 2"]
    assert found.lines(run_file)[-1].endswith(f"next: llm-embedder pipeline --config {run_file}")


def test_status_counts_a_step_that_was_repeated_once(run_file):
    config = load_run(run_file)
    folder = config.paths.training / "name"
    folder.mkdir(parents=True)
    lines = [json.dumps({"step": step}) for step in (0, 1, 2, 1, 2, 3)]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"st', ""]), encoding="utf-8")
    notes = {one["stage"]: one["note"] for one in read_status(run_file, [], compares=True).record()["stages"]}
    assert notes["train"].startswith("4 of 40 steps")


def test_status_tells_what_is_done_what_changed_since_and_what_it_cost(run_file):
    config = load_run(run_file)
    for folder in (config.paths.corpus, config.paths.queries):
        (folder / "file").parent.mkdir(parents=True)
        (folder / "file").write_text("rows", encoding="utf-8")
    used = {"resources": {"seconds": 9.0, "cpu_hours": 0.25, "gpu_hours": 0.5}}
    StageReport("prepare", 7, "source rows", 9.0, details=used).write(config.paths.reports)
    assert states(run_file)["prepare"] == "run by itself"
    mark_done(STAGES["prepare"], config, Contents())
    assert states(run_file)["prepare"] == "done"
    found = read_status(run_file, [], compares=True)
    assert found.lines(run_file)[0] == "cost so far: 9 s; actors held 0.25 CPU-hours and 0.5 GPU-hours"
    assert json.loads(json.dumps(found.record()))["stages"][0]["report"]["rows"] == 7
    (config.paths.corpus / "file").write_text("other rows", encoding="utf-8")
    assert (
        states(run_file)["prepare"] == "changed since" and "prepare" in read_status(run_file, [], compares=True).missing
    )
    assert states(run_file, compares=False)["prepare"] == "done"


def test_status_tells_how_far_a_stage_came_that_was_cut_off(run_file):
    config = load_run(run_file)
    group = {**dict.fromkeys(GROUP.names), "task": "qa", "dataset": "d", "query_id": "q", "query": "q"}
    write_table([group] * 5, GROUP, config.paths.candidates / "d.parquet")
    write_table([group] * 2, GROUP, config.paths.labelled / "blocks" / "one.parquet")
    write_jsonl(config.paths.training / "run" / "metrics.jsonl", [{"step": i} for i in range(12)])
    notes = {each.stage: each.note for each in read_status(run_file, [], compares=True).stages}
    assert notes["label"] == "2 of 5 groups labelled; cut off, and goes on"
    assert notes["train"] == "12 of 40 steps; cut off, and goes on"


def test_page_of_a_run_links_every_report_from_the_folder_it_lies_in(run_file):
    config = load_run(run_file)
    StageReport("prepare", 7, "source rows", 9.0).write(config.paths.reports)
    second = config.paths.model_copy(update={"round": 2})
    reports = [config.paths.reports / "labelling.html", second.reports / "training.html"]
    reports.append(config.paths.work / "evaluation" / "test" / "report.html")
    for report in reports:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text("a report", encoding="utf-8")
    gain = {"measure": "nDCG@10", "lower_is_better": False, "queries": 56, "base": 0.4, "trained": 0.5}
    gain |= {"difference": {"value": 0.1, "low": -0.02, "high": 0.22}, "likelihood": None}
    config.paths.summary.write_text(json.dumps({"tasks": {"qa": gain}}), encoding="utf-8")
    found = read_status(run_file, [], compares=False)
    page = config.paths.reports / PAGE
    assert found.record()["reports"] == [str(path) for path in (page, *reports)]
    text = page.read_text(encoding="utf-8")
    linked = [(page.parent / link).resolve() for link in re.findall(r'<li><a href="([^"]+)"', text)]
    assert linked == reports
    assert "source rows" in text and "+0.100" in text and "Missing: prepare, mine" not in text
    assert "Missing: mine, label" in text


def test_status_of_a_run_where_nothing_can_be_written_is_told_without_a_page(run_file):
    config = load_run(run_file)
    StageReport("prepare", 7, "source rows", 9.0).write(config.paths.reports)
    with files_end_at(0):
        assert read_status(run_file, [], compares=False).pages == []
    assert not (config.paths.reports / PAGE).exists()


def test_status_of_a_run_that_has_done_nothing_writes_nothing(run_file):
    assert read_status(run_file, [], compares=False).pages == []
    assert not load_run(run_file).paths.work.exists()


def test_index_list_without_a_version_names_the_command_that_builds_one(run_file):
    with pytest.raises(ConfigError, match="no versions; build one with `llm-embedder index --config"):
        index_versions(run_file, [])
