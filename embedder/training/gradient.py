"""The gradient of a step, however large its batch.

A batch whose activations fit into memory is encoded in one graph. A larger one is encoded twice (GradCache, Gao et al.
2021): once without a graph, for the loss and its gradient by each vector; then pass by pass, each with a graph of its
own that takes that gradient further to the weights and is forgotten. The gradient is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from embedder.models.encoder import PaddedRows
from embedder.training.distributed import greatest_over_workers
from embedder.training.token_batches import TokenBatches


class Network(Protocol):
    """What reads rows and takes gradients: a `TrainingEngine`, or in a test a bare encoder."""

    @property
    def lockstep(self) -> bool:
        """True where all workers must encode and go back equally often."""

    def __call__(self, rows: PaddedRows) -> Tensor:
        """The output of each row, with its graph: a unit vector, or a score."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss to that of the step."""


def accumulate_gradient(
    network: Network,
    batches: TokenBatches,
    losses_of: Callable[[Tensor], Tensor],
    weight_B: Tensor,
    dropout_seed: int | None = None,
) -> Tensor:
    """Add the gradient of the weighted mean of `losses_of(outputs of the rows)`; returns the losses without weights.

    Equal rows are encoded once, and the gradient of all their uses flows through that one. With dropout, a seed makes
    the second time drop what the first one dropped. The losses (B,) have no graph and are still on the device.
    """
    passes, at_once = agreed_passes(network, batches)
    if at_once:
        loss_B = losses_of(_embed(network, passes, dropout_seed)[batches.place_K])
        network.backward((loss_B * weight_B).mean())
        return loss_B.detach()
    with torch.no_grad():
        vectors = _embed(network, passes, dropout_seed)
    # From here on the vectors are leaves, so that the loss's gradient ends at them and no activation is kept.
    vectors.requires_grad_()
    loss_B = losses_of(vectors[batches.place_K])
    (slopes,) = torch.autograd.grad((loss_B * weight_B).mean(), vectors)
    sizes = [len(rows.indices) for rows in passes]
    for number, (rows, slope) in enumerate(zip(passes, slopes.split(sizes), strict=True)):
        _seed(dropout_seed, number)
        network.backward((network(rows) * slope).sum())
    return loss_B.detach()


def embed(network: Network, batches: TokenBatches) -> Tensor:
    """Outputs of the rows, without a graph; all workers must call it."""
    with torch.no_grad():
        return _embed(network, agreed_passes(network, batches)[0], None)[batches.place_K]


def agreed_passes(network: Network, batches: TokenBatches) -> tuple[list[PaddedRows], bool]:
    """The passes, and whether they are encoded at once; in lockstep as many, and as the worker with most says."""
    passes = batches.passes
    if not network.lockstep:
        return passes, batches.at_once
    # Sharded weights are gathered in every pass: a worker that made one pass fewer would leave the others waiting. A
    # row that is read again, whose output nobody uses, gets no gradient.
    count, in_chunks = greatest_over_workers([len(passes), int(not batches.at_once)])
    return passes + [passes[0].part([0])] * (count - len(passes)), not in_chunks


def _embed(network: Network, passes: list[PaddedRows], dropout_seed: int | None) -> Tensor:
    outputs = []
    for number, rows in enumerate(passes):
        _seed(dropout_seed, number)
        outputs.append(network(rows))
    return torch.cat(outputs)


def _seed(dropout_seed: int | None, number: int) -> None:
    if dropout_seed is not None:
        # By pass and not once a step, because the second time follows other draws than the first one did.
        torch.manual_seed(dropout_seed + number)
