"""The loss of one step, from this worker's batch to a scalar with its graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from embedder.model import TokenRow
from embedder.tasks import TaskSpec
from embedder.training.data import Batch
from embedder.training.distributed import gather, rank, world_size
from embedder.training.losses import contrastive, graded_distillation, kl_distillation
from embedder.training.scores import Columns, Groups, batch_scores

Tokenize = Callable[[list[str]], list[TokenRow]]
Embed = Callable[[list[TokenRow]], Tensor]


def batch_loss(tokenize: Tokenize, embed: Embed, batch: Batch, task: TaskSpec, temperature: float) -> Tensor:
    """The task's loss over this worker's queries, against the candidates of all workers."""
    texts = [task.query_instruction + text for text in batch.queries]
    texts += [task.key_instruction + text for text in batch.candidates]
    vectors = embed(tokenize(texts))
    query_BD, own_KD = vectors[: len(batch.queries)], vectors[len(batch.queries) :]
    groups, columns = gather_keys(batch, query_BD.device)
    scores = batch_scores(
        query_BD, gather(own_KD), groups, columns, temperature=temperature, in_batch=task.in_batch_negatives
    )
    match task.loss:
        case "graded":
            return graded_distillation(scores, task.reward_temperature)
        case "kl":
            return kl_distillation(scores, task.reward_temperature)
        case "contrastive":
            return contrastive(scores)


def gather_keys(batch: Batch, device: torch.device) -> tuple[Groups, Columns]:
    """What is known of this worker's groups, and of the candidates of all workers in the order of `gather`."""
    valid_BM, key_BM = batch.valid_BM.to(device), batch.key_BM.to(device)
    columns = Columns(gather(key_BM.flatten()), gather(valid_BM.flatten().to(torch.uint8)).bool())
    own_BM = torch.arange(valid_BM.numel(), device=device).view(valid_BM.shape) + rank() * valid_BM.numel()
    return Groups(own_BM, valid_BM, batch.reward_BM.to(device), key_BM), columns


def share_of_batch(rows: list[int]) -> list[int]:
    """The rows of a global batch that this worker takes: equal, contiguous parts in rank order."""
    size = len(rows) // world_size()
    return rows[rank() * size : (rank() + 1) * size]
