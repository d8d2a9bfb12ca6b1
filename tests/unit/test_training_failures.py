"""Trainings whose workers are lost: they go on as long as they get on, and end where they fail again and again."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray.train import TrainingFailedError

from embedder.config.run import EncoderConfig
from embedder.config.train import TrainConfig
from embedder.training.job import TrainingJob
from ray_jobs.training import worker


class Failed(TrainingFailedError):
    """What Ray raises when it gives up."""


class Trainings:
    """Ray's trainer, with a step to which each start gets before Ray gives up; none: to the end."""

    def __init__(self, job: TrainingJob, *kept: int | None) -> None:
        self.job, self.kept, self.starts = job, list(kept), 0

    def fit(self) -> None:
        self.starts += 1
        step = self.kept.pop(0)
        if step is not None:
            (self.job.checkpoints / f"step-{step:08d}").mkdir(parents=True, exist_ok=True)
            raise Failed("workers were lost")


@pytest.fixture
def job(tmp_path: Path) -> TrainingJob:
    settings = TrainConfig(steps=100, batch_size=4, max_failures=3)
    return TrainingJob(EncoderConfig(model=str(tmp_path), pooling="mean"), {}, settings, tmp_path / "run")


def test_training_goes_on_as_long_as_each_start_brings_a_checkpoint(job, monkeypatch, capsys) -> None:
    trainings = Trainings(job, 10, 20, 50, None)
    monkeypatch.setattr(worker, "torch_trainer", lambda job: trainings)
    worker.fit(job)
    assert trainings.starts == 4 and job.kept_step == 50
    assert "more than 3 times since step 20; goes on from step 50" in capsys.readouterr().out


def test_training_that_brings_no_new_checkpoint_ends(job, monkeypatch) -> None:
    trainings = Trainings(job, 10, 10, None)
    monkeypatch.setattr(worker, "torch_trainer", lambda job: trainings)
    with pytest.raises(TrainingFailedError):
        worker.fit(job)
    assert trainings.starts == 2


def test_training_that_says_why_it_stopped_is_not_started_again(job, monkeypatch) -> None:
    trainings = Trainings(job, 10, None)
    monkeypatch.setattr(worker, "torch_trainer", lambda job: trainings)
    job.folder.mkdir()
    job.stopped.write_text("ConfigError: no memory for a single text")
    with pytest.raises(TrainingFailedError):
        worker.fit(job)
    assert trainings.starts == 1
