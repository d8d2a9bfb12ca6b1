"""What each process of the test of two ranks does: train the cross-encoder on its share of every batch."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.distributed as dist

from embedder.training.reranker_loop import RerankerJob, fit_cross_encoder


def losses_of(job: RerankerJob, checkpoints: Path | None = None, resume_from: Path | None = None) -> list[float]:
    """Train and return the loss of every step; with `checkpoints`, write those due to `STEP/` below it."""
    losses = []

    def report(step, write_checkpoint):
        losses.append(step.loss)
        if write_checkpoint is not None and checkpoints is not None:
            folder = checkpoints / str(step.step)
            folder.mkdir(parents=True)
            write_checkpoint(folder)

    fit_cross_encoder(job, resume_from, report)
    return losses


def work(rank: int, job: RerankerJob) -> None:
    """One of two processes; leaves its losses, and rank 0 its checkpoints, beside the data."""
    torch.set_num_threads(1)
    folder = job.training.parent
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    losses = losses_of(job, folder / "two" if rank == 0 else None)
    (folder / f"rank{rank}.json").write_text(json.dumps(losses), encoding="utf-8")
    dist.destroy_process_group()
