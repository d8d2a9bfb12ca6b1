"""`llm-embedder doctor` on this machine: what it looks at, and what it finds wrong."""

from __future__ import annotations

import pytest
import yaml

from embedder.cli.findings import WORST, look_around
from embedder.run import machine
from tests.unit.tiny_folders import write_jsonl


@pytest.fixture
def look(tmp_path, tiny_encoder_folder, monkeypatch):
    """The findings of a run that fits this machine but for what is given, by what they are about."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    write_jsonl(tmp_path / "data" / "corpus.jsonl", [{"id": "p", "text": "a passage"}])
    write_jsonl(tmp_path / "data" / "train.jsonl", [{"query": "q", "answers": ["a"]}])
    run = {
        "paths": {"work": str(tmp_path / "work"), "cache": str(tmp_path / "cache")},
        "encoder": {"model": str(tiny_encoder_folder), "pooling": "mean"},
        "prepare": {"sources": [{"task": "qa", "dataset": "d", "path": str(tmp_path / "data")}]},
        "train": {"steps": 4},
    }
    path = tmp_path / "run.yaml"

    def found(*overrides):
        path.write_text(yaml.safe_dump(run), encoding="utf-8")
        return {each.what: each for each in look_around(path, list(overrides), asks_cluster=False)}

    return found


def wrong(found):
    return {what: each.found for what, each in found.items() if each.level == WORST}


def test_doctor_finds_nothing_wrong_with_a_run_that_fits(look):
    found = look()
    assert wrong(found) == {}
    assert {"Python", "packages", "machine", "GPUs", "source d", "encoder.model", "paths.work", "Ray"} <= found.keys()
    assert found["source d"].line() == "ok    source d: its beginning can be used (train)"


def test_doctor_names_what_is_missing_with_its_place(look, tmp_path):
    (tmp_path / "data" / "train.jsonl").write_text('{"question": "q", "answers": ["a"]}\n', encoding="utf-8")
    found = look(f"encoder.model={tmp_path / 'none'}")
    assert f"model folder {tmp_path / 'none'}: no such folder" in wrong(found)["encoder.model"]
    assert "no `query`; the row has `question`, name it `query`" in wrong(found)["source d"]


def test_doctor_tells_of_gpus_that_are_not_there_and_of_those_that_are_not_used(look, monkeypatch):
    monkeypatch.setattr(machine, "gpus", list)
    assert (
        "train.gpus_per_worker is 1, but no machine here has 1 GPU"
        in wrong(look("train.gpus_per_worker=1"))["GPUs of train"]
    )
    monkeypatch.setattr(machine, "gpus", lambda: [machine.Gpu("H100", 80 * 2**30)])
    monkeypatch.setattr(machine, "torch_build", lambda: "2.13.0+cpu")
    assert wrong(look())["GPUs"] == "1, but torch 2.13.0+cpu is a build for CPUs"


def test_doctor_counts_the_weights_of_all_actors_against_the_memory(look, monkeypatch):
    monkeypatch.setattr(machine, "free_memory", lambda: 1000)
    assert wrong(look("encoder.num_actors=3"))["memory for encoder.model"].startswith("3 x weights are ")


def test_doctor_refuses_a_run_file_that_cannot_be_read_and_does_without_one(look, tmp_path):
    assert "did you mean encoder.pooling?" in wrong(look("encoder.poolin=cls"))["run file"]
    assert look_around(tmp_path / "none.yaml", [], asks_cluster=False)[-1].level == "note"


def test_doctor_names_a_distribution_that_brings_a_package_of_our_name(look, tmp_path, monkeypatch):
    info = tmp_path / "site" / "other_server-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-server\nVersion: 1.0\n", encoding="utf-8")
    (info / "top_level.txt").write_text("serve\n", encoding="utf-8")
    assert "package serve" not in look()
    monkeypatch.syspath_prepend(info.parent)
    assert wrong(look())["package serve"].startswith("other-server brings a package of this name")
