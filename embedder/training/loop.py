"""The training loop: step, report, save. The only file that knows DeepSpeed; it knows no Ray."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import deepspeed
import torch
from torch import nn

from embedder.config import EncoderConfig
from embedder.model import TextEncoder, export_encoder, load_encoder
from embedder.records import row_seed
from embedder.tasks import TaskSpec
from embedder.train_config import TrainConfig
from embedder.training.data import TrainingRows
from embedder.training.distributed import mean_over_workers, rank, world_size
from embedder.training.objective import Objective
from embedder.training.plan import BatchPlan, share_of_batch
from embedder.training.schedule import SelfPaced, linear_rate
from embedder.training.step import batch_losses

TAG = "state"
"""Folder of DeepSpeed's state inside a checkpoint."""
EXPORT = "model"
"""Folder of the exported encoder inside the last checkpoint."""


@dataclass(frozen=True)
class StepMetrics:
    """What one step reports, the same on every worker."""

    step: int
    task: str
    loss: float
    """Of the global batch."""
    learning_rate: float
    pace: float
    """Self-paced factor of the task."""
    seconds: float


@dataclass(frozen=True)
class TrainingJob:
    """All a worker needs; every worker gets the same."""

    encoder: EncoderConfig
    tasks: dict[str, TaskSpec]
    config: TrainConfig
    data: Path
    """The Arrow file of `write_training_rows`."""


Report = Callable[[StepMetrics, Callable[[Path], None] | None], None]
"""Called after each step; with a function that writes a checkpoint into a folder where one is due."""


def train(job: TrainingJob, resume_from: Path | None, report: Report) -> None:
    """Train to the last step, from a checkpoint if there is one.

    The process group must exist where there are several workers. The result does not depend on their number: the
    global batch of a step is a function of (data, seed, step), and every gather keeps its gradient.
    """
    config = job.config
    torch.manual_seed(config.seed)
    encoder = load_encoder(job.encoder, dropout=config.dropout).train()
    engine = build_engine(encoder, config)
    rows = TrainingRows(job.data)
    plan = BatchPlan.of(rows.sizes, config)
    objective = Objective.of(job.tasks, config)
    paced = SelfPaced(config.self_paced)
    start = _resume(engine, paced, resume_from)
    for step in range(start, config.steps):
        began = time.monotonic()
        parts = plan.batch(step)
        task = parts[0].task
        batch = rows.batch(share_of_batch(parts, rank(), world_size()))
        torch.manual_seed(row_seed(config.seed, step, rank()))
        loss = batch_losses(encoder.tokenize, engine, batch, objective).mean()
        pace = paced.factor(task)
        rate = config.learning_rate * linear_rate(step, config.steps, config.warmup_share) * pace
        for group in engine.optimizer.param_groups:
            group["lr"] = rate
        engine.backward(loss)
        engine.step()
        global_loss = mean_over_workers(loss)
        paced.update(task, global_loss, step)
        metrics = StepMetrics(step, task, global_loss, rate, pace, time.monotonic() - began)
        last = step + 1 == config.steps
        due = last or (step + 1) % config.save_every == 0
        report(metrics, _checkpoint_writer(engine, paced, job.tasks, step, last) if due else None)


def build_engine(encoder: TextEncoder, config: TrainConfig) -> deepspeed.DeepSpeedEngine:
    """DeepSpeed around the encoder; weight decay spares biases and normalisation."""
    if encoder.device.type == "cpu":
        # The shared-memory all-reduce is compiled at first use, which needs a C++ compiler; gloo does without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    decayed = [weight for weight in encoder.parameters() if weight.ndim > 1]
    spared = [weight for weight in encoder.parameters() if weight.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": spared, "weight_decay": 0.0}],
        lr=config.learning_rate,
    )
    settings = {
        "train_micro_batch_size_per_gpu": config.batch_size // config.num_workers,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.gradient_clip,
        "zero_optimization": {"stage": config.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    engine, *_ = deepspeed.initialize(model=encoder, optimizer=optimizer, config=settings)
    return engine


def _resume(engine: deepspeed.DeepSpeedEngine, paced: SelfPaced, folder: Path | None) -> int:
    """Restore weights, optimiser and self-paced losses; returns the step to go on with."""
    if folder is None:
        return 0
    _, state = engine.load_checkpoint(str(folder), tag=TAG)
    paced.restore(json.loads(state["self_paced"]))
    return int(state["next_step"])


def _checkpoint_writer(
    engine: deepspeed.DeepSpeedEngine, paced: SelfPaced, tasks: dict[str, TaskSpec], step: int, last: bool
) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        state = {"next_step": step + 1, "self_paced": json.dumps(paced.state())}
        engine.save_checkpoint(str(folder), tag=TAG, client_state=state)
        module: nn.Module = engine.module
        if last and rank() == 0 and isinstance(module, TextEncoder):
            export_encoder(module, folder / EXPORT, tasks)

    return write
