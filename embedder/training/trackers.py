"""Trackers that follow a training: TensorBoard event files, MLflow, Weights & Biases; each through its public API.

Their packages are imported when one is opened: two of them are nobody's duty to install.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, Protocol

from embedder.config.train import TrainConfig
from embedder.credentials import masked
from embedder.errors import ConfigError
from embedder.hashing import content_id
from embedder.storage.node_cache import used_entry
from embedder.storage.object_store import ObjectPath, replacing, upload
from embedder.training.job import StepMetrics, TrainingJob

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

EXPERIMENT = "llm-embedder"
"""Name of the MLflow experiment."""


class Tracker(Protocol):
    """Takes the values of one step, by name; a step that is repeated after a resume comes twice."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Keep them."""

    def keep(self) -> None:
        """Bring into the training's folder what must not be lost with this machine."""

    def close(self) -> None:
        """Write what is still to be written."""


def tracker_folder(job: TrainingJob) -> Path:
    """A folder of this machine for files to which a tracker adds: that of the training, or one in its stead."""
    if isinstance(job.folder, Path):
        return job.folder
    folder = used_entry(f"trackers-{content_id(job.folder.uri)[:16]}")
    folder.mkdir(exist_ok=True)
    return folder


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


def values_at_end(outcome: Mapping[str, Any]) -> dict[str, float]:
    """What a tracker is told of a training that has ended: what its guard chose, if it has one."""
    guard = outcome["guard"]
    if guard is None:
        return {}
    chosen = next(entry for entry in guard["measured"] if entry["share"] == guard["share"])
    values = {f"guard/ndcg/{task}": value for task, value in chosen["tasks"].items()}
    return {"guard/share": guard["share"], **values}


class _TensorBoard:
    """Event files in the training's folder; what a killed run wrote of steps that are repeated is purged."""

    def __init__(self, job: TrainingJob) -> None:
        self._folder = tracker_folder(job) / "tensorboard"
        self._kept = job.folder / "tensorboard"
        self._writer: SummaryWriter | None = None

    def log(self, values: dict[str, float], step: int) -> None:
        if self._writer is None:
            from torch.utils.tensorboard.writer import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=step)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def keep(self) -> None:
        if isinstance(self._kept, ObjectPath) and self._writer is not None:
            for path in self._folder.iterdir():
                upload(path, self._kept / path.name)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self.keep()


class _MlFlow:
    """A run of MLflow, whose id lies in the training's folder."""

    def __init__(self, job: TrainingJob) -> None:
        import mlflow

        self._mlflow = mlflow
        mlflow.set_tracking_uri(job.config.mlflow)
        note = job.folder / "mlflow-run"
        if note.is_file():
            mlflow.start_run(run_id=note.read_text(encoding="utf-8").strip())
            return
        mlflow.set_experiment(EXPERIMENT)
        run = mlflow.start_run(run_name=job.folder.name)
        with replacing(note) as file:
            file.write(run.info.run_id.encode())
        mlflow.log_params(settings_of(job))

    def log(self, values: dict[str, float], step: int) -> None:
        self._mlflow.log_metrics(values, step=step)

    def keep(self) -> None:
        """Nothing is kept here."""

    def close(self) -> None:
        self._mlflow.end_run()


class _WandB:
    """A run of Weights & Biases, known by the training's name."""

    def __init__(self, job: TrainingJob) -> None:
        import wandb

        name = job.folder.name
        self._run = wandb.init(
            project=job.config.wandb,
            id=name,
            name=name,
            resume="allow",
            dir=str(tracker_folder(job)),
            config=settings_of(job),
        )

    def log(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def keep(self) -> None:
        """Nothing is kept here."""

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[[TrainingJob], Tracker]] = {
    "tensorboard": _TensorBoard,
    "mlflow": _MlFlow,
    "wandb": _WandB,
}
"""By the setting that asks for one, which is also the name of the package it needs."""


def check_trackers(config: TrainConfig) -> None:
    """Say before a worker starts that a tracker is missing.

    Raises:
        ConfigError: its package is not installed.
    """
    for name in TRACKERS:
        if getattr(config, name) and importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"train.{name} is set, but the package {name} is not installed; "
                f"`pip install {name}` on every node, or leave the setting out"
            )


@contextmanager
def open_trackers(job: TrainingJob) -> Iterator[Sequence[Tracker]]:
    """The configured trackers, closed when the block ends; one that follows the run already goes on with it."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(closing(tracker(job)))
            for name, tracker in TRACKERS.items()
            if getattr(job.config, name)
        ]


def settings_of(job: TrainingJob) -> dict[str, Any]:
    """The settings that a tracker shows beside the curves."""
    return {"encoder": masked(job.encoder.model), **job.config.model_dump(mode="json")}
