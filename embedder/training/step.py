"""The losses of one step, from this worker's batch to a value a query with its graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from embedder.models.encoder import TokenRow
from embedder.training.distributed import gather, rank
from embedder.training.objective import Objective
from embedder.training.scores import Columns, Groups
from embedder.training.training_rows import Batch

Tokenize = Callable[[list[str]], list[TokenRow]]
Embed = Callable[[list[TokenRow]], Tensor]


def batch_losses(tokenize: Tokenize, embed: Embed, batch: Batch, objective: Objective) -> Tensor:
    """One loss for each of this worker's queries, shape (B,), against the candidates of all workers."""
    return vector_losses(embed(tokenize(batch.prompted(objective.tasks))), batch, objective)


def vector_losses(vectors: Tensor, batch: Batch, objective: Objective) -> Tensor:
    """The same from the vectors of the batch's texts, in the order of `Batch.prompted`."""
    query_BD, own_KD = vectors[: len(batch.queries)], vectors[len(batch.queries) :]
    groups, columns = gather_keys(batch, query_BD.device)
    return objective.losses(query_BD, gather(own_KD), batch.tasks, groups, columns)


def gather_keys(batch: Batch, device: torch.device) -> tuple[Groups, Columns]:
    """What is known of this worker's groups, and of the candidates of all workers in the order of `gather`."""
    valid_BM, key_BM2, known_BP = (value.to(device) for value in (batch.valid_BM, batch.key_BM2, batch.known_BP))
    columns = Columns(gather(key_BM2.flatten(0, 1)), gather(valid_BM.flatten().to(torch.uint8)).bool())
    own_BM = torch.arange(valid_BM.numel(), device=device).view(valid_BM.shape) + rank() * valid_BM.numel()
    key_BK = torch.cat([key_BM2.flatten(1), known_BP], dim=1)
    return Groups(own_BM, valid_BM, batch.reward_BM.to(device), batch.positive_BM.to(device), key_BK), columns
