"""Trackers that follow a training: TensorBoard event files, MLflow, Weights & Biases; each through its public API.

Their packages are imported when one is opened: two of them are nobody's duty to install.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from statistics import mean
from typing import TYPE_CHECKING, Any, Protocol

from embedder.config.train import TrainConfig
from embedder.errors import ConfigError
from embedder.training.job import StepMetrics, TrainingJob

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

EXPERIMENT = "llm-embedder"
"""Name of the MLflow experiment."""


class Tracker(Protocol):
    """Takes the values of one step, by name; a step that is repeated after a resume comes twice."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Keep them."""

    def close(self) -> None:
        """Write what is still to be written."""


def wanted_trackers(config: TrainConfig) -> dict[str, str]:
    """By setting: the package that each configured tracker needs."""
    wanted = {"tensorboard": config.tensorboard, "mlflow": config.mlflow, "wandb": config.wandb}
    return {name: name for name, value in wanted.items() if value}


def check_trackers(config: TrainConfig) -> None:
    """Say before a worker starts that a tracker is missing.

    Raises:
        ConfigError: its package is not installed.
    """
    for setting, package in wanted_trackers(config).items():
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"train.{setting} is set, but the package {package} is not installed; "
                f"`pip install {package}` on every node, or leave the setting out"
            )


def values_of(metrics: StepMetrics) -> dict[str, float]:
    """What a tracker is told of a step; no name is the beginning of another, which MLflow keeps as folder and file."""
    values = {"loss": metrics.loss, "learning_rate": metrics.learning_rate, "seconds": metrics.seconds}
    values = {f"train/{name}": value for name, value in values.items()}
    values |= {f"loss/{task}": loss for task, loss in metrics.losses.items()}
    values |= {f"pace/{task}": pace for task, pace in metrics.paces.items()}
    values |= {f"ndcg/{task}": value for task, value in metrics.validation.items()}
    if metrics.validation:
        values["train/ndcg"] = mean(metrics.validation.values())
    return values


@contextmanager
def open_trackers(job: TrainingJob) -> Iterator[Sequence[Tracker]]:
    """The configured trackers, closed when the block ends; one that follows the run already goes on with it."""
    config = job.config
    with ExitStack() as stack:
        opened: list[Tracker] = []
        if config.tensorboard:
            opened.append(_TensorBoard(job))
        if config.mlflow is not None:
            opened.append(_MlFlow(job, config.mlflow))
        if config.wandb is not None:
            opened.append(_WandB(job, config.wandb))
        for tracker in opened:
            stack.callback(tracker.close)
        yield opened


class _TensorBoard:
    """Event files in the training's folder; what a killed run wrote of steps that are repeated is purged."""

    def __init__(self, job: TrainingJob) -> None:
        self._folder = str(job.folder / "tensorboard")
        self._writer: SummaryWriter | None = None

    def log(self, values: dict[str, float], step: int) -> None:
        if self._writer is None:
            from torch.utils.tensorboard.writer import SummaryWriter

            self._writer = SummaryWriter(self._folder, purge_step=step)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _MlFlow:
    """A run of MLflow, whose id lies in the training's folder."""

    def __init__(self, job: TrainingJob, server: str) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        self._client, self._metric = MlflowClient(tracking_uri=server), Metric
        note = job.folder / "mlflow-run"
        if note.is_file():
            self._run = note.read_text(encoding="utf-8").strip()
            return
        known = self._client.get_experiment_by_name(EXPERIMENT)
        experiment = known.experiment_id if known else self._client.create_experiment(EXPERIMENT)
        self._run = self._client.create_run(experiment, run_name=job.folder.name).info.run_id
        note.write_text(self._run, encoding="utf-8")
        for name, value in settings_of(job).items():
            self._client.log_param(self._run, name, value)

    def log(self, values: dict[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        self._client.log_batch(self._run, [self._metric(name, value, now, step) for name, value in values.items()])

    def close(self) -> None:
        self._client.set_terminated(self._run)


class _WandB:
    """A run of Weights & Biases, known by the training's name."""

    def __init__(self, job: TrainingJob, project: str) -> None:
        import wandb

        name = job.folder.name
        self._run = wandb.init(
            project=project, id=name, name=name, resume="allow", dir=str(job.folder), config=settings_of(job)
        )

    def log(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


def settings_of(job: TrainingJob) -> dict[str, Any]:
    """The settings that a tracker shows beside the curves."""
    return {"encoder": job.encoder.model, **job.config.model_dump(mode="json")}
