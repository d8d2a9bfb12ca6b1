"""What each process of the test of two ranks does: the gradient of its share of a batch."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist

from embedder.config import EncoderConfig
from embedder.model import load_encoder
from embedder.tasks import BUILTIN_TASKS
from embedder.training.data import TrainingRows
from embedder.training.distributed import mean_over_workers
from embedder.training.step import batch_loss, share_of_batch

TASKS = ("qa", "chat", "tool")
"""One of each loss: graded, kl, contrastive."""
ROWS = 4
TEMPERATURE = 0.2


def losses_and_gradients(encoder_config: EncoderConfig, data: Path) -> dict[str, tuple[float, torch.Tensor]]:
    """By task: the loss of the global batch and the gradient of this process, as one vector."""
    encoder, rows = load_encoder(encoder_config, device="cpu"), TrainingRows(data)
    results = {}
    for task in TASKS:
        encoder.zero_grad()
        batch = rows.batch(task, share_of_batch(list(range(ROWS))))
        loss = batch_loss(encoder.tokenize, encoder, batch, BUILTIN_TASKS[task], TEMPERATURE)
        loss.backward()
        parts = [weight.grad.flatten() for weight in encoder.parameters() if weight.grad is not None]
        results[task] = (mean_over_workers(loss), torch.cat(parts))
    return results


def work(rank: int, encoder_config: EncoderConfig, data: Path) -> None:
    """One of two processes; leaves its results beside the data."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{data.parent / 'meeting'}", rank=rank, world_size=2)
    torch.save(losses_and_gradients(encoder_config, data), data.parent / f"rank{rank}.pt")
    dist.destroy_process_group()
