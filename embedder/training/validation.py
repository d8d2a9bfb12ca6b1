"""How well the encoder ranks groups it is never trained on, and which of its states did best."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from embedder.errors import ConfigError, NotFiniteError
from embedder.training.batch_plan import BatchPart
from embedder.training.distributed import rank, sum_over_workers, world_size
from embedder.training.gradient import Network, embed
from embedder.training.learners import Learner
from embedder.training.token_batches import TokenLimits, token_batches
from embedder.training.training_rows import TrainingRows


class HeldOut:
    """The validation split, of which each worker ranks a share."""

    def __init__(self, path: Path, learner: Learner) -> None:
        """Read and tokenise this worker's share.

        Raises:
            ConfigError: there is no group.
        """
        self._learner = learner
        rows = TrainingRows(path)
        parts = [BatchPart(task, list(range(rank(), size, world_size()))) for task, size in rows.sizes.items()]
        self._names = sorted(rows.sizes)
        if not self._names:
            raise ConfigError("train.validation: no group is kept apart that can be ranked; raise share, or drop it")
        # A worker without a group takes one all the same, because all must call the network equally often.
        self._batch = rows.batch([part for part in parts if part.rows] or [BatchPart(self._names[0], [0])])
        self._is_spare = not any(part.rows for part in parts)
        self._rows = learner.rows(self._batch)

    def measure(self, network: Network, memory: TokenLimits, steps: int = 0) -> dict[str, float]:
        """Mean quality of each task over the groups whose candidates differ in worth; all workers must call it.

        A task without such a group has none.

        Raises:
            NotFiniteError: after so many steps a score is not finite, on whichever worker.
        """
        batch = self._batch
        # Nothing is dropped here, so that a state has one measure.
        with evaluating(self._learner.network):
            batches = token_batches(self._learner.network, self._rows, memory)
            score_BM = self._learner.scores(embed(network, batches), batch).cpu()
        totals = {task: [0.0, 0.0] for task in self._names}
        for i, task in enumerate([] if self._is_spare else batch.tasks):
            values = (
                value_BM[i][batch.valid_BM[i]].tolist() for value_BM in (score_BM, batch.positive_BM, batch.reward_BM)
            )
            quality = self._learner.quality(*values)
            if quality is not None:
                totals[task][0] += quality
                totals[task][1] += 1
        bad = float((batch.valid_BM & ~torch.isfinite(score_BM)).sum())
        *summed, bad = sum_over_workers([*(value for pair in totals.values() for value in pair), bad])
        if bad:
            # A ranking by NaN would be taken for a measurement, and the weights for the best.
            raise NotFiniteError(
                f"train.validation: {bad:,.0f} scores of held-out candidates are not finite after {steps:,} steps "
                f"(tasks {', '.join(self._names)}); lower train.learning_rate, or take another encoder if none was made"
            )
        pairs = zip(self._names, summed[::2], summed[1::2], strict=True)
        return {task: total / groups for task, total, groups in pairs if groups}


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode for a while."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)


@dataclass
class EarlyStopping:
    """The best measurement so far, and whether it lies too far back."""

    patience: int | None
    history: list[dict[str, Any]] = field(default_factory=list)
    """Each measurement as {"steps": made before it, "tasks": NDCG by task, "mean": over the tasks}."""
    best: int = 0
    """Position of the best in the history; the earliest of equals."""

    def add(self, steps: int, tasks: Mapping[str, float]) -> bool:
        """Take in a measurement; returns whether it is the best so far."""
        mean = sum(tasks.values()) / len(tasks)
        self.history.append({"steps": steps, "tasks": dict(tasks), "mean": mean})
        is_best = len(self.history) == 1 or mean > self.history[self.best]["mean"]
        if is_best:
            self.best = len(self.history) - 1
        return is_best

    @property
    def exhausted(self) -> bool:
        return self.patience is not None and len(self.history) - 1 - self.best >= self.patience

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the arguments, besides `patience`, of one that goes on alike."""
        return {"history": list(self.history), "best": self.best}
