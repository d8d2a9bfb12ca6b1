"""The training loop: step, measure, save, export. It knows neither DeepSpeed nor Ray."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from embedder.errors import ConfigError, NotFiniteError
from embedder.hashing import row_seed
from embedder.models.device import keep_freed_memory, resolve_device
from embedder.models.st_folder import plain_task_of
from embedder.models.transfer import begin_reading, upload
from embedder.storage.fetched import local_copy
from embedder.storage.folders import folder_made
from embedder.storage.json_file import write_json
from embedder.training.batch_plan import BatchPlan, share_of_batch
from embedder.training.checkpoint import Checkpoint, last_step, read_checkpoint, write_checkpoint
from embedder.training.deepspeed_engine import TrainingEngine
from embedder.training.distributed import (
    gather,
    greatest_over_workers,
    join_workers,
    rank,
    sum_over_workers,
    world_size,
)
from embedder.training.finite import first_damaged, not_finite
from embedder.training.gradient import accumulate_gradient
from embedder.training.job import StepMetrics, TrainingJob
from embedder.training.learners import Learner, load_learner, put_weights, trained_weights
from embedder.training.schedule import SelfPaced, linear_rate
from embedder.training.step_room import StepRoom
from embedder.training.token_batches import TokenBatches, TokenLimits, token_batches
from embedder.training.training_rows import Batch, TrainingRows
from embedder.training.validation import EarlyStopping, HeldOut
from embedder.training.weight_guard import between, choose

PROBED_ROWS = 8
"""Rows that a network reads before it is exported."""
PreparedStep = tuple[Counter[str], Batch, TokenBatches]
"""The queries of a step's global batch by task; this worker's share of it; the same tokenised and padded."""


def train(job: TrainingJob, report: Callable[[StepMetrics], None], keep: Callable[[], None] = lambda: None) -> None:
    """Train to the end, from the last checkpoint if there is one, and export.

    `report` is called after each step, and `keep` before each checkpoint, which those steps then follow no more.

    Where there are several workers their process group must exist, of a backend as `group_backend` says. The result
    does not depend on their number: the global batch of a step is a function of (data, seed, step), and every gather
    keeps its gradient.
    """
    trainer = Trainer(job)
    while not trainer.finished:
        report(trainer.step())
        if trainer.finished or trainer.next_step % job.config.save_every == 0:
            keep()
            trainer.save()
    trainer.export()


class Trainer:
    """One worker's part of a training; all workers call the same methods in the same order."""

    def __init__(self, job: TrainingJob) -> None:
        """Start, or go on where the last whole checkpoint was written."""
        self._data = TrainingRows(local_copy(job.rows, changes=False))
        # From the rows alone, which every worker reads whole, and reads again when it resumes.
        job = replace(job, tasks=self._data.with_temperatures(job.tasks))
        self.job, config = job, job.config
        torch.manual_seed(config.seed)
        self._learner = load_learner(job, resolve_device(config.gpus_per_worker))
        network = self._learner.network
        if network.device.type == "cpu":
            keep_freed_memory()
        join_workers(network.device)
        checkpoint = self._find_checkpoint()
        if checkpoint is not None:
            # Before DeepSpeed takes the weights over, because it may spread them over the workers.
            put_weights(network, checkpoint.weights)
        self._engine = TrainingEngine(network, config)
        self._room = StepRoom(job, self._engine)
        self._plan = BatchPlan(self._data.sizes, config)
        self._held_out = HeldOut(local_copy(job.held_out, changes=False), self._learner) if config.validation else None
        start = checkpoint or Checkpoint()
        self.next_step = start.next_step
        self._paced = SelfPaced(config.self_paced, **start.self_paced)
        self._stopping = EarlyStopping(config.validation.patience if config.validation else None, **start.validation)
        self._best = start.best if rank() == 0 else {}
        if checkpoint is not None:
            self._engine.restore_moments(checkpoint.moments, checkpoint.next_step)
        else:
            self._measure()
        # A new thread would take the machine's first GPU for its own, whichever this worker was given.
        own_gpu = network.device.type == "cuda"
        begin = partial(torch.cuda.set_device, network.device) if own_gpu else None
        self._pool = ThreadPoolExecutor(1, initializer=begin)
        self._ahead = self._prepare_next()

    @property
    def finished(self) -> bool:
        return self.next_step == self.job.config.steps or self._stopping.exhausted

    def step(self) -> StepMetrics:
        """Make the next step, and the measurement where one is due.

        Raises:
            NotFiniteError: a loss, the gradient or a measured score is not finite; on all workers alike.
        """
        began, config, number = time.monotonic(), self.job.config, self.next_step
        if self._ahead is None:
            raise RuntimeError("the training is finished")
        # The next step is prepared while this one is computed; no worker waits for another in it, because the plan
        # tells each its own share.
        tasks, batch, batches = self._ahead.result()
        self.next_step += 1
        self._ahead = self._prepare_next()
        paces, pace = {task: self._paced.factor(task) for task in tasks}, self._paced.pace(tasks)
        # Weights tell the tasks of a mixed batch apart; one weight for a whole batch would hardly be felt by Adam, so
        # there the rate changes in its place (see SelfPaced.pace).
        weight_B = upload(torch.tensor([pace.weights[task] for task in batch.tasks]), self._engine.device)
        seed = row_seed(config.seed, number, rank()) if config.drops else None

        def gradient(limits: TokenLimits) -> Tensor:
            fitted = batches if batches.limits == limits else token_batches(self._learner.network, batches.rows, limits)
            return accumulate_gradient(
                self._engine, fitted, lambda outputs: self._learner.losses(outputs, batch), weight_B, seed
            )

        loss_B = self._room.run_fitting(gradient, batches.padded)
        read_losses = begin_reading(loss_B)
        rate = config.learning_rate * linear_rate(number, config.steps, config.warmup_share) * pace.rate
        # Here alone does the host wait for a GPU, until it has the gradient: the next step's pace follows from the
        # losses. The weights are changed meanwhile.
        norm = self._engine.update(rate)
        own = dict.fromkeys(tasks, 0.0)
        for task, loss in zip(batch.tasks, read_losses(), strict=True):
            own[task] += loss
        summed = sum_over_workers([own[task] for task in tasks])
        # All workers know the same sums and norm, so they stop alike.
        if not all(map(isfinite, (*summed, norm))):
            raise self._stopped_by(loss_B, number, tasks)
        losses = {task: total / tasks[task] for task, total in zip(tasks, summed, strict=True)}
        for task, loss in losses.items():
            self._paced.update(task, loss, number)
        seconds = time.monotonic() - began  # without the measurement, so that the speed is that of the training
        measured = self._measure() if self._measurement_is_due() else {}
        return StepMetrics(number, losses, sum(summed) / tasks.total(), rate, paces, seconds, world_size(), measured)

    def save(self) -> None:
        """Write a checkpoint of the state between two steps."""
        # All workers must ask for the state, because each may hold a part of it; one writes.
        weights, moments = self._engine.weights(), self._engine.moments()
        self._refuse_damaged({**weights, **moments})
        if rank() == 0:
            states = self._paced.state(), self._stopping.state()
            write_checkpoint(self.job.checkpoints, Checkpoint(self.next_step, weights, moments, self._best, *states))

    def export(self) -> None:
        """Write how the training ended, and then the network: the best where there is a validation, else the last.

        With a guard, one between the base and the best. All workers must call it.

        Raises:
            NotFiniteError: its weights, or the outputs that it gives with them, are not finite.
        """
        weights = self._best if self._held_out else self._engine.weights()
        self._refuse_damaged(weights)
        self._pool.shutdown(cancel_futures=True)
        # Loaded anew, because the trained one may be spread over workers that have left already.
        learner = load_learner(self.job, device="cpu") if rank() == 0 else None
        base = trained_weights(learner.network) if learner else {}
        guard = self._guard(base, weights)
        if learner is None:
            return
        put_weights(learner.network, self._between(base, weights, guard["share"]) if guard else weights)
        self._probe(learner)
        outcome: dict[str, Any] = {
            "steps": self.next_step,
            "validation": self._stopping.state() if self._held_out else None,
            "guard": guard,
            "reward_temperatures": {task: self.job.tasks[task].reward_temperature for task in sorted(self._data.sizes)},
        }
        if told := self._room.told():
            outcome["memory"] = told
        # The folder of the network comes last, because its presence says that the training has ended.
        write_json(outcome, self.job.outcome)
        with folder_made(self.job.exported) as folder:
            learner.export(folder, plain_task_of(self._plan.tasks, self.job.config.export_task))

    def _guard(self, base: dict[str, Tensor], trained: dict[str, Tensor]) -> dict[str, Any] | None:
        """The chosen `share` of the way from the base to the trained weights, and what was `measured` at each.

        null without a guard. The weights are those of the first worker, and all workers call it and choose alike.
        """
        settings, history = self.job.config.guard, self._stopping.history
        if settings is None or self._held_out is None:
            return None
        measured = [{"share": 0.0, "tasks": history[0]["tasks"], "mean": history[0]["mean"]}]
        # Where no step did better than the base there is no way to go.
        for share in sorted(set(settings.shares)) if self._stopping.best else ():
            if share == 1:
                tasks = history[self._stopping.best]["tasks"]
            else:
                self._engine.put(self._between(base, trained, share))
                tasks = self._ranked(self._held_out)
            measured.append({"share": share, "tasks": tasks, "mean": sum(tasks.values()) / len(tasks)})
        return {"share": choose(measured, settings.tolerance)["share"], "measured": measured}

    def _between(self, base: dict[str, Tensor], trained: dict[str, Tensor], share: float) -> dict[str, Tensor]:
        return between(base, trained, share, self.job.config.lora is not None)

    def _stopped_by(self, loss_B: Tensor, number: int, tasks: Counter[str]) -> NotFiniteError:
        """The error of a step whose numbers are not finite; all workers must ask for it."""
        parts, workers = self._plan.batch(number), world_size()
        shares = [share_of_batch(parts, worker, workers) for worker in range(workers)]
        names = [name for share in shares for name in self._data.names(share)]
        are_finite = torch.isfinite(gather(loss_B)).tolist()
        bad = [name for name, is_finite in zip(names, are_finite, strict=True) if not is_finite]
        return not_finite("the loss" if bad else "the norm of the gradient", number, tasks, bad or names)

    def _refuse_damaged(self, tensors: dict[str, Tensor]) -> None:
        """Refuse to keep weights or moments that are not finite, of which the first worker has all.

        Raises:
            NotFiniteError: on all workers alike.
        """
        damaged = first_damaged(tensors)
        if greatest_over_workers([int(damaged is not None)]) == [1]:
            raise self._after_last_step(f"a weight ({damaged or 'of worker 0'})")

    def _probe(self, learner: Learner) -> None:
        """Let the network that is to be exported read some rows of the last step.

        Raises:
            NotFiniteError: weights that are finite may be so large that an output is not.
        """
        parts = share_of_batch(self._plan.batch(max(0, self.next_step - 1)), 0, world_size())
        learner.network.eval()
        with torch.inference_mode():
            outputs = learner.network(learner.rows(self._data.batch(parts))[:PROBED_ROWS])
        if not bool(torch.isfinite(outputs).all()):
            raise self._after_last_step("an output of the trained network")

    def _after_last_step(self, what: str) -> NotFiniteError:
        parts = self._plan.batch(max(0, self.next_step - 1))
        return not_finite(what, self.next_step - 1, [part.task for part in parts], self._data.names(parts))

    def _find_checkpoint(self) -> Checkpoint | None:
        """The newest whole checkpoint, which the first worker looks for."""
        # One worker looks, because it discards damaged ones, which the others might be reading.
        newest = last_step(self.job.checkpoints) if rank() == 0 else None
        (step,) = greatest_over_workers([-1 if newest is None else newest])
        return None if step < 0 else read_checkpoint(self.job.checkpoints, step)

    def _prepare_next(self) -> Future[PreparedStep] | None:
        """Read, tokenise and pad the next step while this one is computed."""
        return None if self.finished else self._pool.submit(self._prepare, self.next_step)

    def _prepare(self, step: int) -> PreparedStep:
        parts = self._plan.batch(step)
        tasks = Counter({part.task: len(part.rows) for part in parts})
        batch = self._data.batch(share_of_batch(parts, rank(), world_size()))
        return tasks, batch, token_batches(self._learner.network, self._learner.rows(batch), self._room.limits)

    def _measurement_is_due(self) -> bool:
        settings, steps = self.job.config.validation, self.job.config.steps
        return settings is not None and (self.next_step % settings.every == 0 or self.next_step == steps)

    def _ranked(self, held_out: HeldOut) -> dict[str, float]:
        """What the weights of now measure on the split; all workers must call it."""
        return self._room.run_fitting(
            lambda limits: held_out.measure(self._engine, limits, self.next_step), self.job.encoder.batch_tokens
        )

    def _measure(self) -> dict[str, float]:
        """Rank the validation split, and keep the weights if they never did better.

        Raises:
            ConfigError: no group of the split says which candidates are better.
        """
        if self._held_out is None:
            return {}
        tasks = self._ranked(self._held_out)
        if not tasks:
            raise ConfigError(
                "train.validation: in every group of the split all candidates are worth the same, so that any ranking "
                "is as good as another; make the split larger"
            )
        # Every worker decides alike, because the measures are summed over all before.
        if self._stopping.add(self.next_step, tasks):
            self._best = self._engine.weights()
        return tasks
