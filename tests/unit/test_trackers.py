"""Trackers: what they are told, what is missing is said before a worker starts, a resumed run goes on in its own."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from embedder.config.tasks import BUILTIN_TASKS
from embedder.config.train import TrainConfig
from embedder.errors import ConfigError
from embedder.training import trackers
from embedder.training.job import StepMetrics, TrainingJob
from embedder.training.trackers import check_trackers, open_trackers, values_of

METRICS = StepMetrics(3, {"qa": 1.5}, 1.5, 1e-5, {"qa": 1.2}, 0.5, 2, {"qa": 0.6, "tool": 0.8})


def job(folder, tiny_encoder, **settings):
    (folder / "run").mkdir(exist_ok=True)
    return TrainingJob(tiny_encoder, BUILTIN_TASKS, TrainConfig(steps=9, **settings), folder / "run")


def test_trackers_are_told_losses_factors_and_measurements():
    expected = {"train/loss": 1.5, "train/learning_rate": 1e-5, "train/seconds": 0.5, "loss/qa": 1.5, "pace/qa": 1.2}
    found = values_of(METRICS)
    assert found == {**expected, "ndcg/qa": 0.6, "ndcg/tool": 0.8, "train/ndcg": pytest.approx(0.7)}
    assert not any(other.startswith(f"{name}/") for name in found for other in found)


@pytest.mark.parametrize("setting", ["mlflow", "wandb"])
def test_trackers_name_a_missing_package_before_a_worker_starts(setting, monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"train.{setting} is set, but the package {setting} is not installed"):
        check_trackers(TrainConfig(steps=1, **{setting: "somewhere"}))
    check_trackers(TrainConfig(steps=1))


def test_trackers_are_not_opened_without_settings(tmp_path, tiny_encoder):
    with open_trackers(job(tmp_path, tiny_encoder)) as opened:
        assert opened == []


def test_tensorboard_holds_each_step_once_after_a_resume(tmp_path, tiny_encoder):
    """The second one begins again at step 3, which the first had written too."""
    made = job(tmp_path, tiny_encoder, tensorboard=True)
    for first, last, offset in ((1, 5, 0.0), (3, 6, 10.0)):
        with open_trackers(made) as (board,):
            for step in range(first, last):
                board.log({"loss": step + offset}, step)
    events = EventAccumulator(str(made.folder / "tensorboard"))
    events.Reload()
    assert [(one.step, one.value) for one in events.Scalars("loss")] == [(1, 1), (2, 2), (3, 13), (4, 14), (5, 15)]


class _Client:
    """Of MLflow: keeps what it is told."""

    told: ClassVar[list[tuple]] = []

    def __init__(self, tracking_uri):
        self.told.append(("server", tracking_uri))

    def get_experiment_by_name(self, name):
        return None

    def create_experiment(self, name):
        return f"{name}-id"

    def create_run(self, experiment, run_name):
        self.told.append(("run", experiment, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id="r1"))

    def log_param(self, run, name, value):
        self.told.append(("param", run, name))

    def log_batch(self, run, metrics):
        self.told.append(("batch", run, [(one[0], one[1], one[3]) for one in metrics]))

    def set_terminated(self, run):
        self.told.append(("end", run))


def test_mlflow_goes_on_with_the_run_whose_id_it_noted(tmp_path, tiny_encoder, monkeypatch):
    module, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
    module.MlflowClient = _Client
    entities.Metric = lambda *given: given
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    _Client.told = []
    made = job(tmp_path, tiny_encoder, mlflow="http://server")
    for _ in range(2):
        with open_trackers(made) as (tracker,):
            tracker.log({"loss": 0.5}, 4)
    told = [one for one in _Client.told if one[0] != "param"]
    logged = [("batch", "r1", [("loss", 0.5, 4)]), ("end", "r1")]
    assert told[:2] == [("server", "http://server"), ("run", "llm-embedder-id", "run")]
    assert told[2:4] == logged and told[4:] == [("server", "http://server"), *logged]


def test_wandb_goes_on_with_the_run_of_the_training(tmp_path, tiny_encoder, monkeypatch):
    given, logged = {}, []
    run = SimpleNamespace(log=lambda values, step: logged.append((values, step)), finish=lambda: logged.append("end"))
    module = ModuleType("wandb")
    module.init = lambda **settings: given.update(settings) or run
    monkeypatch.setitem(sys.modules, "wandb", module)
    with open_trackers(job(tmp_path, tiny_encoder, wandb="mine")) as (tracker,):
        tracker.log({"loss": 0.5}, 4)
    assert (given["project"], given["id"], given["resume"]) == ("mine", "run", "allow")
    assert given["config"]["steps"] == 9
    assert logged == [({"loss": 0.5}, 4), "end"]
