"""What each process of the test of several ranks does: the losses and gradients of its shares of some batches."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist

from embedder.config.run import EncoderConfig
from embedder.config.tasks import BUILTIN_TASKS
from embedder.config.train import TrainConfig
from embedder.models.encoder import load_encoder
from embedder.training.batch_plan import BatchPlan, share_of_batch
from embedder.training.distributed import sum_over_workers
from embedder.training.objective import Objective
from embedder.training.training_rows import TrainingRows

LOSSES = {"qa": "graded", "chat": "kl", "tool": "contrastive", "icl": "margin_mse", "lrlm": "reference"}
TASKS = {
    name: BUILTIN_TASKS[name].model_copy(update={"loss": loss, "reward_temperature": 1.0})
    for name, loss in LOSSES.items()
}
SIZES = {"qa": 11, "chat": 7, "tool": 5, "icl": 3, "lrlm": 9}
"""Rows a task; none is a multiple of the batch, nor of the number of workers."""
BATCH_SIZE = 8
PLANS = {
    name: BatchPlan(
        SIZES,
        TrainConfig(task_weights=dict.fromkeys(SIZES, 1.0), batches=name, batch_size=BATCH_SIZE, steps=15, seed=3),
    )
    for name in ("one_task", "mixed")
}
STEPS = {"one_task": range(6), "mixed": (0, 14)}
OBJECTIVES = {"one_task": Objective(TASKS, 0.2), "mixed": Objective(TASKS, 0.2, [8])}


class Outcome(NamedTuple):
    """Of one step."""

    queries: list[str]
    """Those of this process."""
    loss: float
    """Of the global batch."""
    gradient: torch.Tensor
    """Of this process, as one vector."""


def outcomes(encoder_config: EncoderConfig, data: Path, rank: int, workers: int) -> dict[str, Outcome]:
    """What comes of some steps of each plan, one-task batches of every task and mixed ones."""
    encoder, rows = load_encoder(encoder_config, device="cpu"), TrainingRows(data)
    found = {}
    for name, plan in PLANS.items():
        for step in STEPS[name]:
            parts = plan.batch(step)
            encoder.zero_grad()
            batch = rows.batch(share_of_batch(parts, rank, workers))
            vectors = encoder(encoder.tokenize(batch.prompted(TASKS)))
            loss = OBJECTIVES[name].batch_losses(vectors, batch).mean()
            loss.backward()
            gradients = [weight.grad.flatten() for weight in encoder.parameters() if weight.grad is not None]
            label = f"{step}: {' '.join(part.task for part in parts)}"
            (total,) = sum_over_workers([loss.item()])
            found[label] = Outcome(batch.queries, total / workers, torch.cat(gradients))
    return found


def read_outcomes(folder: Path, rank: int, workers: int) -> dict[str, Outcome]:
    """What `work` left in the folder."""
    return {name: Outcome(*one) for name, one in torch.load(folder / f"{rank}-of-{workers}.pt").items()}


def work(rank: int, encoder_config: EncoderConfig, data: Path, worker_counts: list[int]) -> None:
    """One of the processes, a worker of each of the groups that need it; leaves its outcomes beside the data."""
    torch.set_num_threads(1)
    for workers in worker_counts:
        if rank < workers:
            meeting = f"file://{data.parent / f'meeting-{workers}'}"
            dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=workers)
            found = outcomes(encoder_config, data, rank, workers)
            torch.save({name: tuple(one) for name, one in found.items()}, data.parent / f"{rank}-of-{workers}.pt")
            dist.destroy_process_group()
