"""Trackers: what they are told, what is missing is said before a worker starts, a resumed run goes on in its own."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from embedder.config.tasks import BUILTIN_TASKS
from embedder.config.train import TrainConfig
from embedder.errors import ConfigError
from embedder.training import trackers
from embedder.training.job import StepMetrics, TrainingJob
from embedder.training.trackers import check_trackers, open_trackers, values_at_end, values_of

METRICS = StepMetrics(3, {"qa": 1.5}, 1.5, 1e-5, {"qa": 1.2}, 0.5, 2, {"qa": 0.6, "tool": 0.8})


def job(folder, tiny_encoder, **settings):
    (folder / "run").mkdir(exist_ok=True)
    return TrainingJob(tiny_encoder, BUILTIN_TASKS, TrainConfig(steps=9, **settings), folder / "run")


def test_trackers_are_told_losses_factors_and_measurements():
    expected = {"train/loss": 1.5, "train/learning_rate": 1e-5, "train/seconds": 0.5, "loss/qa": 1.5, "pace/qa": 1.2}
    found = values_of(METRICS)
    assert found == {**expected, "ndcg/qa": 0.6, "ndcg/tool": 0.8, "train/ndcg": pytest.approx(0.7)}
    assert not any(other.startswith(f"{name}/") for name in found for other in found)


def test_trackers_are_told_what_the_guard_chose():
    measured = [{"share": 0.0, "tasks": {"qa": 0.5}, "mean": 0.5}, {"share": 0.25, "tasks": {"qa": 0.6}, "mean": 0.6}]
    assert values_at_end({"guard": {"share": 0.25, "measured": measured}}) == {
        "guard/share": 0.25,
        "guard/ndcg/qa": 0.6,
    }
    assert values_at_end({"guard": None}) == {}


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


class _MlFlowModule(ModuleType):
    """The functions of MLflow that are called; keeps what they are told."""

    def __init__(self):
        super().__init__("mlflow")
        self.told = []

    def set_tracking_uri(self, server):
        self.told.append(("server", server))

    def set_experiment(self, name):
        self.told.append(("experiment", name))

    def start_run(self, run_id=None, run_name=None):
        self.told.append(("run", run_id, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id="r1"))

    def log_params(self, settings):
        self.told.append(("params", settings["steps"]))

    def log_metrics(self, values, step):
        self.told.append(("metrics", values, step))

    def end_run(self):
        self.told.append(("end",))


def test_mlflow_goes_on_with_the_run_whose_id_it_noted(tmp_path, tiny_encoder, monkeypatch):
    module = _MlFlowModule()
    monkeypatch.setitem(sys.modules, "mlflow", module)
    made = job(tmp_path, tiny_encoder, mlflow="http://server")
    for _ in range(2):
        with open_trackers(made) as (tracker,):
            tracker.log({"loss": 0.5}, 4)
    server, logged = ("server", "http://server"), [("metrics", {"loss": 0.5}, 4), ("end",)]
    begun = [("experiment", "llm-embedder"), ("run", None, "run"), ("params", 9)]
    assert module.told == [server, *begun, *logged, server, ("run", "r1", None), *logged]


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
