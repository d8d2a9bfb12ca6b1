"""What is minimised: from the vectors of a batch to a loss for each query, by its task's recipe.

The scores of a query count against its own candidates and, as in-batch negatives, against those of all workers. The
mean over several prefixes of the vectors is taken where they are wanted (Matryoshka).

B queries of this worker, M candidates of a group, N candidates of all workers, D width of the vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from embedder.config.tasks import TaskSpec
from embedder.config.train import TrainConfig
from embedder.errors import ConfigError
from embedder.models.transfer import upload
from embedder.training.distributed import gather, rank
from embedder.training.losses import (
    Scores,
    contrastive,
    graded_distillation,
    kl_distillation,
    margin_mse,
    reference_distillation,
)
from embedder.training.training_rows import Batch


class Groups(NamedTuple):
    """What is known of the groups of some queries."""

    own_BM: Tensor
    """Columns of the query's own candidates."""
    valid_BM: Tensor
    """False where a group has fewer than M candidates."""
    reward_BM: Tensor
    """Rewards of the own candidates; 0 where the task has none."""
    positive_BM: Tensor
    """True for known positives."""
    identity_BK: Tensor
    """Identities, as in `Columns`, of the own candidates and of what else is no negative of the query, its answers
    among them; NO_IDENTITY fills up."""

    def select(self, rows: Tensor) -> Groups:
        return Groups(*(value[rows] for value in self))


class Columns(NamedTuple):
    """What is known of the candidates of the global batch, in the order of the gathered vectors."""

    identity_N3: Tensor
    """Hashes of a candidate's text, its id and its answer, by which equal candidates are found over workers."""
    valid_N: Tensor
    """False for padding."""


@dataclass(frozen=True)
class Objective:
    """The settings of the loss."""

    tasks: Mapping[str, TaskSpec]
    temperature: float
    """The cosine is divided by it (tau)."""
    dimensions: Sequence[int] = ()
    """Prefixes of the vector that must be vectors themselves (Matryoshka); the whole vector always counts."""

    @classmethod
    def of(cls, tasks: Mapping[str, TaskSpec], config: TrainConfig) -> Objective:
        return cls(tasks, config.temperature, config.matryoshka_dimensions)

    def batch_losses(self, vectors: Tensor, batch: Batch) -> Tensor:
        """One loss for each of this worker's queries, shape (B,), against the candidates of all workers.

        Args:
            vectors: Those of the batch's texts, in the order of `Batch.prompted`.
            batch: This worker's share of the global batch.

        Raises:
            ConfigError: a prefix is longer than the vectors.
        """
        query_BD, own_KD = vectors[: len(batch.queries)], vectors[len(batch.queries) :]
        groups, columns = gather_groups(batch, query_BD.device)
        # The gather keeps its gradient, because a candidate learns from the queries of the other workers too: without
        # that the result would depend on the number of workers.
        return self.losses(query_BD, gather(own_KD), batch.tasks, groups, columns)

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
        rows_of = {
            name: upload(torch.tensor([i for i, task in enumerate(task_of) if task == name]), query_BD.device)
            for name in dict.fromkeys(task_of)
        }
        for width in widths:
            query_Bd, candidate_Nd = _prefix(query_BD, width), _prefix(candidate_ND, width)
            for name, rows in rows_of.items():
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


def gather_groups(batch: Batch, device: torch.device) -> tuple[Groups, Columns]:
    """What is known of this worker's groups, and of the candidates of all workers in the order of `gather`."""
    values = (batch.valid_BM, batch.identity_BM3, batch.known_BP, batch.reward_BM, batch.positive_BM)
    valid_BM, identity_BM3, known_BP, reward_BM, positive_BM = (upload(value, device) for value in values)
    # Gathered as bytes, because NCCL knows no booleans.
    columns = Columns(gather(identity_BM3.flatten(0, 1)), gather(valid_BM.flatten().to(torch.uint8)).bool())
    own_BM = torch.arange(valid_BM.numel(), device=device).view(valid_BM.shape) + rank() * valid_BM.numel()
    # Without the answers of the own candidates, because most of them are wrong for the query.
    identity_BK = torch.cat([identity_BM3[..., :2].flatten(1), known_BP], dim=1)
    return Groups(own_BM, valid_BM, reward_BM, positive_BM, identity_BK), columns


def batch_scores(
    query_BD: Tensor, candidate_ND: Tensor, groups: Groups, columns: Columns, *, temperature: float, in_batch: bool
) -> Scores:
    """Scores of queries against the candidates of the global batch (unit vectors both).

    Without `in_batch` no other group's candidate is a negative.
    """
    is_own_BN = torch.zeros(len(query_BD), len(candidate_ND), dtype=torch.bool, device=query_BD.device)
    is_own_BN.scatter_(1, groups.own_BM, True)
    foreign_BN = columns.valid_N & ~is_own_BN & ~_known(groups.identity_BK, columns.identity_N3) & in_batch
    score_BN = query_BD @ candidate_ND.T / temperature
    return Scores(score_BN, groups.own_BM, groups.valid_BM, groups.reward_BM, groups.positive_BM, foreign_BN)


def _known(identity_BK: Tensor, identity_N3: Tensor) -> Tensor:
    """Tell whether a column's text, id or answer is among a query's identities; takes memory of the order of (B, N)."""
    # Comparing all pairs would take B x K x N. An identity's number is the place of its first equal in the sorted row;
    # `unique` would number them as well, but how many there are is a result that the host would wait for.
    sorted_S = identity_N3.flatten().sort().values
    number_N3, number_BK = (torch.searchsorted(sorted_S, values) for values in (identity_N3, identity_BK))
    number_BK = number_BK.clamp(max=len(sorted_S) - 1)
    # What stands in no column is counted in one column more than there are, which nobody reads.
    number_BK = number_BK.where(sorted_S[number_BK] == identity_BK, len(sorted_S))
    known_BS = torch.zeros(len(identity_BK), len(sorted_S) + 1, dtype=torch.bool, device=identity_BK.device)
    known_BS.scatter_(1, number_BK, True)
    return known_BS[:, number_N3].any(-1)


def task_losses(scores: Scores, task: TaskSpec) -> Tensor:
    """The losses of queries of one task, shape (B,)."""
    match task.loss:
        case "graded":
            return graded_distillation(scores, task.alpha)
        case "kl":
            return kl_distillation(scores, task.alpha)
        case "margin_mse":
            return margin_mse(scores, task.alpha)
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
