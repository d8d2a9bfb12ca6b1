"""Numbers that are NaN or infinite: where they arise in training and encoding, and that nothing is made of them."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from embedder.config.run import EncoderConfig
from embedder.config.tasks import BUILTIN_TASKS
from embedder.config.train import TrainConfig
from embedder.errors import ConfigError, NotFiniteError
from embedder.labelling.label_statistics import LabelCost, share_of_peak
from embedder.models.encoder import load_encoder
from embedder.storage.json_file import write_json
from embedder.training.checkpoint import last_step, read_checkpoint
from embedder.training.deepspeed_engine import TrainingEngine
from embedder.training.finite import first_damaged
from embedder.training.job import TrainingJob, append_metrics
from embedder.training.loop import Trainer, train
from embedder.training.row_files import write_training_rows
from ray_jobs.retrieval.vectors import vector_table
from ray_jobs.training import worker
from tests.unit.test_reranker import make_job, planted
from tests.unit.tiny_folders import bert_folder
from tests.unit.training_ranks import Run, on_workers

HUGE = 1e30


def labelled(count=8, rewards=(3.0, 1.0, 0.0, 2.0)):
    names = ("fox", "dog", "list", "city")
    common = {"task": "qa", "dataset": "d", "error": None, "answers": ["x"], "candidate_ids": list("abcd")}
    return [
        common
        | {"query_id": str(number), "query": f"where is fox {number}?", "relevance": [1, 0, 0, 0]}
        | {"candidate_texts": [f"the {name} {number}" for name in names], "rewards": list(rewards)}
        for number in range(count)
    ]


def make_training(folder, model, rows=None, **settings):
    given = {"steps": 4, "batch_size": 4, "num_workers": 1, **settings}
    encoder = EncoderConfig(model=str(model), pooling="mean", max_tokens=40, batch_tokens=512)
    job = TrainingJob(encoder, BUILTIN_TASKS, TrainConfig(**given), folder / "run")
    job.folder.mkdir(exist_ok=True)
    write_training_rows(labelled() if rows is None else rows, BUILTIN_TASKS, job.rows, {})
    return job


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return bert_folder(tmp_path_factory.mktemp("bert") / "b", initializer_range=0.4)


def test_training_stops_at_the_first_loss_that_is_not_finite(tmp_path, model):
    """case 31-nan-loss"""
    job = make_training(tmp_path, model, learning_rate=HUGE, save_every=1)
    with pytest.raises(NotFiniteError, match=r"step \d: the loss is not finite; tasks qa, queries d/\d, ") as stopped:
        train(job, lambda metrics: append_metrics(job.metrics, metrics))
    assert "\n" not in str(stopped.value) and "train.learning_rate" in str(stopped.value)
    assert not job.exported.exists()
    for line in job.metrics.read_text(encoding="utf-8").splitlines():
        assert json.loads(line, parse_constant=pytest.fail)["step"] >= 0


def test_training_goes_on_from_the_checkpoint_before_with_a_lower_rate(tmp_path, model):
    job = make_training(tmp_path, model, learning_rate=1e-4, save_every=2)
    trainer = Trainer(job)
    trainer.step()
    trainer.step()
    trainer.save()
    broken = replace(job, config=job.config.model_copy(update={"learning_rate": HUGE}))
    with pytest.raises(NotFiniteError):
        train(broken, lambda metrics: None)
    step = last_step(job.checkpoints)
    checkpoint = read_checkpoint(job.checkpoints, step)
    assert first_damaged({**checkpoint.weights, **checkpoint.moments}) is None
    if step > 2:
        shutil.rmtree(job.checkpoints / f"step-{step:08d}")
    train(job, lambda metrics: None)
    assert first_damaged(load_file(job.exported / "model.safetensors")) is None


def test_training_does_not_export_weights_too_large_to_encode_with(tmp_path, model):
    job = make_training(tmp_path, model, steps=1, warmup_share=0, learning_rate=HUGE)
    with pytest.raises(NotFiniteError, match="step 1: an output of the trained network is not finite"):
        train(job, lambda metrics: None)
    assert not job.exported.exists()


def test_training_keeps_no_weights_that_are_no_numbers(tmp_path, model, monkeypatch):
    job = make_training(tmp_path, model, learning_rate=1e-5, save_every=1)
    monkeypatch.setattr(TrainingEngine, "weights", lambda self: {"layer": torch.tensor([1.0, torch.nan])})
    with pytest.raises(NotFiniteError, match=r"step 1: a weight \(layer\) is not finite; tasks qa, queries d/"):
        train(job, lambda metrics: None)
    assert last_step(job.checkpoints) is None and not job.exported.exists()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_training_engine_tells_a_gradient_that_is_not_finite(model, stage):
    network = load_encoder(EncoderConfig(model=str(model), pooling="mean", max_tokens=40), device="cpu")
    network.backbone.pooler.requires_grad_(False)
    engine = TrainingEngine(network, TrainConfig(steps=1, num_workers=1, zero_stage=stage))
    rows = network.padded(network.tokenize(["the fox", "a dog"]), [0, 1])
    engine.backward(engine(rows)[:, 0].sum())
    assert 0 < engine.update(1e-4) < 1e6
    engine.backward((engine(rows) * torch.tensor(float("inf"))).sum())
    assert not np.isfinite(engine.update(1e-4))


def test_training_stops_at_a_gradient_that_is_not_finite(tmp_path, model, monkeypatch):
    job = make_training(tmp_path, model, learning_rate=1e-5)
    monkeypatch.setattr(TrainingEngine, "update", lambda self, rate: float("inf"))
    with pytest.raises(NotFiniteError, match=r"step 1: the norm of the gradient is not finite; tasks qa, queries d/"):
        train(job, lambda metrics: None)


def test_training_refuses_to_measure_an_encoder_that_gives_no_numbers(tmp_path, model, monkeypatch):
    job = make_training(tmp_path, model, validation={"queries": 2})
    write_training_rows(labelled(2), BUILTIN_TASKS, job.held_out, {})
    monkeypatch.setattr(TrainingEngine, "__call__", lambda self, rows: torch.full((len(rows.indices), 32), torch.nan))
    with pytest.raises(NotFiniteError, match=r"8 scores of held-out candidates are not finite after 0 steps"):
        train(job, lambda metrics: None)


def test_training_on_two_workers_stops_alike(tmp_path, model):
    encoder = EncoderConfig(model=str(model), pooling="mean", max_tokens=64, batch_tokens=128)
    on_workers(2, [Run("run", {"learning_rate": HUGE, "num_workers": 2})], tmp_path, encoder)
    told = [(tmp_path / "run" / f"stopped-{rank}.txt").read_text(encoding="utf-8") for rank in (0, 1)]
    assert told[0] == told[1] and "the loss is not finite" in told[0]
    assert not (tmp_path / "run" / "model").exists()


def test_training_of_a_reranker_stops_too(tmp_path, model):
    job, _ = make_job(tmp_path, model, [planted(number) for number in range(20)], learning_rate=HUGE)
    with pytest.raises(NotFiniteError):
        train(job, lambda metrics: None)
    assert not job.exported.exists()


def test_training_rows_leave_out_rewards_that_are_no_numbers(tmp_path):
    for reward in (float("nan"), float("inf")):
        rows = labelled(1) + labelled(1, (reward, 1.0, 0.0, 2.0))
        sizes, left_out = write_training_rows(rows, BUILTIN_TASKS, tmp_path / "rows.arrow", {})
        assert (sizes, left_out) == ({"qa": 1}, {"qa: a reward is not finite": 1})


def test_worker_does_not_try_again_and_the_driver_tells_why(tmp_path, model, monkeypatch):
    job = make_training(tmp_path, model, learning_rate=HUGE)
    tries = []

    class OneWorker:
        def __init__(self, function, train_loop_config, **settings):
            self.fit = lambda: tries.append(function(train_loop_config))

    @contextmanager
    def counting(label, total):
        yield SimpleNamespace(skip=lambda rows: None, advance=lambda *rows: None, count=0)

    monkeypatch.setattr(worker, "machines", list)
    monkeypatch.setattr(worker, "TorchTrainer", OneWorker)
    monkeypatch.setattr(worker, "track_progress", counting)
    monkeypatch.setattr(worker.ray.train, "get_context", lambda: SimpleNamespace(get_world_rank=lambda: 0))
    with pytest.raises(NotFiniteError, match="the loss is not finite"):
        worker.run_workers(job, "train")
    assert len(tries) == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_training_worker_tells_the_driver_of_settings_that_are_impossible(tmp_path, model, monkeypatch, workers):
    job = make_training(tmp_path, model, matryoshka_dimensions=[999])
    context = SimpleNamespace(get_world_rank=lambda: workers - 1, get_world_size=lambda: workers)
    monkeypatch.setattr(worker.ray.train, "get_context", lambda: context)
    with pytest.raises(ConfigError) if workers > 1 else nullcontext():
        worker.train_worker({"job": job})
    assert job.stopped.read_text(encoding="utf-8").startswith("ConfigError: train.matryoshka_dimensions is [999], but")


def test_vectors_that_are_no_numbers_are_refused_with_the_text_they_are_of():
    block = {"dataset": "nq", "side": "passage", "row_ids": ["r1", "r2"], "ids": ["p1", "p2"], "rows": 2}
    vectors = np.array([[1.0, 0.0], [0.0, np.nan]], dtype=np.float32)
    with pytest.raises(NotFiniteError, match=r"nq: the vectors of 1 of 2 passages of a block are not finite.*'p2'"):
        vector_table(block, vectors, [False, False])


def test_write_json_refuses_what_json_cannot_hold(tmp_path):
    with pytest.raises(NotFiniteError, match=r"report\.json: not written"):
        write_json({"a": [1.0, float("nan")]}, tmp_path / "report.json")
    assert not (tmp_path / "report.json").exists()


def test_share_of_peak_is_never_above_one():
    assert [share_of_peak(*of) for of in ((1.0, 2.0), (2.0, 2.0), (2.3, 2.0), (1.0, 0.0))] == [0.5, 1.0, None, None]
    assert LabelCost(1.0, 1, 1, 115.0, 100.0, 1).peak_share is None
