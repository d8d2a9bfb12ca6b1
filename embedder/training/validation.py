"""How well the encoder ranks groups it is never trained on, and which of its states did best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embedder.config.tasks import TaskSpec
from embedder.models.encoder import TokenRow
from embedder.training.batch_plan import BatchPart
from embedder.training.distributed import rank, sum_over_workers, world_size
from embedder.training.gradient import Network, TokenLimits, embed
from embedder.training.training_rows import TrainingRows


def ndcg(scores: Sequence[float], gains: Sequence[float], cutoff: int) -> float:
    """NDCG@cutoff of one ranking; of equal scores the lesser gain comes first, so that one vector for all earns little.

    Gains are 0 and more, and not all equal.
    """
    gain_M = np.asarray(gains, dtype=np.float64)
    order = np.lexsort((gain_M, -np.asarray(scores, dtype=np.float64)))
    discount = 1 / np.log2(np.arange(2, 2 + min(cutoff, len(gain_M))))
    best = np.sort(gain_M)[::-1][:cutoff] @ discount
    return float(gain_M[order][:cutoff] @ discount / best)


def gains_of(positive_M: Sequence[bool], reward_M: Sequence[float]) -> list[float] | None:
    """What each candidate of a group is worth: 1 for a known positive where there are any, else its reward above the
    least; null where all are worth the same."""
    gains = [float(known) for known in positive_M]
    if not any(gains):
        gains = [reward - min(reward_M) for reward in reward_M]
    return gains if min(gains) < max(gains) else None


class HeldOut:
    """The validation split, of which each worker ranks a share."""

    def __init__(
        self, path: Path, tasks: Mapping[str, TaskSpec], tokenize: Callable[[list[str]], list[TokenRow]]
    ) -> None:
        rows = TrainingRows(path)
        parts = [BatchPart(task, list(range(rank(), size, world_size()))) for task, size in rows.sizes.items()]
        self._names = sorted(rows.sizes)
        self._batch = rows.batch([part for part in parts if part.rows] or [BatchPart(self._names[0], [0])])
        self._is_spare = not any(part.rows for part in parts)
        self._rows = tokenize(self._batch.prompted(tasks))

    def measure(self, network: Network, memory: TokenLimits, cutoff: int) -> dict[str, float]:
        """Mean NDCG@cutoff of each task over the groups whose candidates differ in worth; all workers must call it.

        A task without such a group has none.
        """
        batch, count = self._batch, len(self._batch.queries)
        vectors = embed(network, self._rows, memory)
        query_BD, candidate_BMD = vectors[:count], vectors[count:].view(*batch.valid_BM.shape, -1)
        score_BM = torch.einsum("bd,bmd->bm", query_BD, candidate_BMD).cpu()
        totals = {task: [0.0, 0.0] for task in self._names}
        for i, task in enumerate([] if self._is_spare else batch.tasks):
            valid_M = batch.valid_BM[i]
            gains = gains_of(batch.positive_BM[i][valid_M].tolist(), batch.reward_BM[i][valid_M].tolist())
            if gains is not None:
                totals[task][0] += ndcg(score_BM[i][valid_M].tolist(), gains, cutoff)
                totals[task][1] += 1
        summed = sum_over_workers([value for pair in totals.values() for value in pair], network.device)
        pairs = zip(self._names, summed[::2], summed[1::2], strict=True)
        return {task: total / groups for task, total, groups in pairs if groups}


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
        """Whether the training should stop."""
        return self.patience is not None and len(self.history) - 1 - self.best >= self.patience

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"history": list(self.history), "best": self.best}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Undo `state`."""
        self.history, self.best = list(state["history"]), int(state["best"])
