"""Steps that do not fit into memory: planned, halved, remembered, and otherwise the same training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from embedder.config.train import TrainConfig
from embedder.errors import ConfigError
from embedder.training import step_room
from embedder.training.deepspeed_engine import TrainingEngine
from embedder.training.estimate import ModelShape, activation_bytes, known_chunk_tokens, tokens_that_fit
from embedder.training.job import TrainingJob
from embedder.training.loop import Trainer, train
from tests.unit.test_not_finite import make_training
from tests.unit.tiny_folders import bert_folder

BASE = ModelShape(width=768, layers=12, inner=3072)
ROOM = 250
"""Tokens of a pass beyond which the failing engine finds no memory; a step of the tests has more."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return bert_folder(tmp_path_factory.mktemp("model") / "bert")


class Memory:
    """Lets the engine fail as a GPU's allocator does, once a graph and its passes have more tokens than there is room.

    It fails in the backward pass too, when a part of the gradient is there already.
    """

    def __init__(self, monkeypatch, room=ROOM):
        self.room, self.kept, self.failures = room, 0, 0
        call, backward = TrainingEngine.__call__, TrainingEngine.backward

        def reading(engine, rows):
            self.kept = rows.ids_BL.numel() + (self.kept if torch.is_grad_enabled() else 0)
            if self.kept > 2 * self.room:
                self.fail()
            return call(engine, rows)

        def going_back(engine, loss):
            backward(engine, loss)
            was, self.kept = self.kept, 0
            if was > self.room:
                self.fail()

        monkeypatch.setattr(TrainingEngine, "__call__", reading)
        monkeypatch.setattr(TrainingEngine, "backward", going_back)

    def fail(self):
        self.failures += 1
        self.kept = 0
        raise RuntimeError("CUDA error: out of memory\nand many lines more")


def losses(job: TrainingJob) -> list[float]:
    found = []
    train(job, lambda metrics: found.append(metrics.loss))
    return found


def test_step_room_halves_repeats_and_trains_as_with_memory_enough(tmp_path, model, monkeypatch):
    (tmp_path / "enough").mkdir()
    expected = losses(make_training(tmp_path / "enough", model))
    job = make_training(tmp_path, model)
    memory = Memory(monkeypatch)
    assert losses(job) == pytest.approx(expected, abs=2e-5)
    # Once for the size of a step and once for its half; later steps begin with what fitted.
    assert memory.failures == 2
    most = int(job.short_memory.read_text(encoding="utf-8"))
    assert ROOM / 2 < most <= ROOM
    outcome = job.outcome.read_text(encoding="utf-8")
    assert f"memory was short, so steps were cut to {most} tokens at once" in outcome


def test_step_room_of_a_sharded_training_is_kept_for_the_one_that_resumes(tmp_path, model, monkeypatch):
    job = make_training(tmp_path, model, zero_stage=1)
    memory = Memory(monkeypatch)
    with pytest.raises(torch.OutOfMemoryError, match=r"\d+ tokens .* \(CUDA error: out of memory\); it resumes"):
        losses(job)
    with pytest.raises(torch.OutOfMemoryError):
        losses(job)
    assert len(losses(job)) == 4 and memory.failures == 2


def test_step_room_ends_at_a_single_text(tmp_path, model, monkeypatch):
    Memory(monkeypatch, room=5)
    with pytest.raises(ConfigError, match=r"training: not even \d+ tokens at once fit into memory \(CUDA error"):
        losses(make_training(tmp_path, model))


def test_step_room_passes_other_errors_on(tmp_path, model, monkeypatch):
    trainer = Trainer(make_training(tmp_path, model))
    monkeypatch.setattr(TrainingEngine, "backward", lambda self, loss: (_ for _ in ()).throw(RuntimeError("other")))
    with pytest.raises(RuntimeError, match="other"):
        trainer.step()


def test_step_room_follows_from_the_free_memory_of_a_gpu(tmp_path, model, monkeypatch):
    job = make_training(tmp_path, model, gpus_per_worker=1)
    cpu = TrainingEngine(Trainer(make_training(tmp_path, model))._learner.network, job.config)
    monkeypatch.setattr(step_room, "free_bytes", lambda device: 10**7)
    small = step_room.StepRoom(job, cpu).limits.chunk_tokens
    monkeypatch.setattr(step_room, "free_bytes", lambda device: 10**9)
    large = step_room.StepRoom(job, cpu).limits.chunk_tokens
    assert 64 <= small < large / 50
    job.short_memory.write_text("77", encoding="utf-8")
    assert step_room.StepRoom(job, cpu).limits.chunk_tokens == 77


def test_chunk_tokens_of_a_cpu_are_known_and_those_of_a_gpu_are_its_memorys():
    known = [
        known_chunk_tokens(TrainConfig(steps=1, num_workers=1, **given))
        for given in ({}, {"gpus_per_worker": 1}, {"gpus_per_worker": 1, "chunk_tokens": 100}, {"chunk_tokens": 200})
    ]
    assert known == [65_536, None, 100, 200]


@pytest.mark.parametrize("settings", [{}, {"precision": "bfloat16"}, {"gradient_checkpointing": True}])
@pytest.mark.parametrize("free", [2e9, 20e9, 70e9])
def test_tokens_that_fit_take_three_quarters_of_what_is_free_beside_the_gradient(settings, free):
    config = TrainConfig(steps=1, num_workers=1, **settings)
    tokens = tokens_that_fit(free, 110_000_000, BASE, config, 4096)
    taken = activation_bytes(BASE, config, tokens, 4096)
    assert taken == pytest.approx(0.75 * (free - 4 * 110_000_000), rel=1e-3)


def test_tokens_that_fit_are_never_fewer_than_the_least_chunk_and_leave_room_for_zeros_buffer():
    config = TrainConfig(steps=1, num_workers=1)
    sharded = config.model_copy(update={"zero_stage": 1})
    assert tokens_that_fit(0, 110_000_000, BASE, config, 4096) == 64
    plain, less = (tokens_that_fit(20e9, 110_000_000, BASE, each, 4096) for each in (config, sharded))
    assert np.isclose(plain - less, 0.75 * 2e9 / activation_bytes(BASE, config, 1, 1), rtol=1e-3)
