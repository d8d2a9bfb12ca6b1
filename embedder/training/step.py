"""The loss of one step, from this worker's batch to a scalar with its graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from embedder.model import TokenRow
from embedder.tasks import TaskSpec
from embedder.training.data import Batch
from embedder.training.distributed import gather, rank, world_size
from embedder.training.losses import Scores, contrastive, graded_distillation, kl_distillation

Tokenize = Callable[[list[str]], list[TokenRow]]
Embed = Callable[[list[TokenRow]], Tensor]


def batch_loss(tokenize: Tokenize, embed: Embed, batch: Batch, task: TaskSpec, temperature: float) -> Tensor:
    """The task's loss over this worker's queries, against the candidates of all workers."""
    texts = [task.query_instruction + text for text in batch.queries]
    texts += [task.key_instruction + text for text in batch.candidates]
    vectors = embed(tokenize(texts))
    query_BD, own_KD = vectors[: len(batch.queries)], vectors[len(batch.queries) :]
    scores = batch_scores(query_BD, own_KD, batch, temperature, task.in_batch_negatives)
    match task.loss:
        case "graded":
            return graded_distillation(scores, task.reward_temperature)
        case "kl":
            return kl_distillation(scores, task.reward_temperature)
        case "contrastive":
            return contrastive(scores)


def batch_scores(query_BD: Tensor, own_KD: Tensor, batch: Batch, temperature: float, in_batch: bool) -> Scores:
    """Scores against the candidates of all workers; K = B x M candidates of this worker."""
    device = query_BD.device
    candidate_ND = gather(own_KD)
    valid_BM, key_BM = batch.valid_BM.to(device), batch.key_BM.to(device)
    key_N = gather(key_BM.flatten())
    valid_N = gather(valid_BM.flatten().to(torch.uint8)).bool()
    queries, size = valid_BM.shape
    own_BM = torch.arange(queries * size, device=device).view(queries, size) + rank() * queries * size
    is_own_BN = torch.zeros(queries, len(key_N), dtype=torch.bool, device=device).scatter_(1, own_BM, True)
    # A column equal in text to an own candidate is that candidate once more, not a negative.
    same_text_BN = (key_BM.unsqueeze(2) == key_N).any(1)
    foreign_BN = valid_N & ~is_own_BN & ~same_text_BN & in_batch
    return Scores(query_BD @ candidate_ND.T / temperature, own_BM, valid_BM, batch.reward_BM.to(device), foreign_BN)


def share_of_batch(rows: list[int]) -> list[int]:
    """The rows of a global batch that this worker takes: equal, contiguous parts in rank order."""
    size = len(rows) // world_size()
    return rows[rank() * size : (rank() + 1) * size]
