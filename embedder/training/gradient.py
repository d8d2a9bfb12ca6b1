"""The gradient of a step, however large its batch.

A batch whose activations fit into memory is encoded in one graph. A larger one is encoded twice (GradCache, Gao et al.
2021): once without a graph, for the loss and its gradient by each vector; then in chunks, each with a graph of its own
that takes that gradient further to the weights and is forgotten. The gradient is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from embedder.models.encoder import TokenRow, embed_batches, length_batches
from embedder.training.distributed import greatest_over_workers


class Network(Protocol):
    """What reads rows and takes gradients: a `TrainingEngine`, or in a test a bare encoder."""

    @property
    def device(self) -> torch.device:
        """The device that the outputs are on."""

    @property
    def lockstep(self) -> bool:
        """True where all workers must encode and go back equally often."""

    def __call__(self, rows: list[TokenRow]) -> Tensor:
        """The output of each row, with its graph: a unit vector, or a score."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss to that of the step."""


@dataclass(frozen=True)
class TokenLimits:
    """How much is encoded at a time."""

    batch_tokens: int
    """Padded tokens of a forward pass."""
    chunk_tokens: int | None
    """Padded tokens whose activations may be kept at once; null: those of any batch."""


def accumulate_gradient(
    network: Network,
    rows: list[TokenRow],
    losses_of: Callable[[Tensor], Tensor],
    weight_B: Tensor,
    memory: TokenLimits,
    dropout_seed: int | None = None,
) -> Tensor:
    """Add the gradient of the weighted mean of `losses_of(vectors of the rows)`; returns the losses without weights.

    Equal rows are encoded once, and the gradient of all their uses flows through that one. With dropout, a seed makes
    a chunk's second pass drop what its first one dropped. The losses (B,) have no graph and are still on the device:
    reading them before the update would make a GPU wait for the host.
    """
    distinct, position = distinct_rows(rows)
    batches, padded = _batches(network, distinct, memory)
    if memory.chunk_tokens is None or padded <= memory.chunk_tokens:
        loss_B = losses_of(_embed(network, distinct, batches, dropout_seed)[position])
        network.backward((loss_B * weight_B).mean())
        return loss_B.detach()
    with torch.no_grad():
        vectors = _embed(network, distinct, batches, dropout_seed)
    # From here on the vectors are leaves, so that the loss's gradient ends at them and no activation is kept.
    vectors.requires_grad_()
    loss_B = losses_of(vectors[position])
    (slope_UD,) = torch.autograd.grad((loss_B * weight_B).mean(), vectors)
    for number, batch in enumerate(batches):
        _seed(dropout_seed, number)
        network.backward((network([distinct[i] for i in batch]) * slope_UD[batch]).sum())
        slope_UD[batch] = 0  # a row that lockstep repeats counts once
    return loss_B.detach()


def embed(network: Network, rows: list[TokenRow], memory: TokenLimits) -> Tensor:
    """Vectors of the rows, without a graph; all workers must call it."""
    distinct, number = distinct_rows(rows)
    with torch.no_grad():
        return _embed(network, distinct, _batches(network, distinct, memory)[0], None)[number]


def distinct_rows(rows: list[TokenRow]) -> tuple[list[TokenRow], list[int]]:
    """Each different row once, in the order of first appearance, and the number of each row among them."""
    first: dict[tuple[int, ...], int] = {}
    number = [first.setdefault(tuple(row), len(first)) for row in rows]
    return [list(row) for row in first], number


def _batches(network: Network, rows: list[TokenRow], memory: TokenLimits) -> tuple[list[list[int]], int]:
    """The forward passes as indices of rows, and their padded tokens.

    In lockstep both are those of the worker with most: the others repeat a row, whose second vector nobody uses.
    """
    limit = min(memory.batch_tokens, memory.chunk_tokens or memory.batch_tokens)
    batches = list(length_batches([len(row) for row in rows], limit))
    padded = sum(len(batch) * len(rows[batch[-1]]) for batch in batches)
    if network.lockstep:
        # Sharded weights are gathered in every pass: a worker that made one pass fewer would leave the others waiting.
        count, padded = greatest_over_workers([len(batches), padded], network.device)
        batches += [[0]] * (count - len(batches))
    return batches, padded


def _embed(network: Network, rows: list[TokenRow], batches: list[list[int]], dropout_seed: int | None) -> Tensor:
    numbers = iter(range(len(batches)))

    def embed_one(batch: list[TokenRow]) -> Tensor:
        _seed(dropout_seed, next(numbers))
        return network(batch)

    return embed_batches(embed_one, rows, batches)


def _seed(dropout_seed: int | None, batch: int) -> None:
    if dropout_seed is not None:
        # By batch and not once a step, because a chunk's second pass follows other draws than its first one did.
        torch.manual_seed(dropout_seed + batch)
