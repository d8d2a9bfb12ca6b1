"""Trainings with DeepSpeed for the tests, each on a group of processes of its own that makes one after the other."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing import spawn

from embedder.config.run import EncoderConfig
from embedder.config.tasks import BUILTIN_TASKS
from embedder.config.train import TrainConfig
from embedder.errors import NotFiniteError
from embedder.training.batch_plan import BatchPart
from embedder.training.job import MetricsReader, StepMetrics, TrainingJob, append_metrics
from embedder.training.loop import train
from embedder.training.row_files import write_training_rows
from embedder.training.training_rows import TrainingRows

TASKS = ("qa", "chat", "tool")
"""One of each loss: graded, kl, contrastive."""
SETTINGS = {"steps": 6, "batch_size": 4, "learning_rate": 1e-3, "temperature": 0.1, "save_every": 2, "num_workers": 1}
WORDS = ["fox", "dog", "list", "city", "fox", "bridge", "set", "dog", "dict", "fox"]


class AbandonedError(Exception):
    """A training was stopped on purpose."""


@dataclass(frozen=True)
class Run:
    """One training below the folder of the test."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    """What differs from SETTINGS."""
    stop: int | None = None
    """The step after whose report it is abandoned."""
    like: str = ""
    """The run whose folder it goes on from."""
    encoder: EncoderConfig | None = None

    def job(self, folder: Path, encoder: EncoderConfig) -> TrainingJob:
        """What is trained."""
        settings = TrainConfig(**{**SETTINGS, **self.settings})
        return TrainingJob(self.encoder or encoder, BUILTIN_TASKS, settings, folder / self.name)


def all_rows(folder: Path) -> list[dict[str, Any]]:
    """The training rows of a folder, task by task."""
    rows = TrainingRows(folder)
    return rows.rows([BatchPart(task, list(range(size))) for task, size in rows.sizes.items()])


def groups(count: int = 8) -> list[dict[str, Any]]:
    """Ragged groups of each task; candidate texts repeat within and over the workers' shares."""
    made = []
    for task in TASKS:
        for number in range(count):
            size = 4 - number % 2
            texts = [f"the {WORDS[(3 * number + i) % 10]} is {'near ' * (number % 3)}{i}" for i in range(size)]
            fields = {"task": task, "dataset": task, "query_id": str(number), "error": None}
            fields["query"] = f"where is the {WORDS[number % 10]} {number}?"
            fields |= {"candidate_ids": texts, "candidate_texts": texts, "relevance": [1] + [0] * (size - 1)}
            made.append(fields | {"rewards": [float((number + i) % 3) for i in range(size)]})
    return made


def follow(runs: Sequence[Run], folder: Path, encoder: EncoderConfig) -> None:
    """Make the runs, on as many processes as there are."""
    is_first = not dist.is_initialized() or dist.get_rank() == 0
    for run in runs:
        job = run.job(folder, encoder)
        if is_first:
            if run.like:
                shutil.copytree(folder / run.like, job.folder)
            job.folder.mkdir(exist_ok=True)
            write_training_rows(groups(), BUILTIN_TASKS, job.rows, {})
            write_training_rows(groups()[::3], BUILTIN_TASKS, job.held_out, {})
        if dist.is_initialized():
            dist.barrier()

        def report(metrics: StepMetrics, job: TrainingJob = job, run: Run = run) -> None:
            if is_first:
                append_metrics(job.metrics, metrics)
            if metrics.step == run.stop:
                raise AbandonedError

        try:
            train(job, report)
        except AbandonedError:
            continue
        except NotFiniteError as error:
            rank = dist.get_rank() if dist.is_initialized() else 0
            (job.folder / f"stopped-{rank}.txt").write_text(str(error), encoding="utf-8")


def _work(rank: int, workers: int, runs: Sequence[Run], folder: Path, encoder: EncoderConfig) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    meeting = folder / f"meeting-{runs[0].name}"
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=workers)
    follow(runs, folder, encoder)
    dist.destroy_process_group()


def on_workers(workers: int, runs: Sequence[Run], folder: Path, encoder: EncoderConfig) -> None:
    """Make the runs on so many new processes."""
    spawn(_work, args=(workers, runs, folder, encoder), nprocs=workers)


def metrics(folder: Path, run: str) -> list[StepMetrics]:
    """What the steps of a run reported."""
    return MetricsReader(folder / run / "metrics.jsonl").steps()


def losses(folder: Path, run: str) -> list[float]:
    """The loss of every step of a run."""
    return [step.loss for step in metrics(folder, run)]
