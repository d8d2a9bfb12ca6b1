"""The job `train` around a training that this process makes itself: what it writes, and continuing with replay."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from sentence_transformers import SentenceTransformer

from embedder.config.load import load_run
from ray_jobs import train
from ray_jobs.training import worker
from ray_jobs.training.calls import InDriver
from tests.unit.test_training_groups import write_run


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    """The first worker's part, in this process."""
    monkeypatch.setattr(worker.ray.train, "get_context", lambda: SimpleNamespace(get_world_rank=lambda: 0))
    monkeypatch.setattr(train, "OnCluster", InDriver)
    monkeypatch.setattr(worker, "run_workers", lambda job, label: worker.train_worker({"job": job}))


def test_train_job_leaves_model_card_report_and_event_files_and_is_continued_with_replay(tmp_path, tiny_encoder_folder):
    settings = {"tensorboard": True, "validation": {"queries": 2, "every": 2}, "guard": {}}
    path = write_run(tmp_path / "old", tiny_encoder_folder, {"qa", "chat"}, "old: ", **settings)
    config = load_run(path)
    report = train.run(config)
    assert report.rows == 4 and report.lines[-1] == f"report: {config.paths.reports / 'training.html'}"
    card = (config.paths.model / "README.md").read_text(encoding="utf-8")
    assert "| qa |" in card and "NDCG@10 on held-out training queries" in card
    assert "| rank | 0.8165 |" in card and any("reward temperature 0.8165" in line for line in report.lines)
    numbers = json.loads((config.paths.reports / "training.json").read_text(encoding="utf-8"))
    assert numbers["tasks"]["qa"]["reward_temperature"] == pytest.approx((2 / 3) ** 0.5)
    assert numbers["steps"] == 4 and len(numbers["validation"]["history"]) == 3
    assert numbers["guard"] == report.details["outcome"]["guard"]
    assert sum(line.startswith("guard: exported are the weights") for line in report.lines) == 1
    assert "Guard (`train.guard`)" in card
    (events,) = config.paths.training.glob("*/tensorboard/events*")
    assert b"guard/share" in events.read_bytes()
    vectors = SentenceTransformer(str(config.paths.model), device="cpu").encode(["a fox"], prompt_name="qa_query")
    assert vectors.shape == (1, 32)

    replay = {"runs": [{"work": str(tmp_path / "old")}], "share": 0.5}
    again = write_run(tmp_path / "new", config.paths.model, {"tool"}, replay=replay)
    report = train.run(load_run(again))
    assert set(report.details["rows"]) == {"qa", "chat", "tool"}
    assert report.lines[0].startswith("replays 8 of 16 groups")
    lineage = json.loads((tmp_path / "new" / "model" / "lineage.json").read_text(encoding="utf-8"))
    assert lineage["base_encoder"] == str(config.paths.model)


def test_train_job_finished_writes_its_card_and_report_again_without_a_step(tmp_path, tiny_encoder_folder):
    config = load_run(write_run(tmp_path / "run", tiny_encoder_folder, {"qa"}))
    train.run(config)
    card = (config.paths.model / "README.md").read_text(encoding="utf-8")
    before = sorted(path.read_bytes() for path in config.paths.training.glob("*/metrics.jsonl"))
    train.run(config)
    assert (config.paths.model / "README.md").read_text(encoding="utf-8") == card
    assert sorted(path.read_bytes() for path in config.paths.training.glob("*/metrics.jsonl")) == before


def test_train_job_with_a_control_writes_a_second_encoder_once(tmp_path, tiny_encoder_folder):
    path = write_run(tmp_path / "run", tiny_encoder_folder, {"qa"}, learning_rate=1e-3)
    alone = load_run(path)
    train.run(alone)
    trained = (alone.paths.model / "model.safetensors").read_bytes()
    config = load_run(path, ["train.control=true"])
    assert config.paths.control.is_dir() is False
    train.run(config)
    control = (config.paths.control / "model.safetensors").read_bytes()
    assert (config.paths.model / "model.safetensors").read_bytes() == trained != control
    assert SentenceTransformer(str(config.paths.control), device="cpu").prompts["qa_query"]
    steps = [file.read_text(encoding="utf-8") for file in sorted(config.paths.training.glob("*/metrics.jsonl"))]
    assert [text.count("\n") for text in steps] == [4, 4]
    assert train.check(config).lines[-1].startswith("trained before")
    train.run(config)
    assert steps == [file.read_text(encoding="utf-8") for file in sorted(config.paths.training.glob("*/metrics.jsonl"))]
