"""What is minimised: each query's loss by its task's recipe, over one or several prefixes of the vectors.

A pure function of the vectors of a global batch. B queries of this worker, N candidates of all workers, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from embedder.config.tasks import TaskSpec
from embedder.config.train import TrainConfig
from embedder.errors import ConfigError
from embedder.training.losses import (
    contrastive,
    graded_distillation,
    kl_distillation,
    margin_mse,
    reference_distillation,
)
from embedder.training.scores import Columns, Groups, Scores, batch_scores


@dataclass(frozen=True)
class Objective:
    """The settings of the loss."""

    tasks: Mapping[str, TaskSpec]
    temperature: float
    """Of the cosine (tau)."""
    dimensions: Sequence[int] = ()
    """Prefixes of the vector that must be vectors themselves (Matryoshka); the whole vector always counts."""

    @classmethod
    def of(cls, tasks: Mapping[str, TaskSpec], config: TrainConfig) -> Objective:
        """The objective of a run file."""
        return cls(tasks, config.temperature, config.matryoshka_dimensions)

    def losses(
        self, query_BD: Tensor, candidate_ND: Tensor, task_of: Sequence[str], groups: Groups, columns: Columns
    ) -> Tensor:
        """One loss a query, shape (B,), mean over the prefixes; `task_of` names the task of each query.

        The candidates of all tasks of the batch count as in-batch candidates.

        Raises:
            ConfigError: a prefix is longer than the vectors.
        """
        widths = prefix_widths(self.dimensions, query_BD.shape[1])
        total_B = torch.zeros(len(query_BD), dtype=query_BD.dtype, device=query_BD.device)
        for width in widths:
            query_Bd, candidate_Nd = _prefix(query_BD, width), _prefix(candidate_ND, width)
            for name in dict.fromkeys(task_of):
                rows = torch.tensor([i for i, task in enumerate(task_of) if task == name], device=query_BD.device)
                task = self.tasks[name]
                scores = batch_scores(
                    query_Bd[rows],
                    candidate_Nd,
                    groups.select(rows),
                    columns,
                    temperature=self.temperature,
                    in_batch=task.in_batch_negatives,
                )
                total_B = total_B.index_add(0, rows, task_losses(scores, task).to(total_B.dtype))
        return total_B / len(widths)


def task_losses(scores: Scores, task: TaskSpec) -> Tensor:
    """The losses of queries of one task, shape (B,)."""
    match task.loss:
        case "graded":
            return graded_distillation(scores, task.reward_temperature)
        case "kl":
            return kl_distillation(scores, task.reward_temperature)
        case "margin_mse":
            return margin_mse(scores, task.reward_temperature)
        case "reference":
            return reference_distillation(scores)
        case "contrastive":
            return contrastive(scores)


def prefix_widths(dimensions: Sequence[int], width: int) -> list[int]:
    """The prefixes that are trained, the whole vector last.

    Raises:
        ConfigError: one is longer than the vector.
    """
    if max(dimensions, default=0) > width:
        raise ConfigError(
            f"train.matryoshka_dimensions is {list(dimensions)}, but the encoder's vectors have {width} dimensions; "
            f"leave out those above {width}"
        )
    return sorted({*dimensions, width})


def _prefix(vector_ND: Tensor, width: int) -> Tensor:
    """The first `width` dimensions as unit vectors."""
    return vector_ND if width == vector_ND.shape[1] else F.normalize(vector_ND[:, :width], dim=-1)
