"""What each Ray Train worker runs: the training loop with Ray's checkpoints and a line of progress."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import ray.train

from embedder.training.loop import EXPORT, StepMetrics, TrainingJob, train


@dataclass(frozen=True)
class WorkerJob:
    """The training job and where rank 0 keeps the metrics of every step."""

    training: TrainingJob
    metrics: Path


def train_worker(settings: dict[str, WorkerJob]) -> None:
    """Resume from the run's last checkpoint if there is one, train, and hand each checkpoint to Ray.

    `ray.train.report` is a barrier: it is called only where a checkpoint is due, which is so on all workers at once.
    """
    job = settings["job"]
    is_first = ray.train.get_context().get_world_rank() == 0

    def report(metrics: StepMetrics, write_checkpoint: Callable[[Path], None] | None) -> None:
        if is_first:
            _append_metrics(job.metrics, metrics)
        if write_checkpoint is None:
            return
        folder = Path(tempfile.mkdtemp(prefix="checkpoint-"))
        try:
            write_checkpoint(folder)
            ray.train.report(asdict(metrics), checkpoint=ray.train.Checkpoint.from_directory(folder))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        train(job.training, None, report)
        return
    with checkpoint.as_directory() as folder:
        if not (Path(folder) / EXPORT).is_dir():
            train(job.training, Path(folder), report)


def _append_metrics(path: Path, metrics: StepMetrics) -> None:
    """One JSON line a step; a step that is repeated after a resume stands twice, and the later line counts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(metrics)) + "\n")


def read_metrics(path: Path) -> list[StepMetrics]:
    """The metrics of every step so far, in order."""
    by_step = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            metrics = StepMetrics(**json.loads(line))
            by_step[metrics.step] = metrics
    return [by_step[step] for step in sorted(by_step)]
