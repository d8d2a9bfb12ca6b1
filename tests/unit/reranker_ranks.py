"""What each process of the test of two ranks does: train the cross-encoder on its share of every batch."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist

from embedder.training.job import MetricsReader, StepMetrics, TrainingJob, append_metrics
from embedder.training.loop import train


class AbandonedError(Exception):
    """A training was stopped on purpose."""


def losses_of(job: TrainingJob, stop: int | None = None) -> list[float]:
    """Train, up to the report of step `stop` if there is one, and return the loss of every step so far."""

    def report(metrics: StepMetrics) -> None:
        if torch.distributed.get_rank() == 0:
            append_metrics(job.metrics, metrics)
        if metrics.step == stop:
            raise AbandonedError

    with suppress(AbandonedError):
        train(job, report)
    return [step.loss for step in MetricsReader(job.metrics).steps()]


def work(rank: int, job: TrainingJob, meeting: Path) -> None:
    """One of two processes."""
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    losses_of(job)
    dist.destroy_process_group()
