"""The rows of a step as what the network reads: each different row once, in padded batches.

K rows of the step, U different ones among them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedder.models.encoder import PaddedRows, TextEncoder, TokenRow, length_batches
from embedder.models.transfer import upload
from embedder.training.cross_encoder import CrossEncoder

PASS_TOKENS = 8192
"""Padded tokens that another forward and backward pass must save a GPU: launching its kernels keeps the host busy."""


@dataclass(frozen=True)
class TokenLimits:
    """How much is encoded at a time."""

    batch_tokens: int
    """Padded tokens of a forward pass."""
    chunk_tokens: int | None
    """Padded tokens whose activations may be kept at once; null: those of any batch."""

    @property
    def pass_tokens(self) -> int:
        """Padded tokens of a pass that is followed by its backward pass."""
        return min(self.batch_tokens, self.chunk_tokens or self.batch_tokens)


@dataclass(frozen=True)
class TokenBatches:
    """The rows of a step, ready to be read."""

    rows: list[TokenRow]
    passes: list[PaddedRows]
    place_K: Tensor
    """Where the output of each row stands among the outputs of all passes; on the network's device."""
    padded: int
    """Padded tokens of all passes."""
    limits: TokenLimits

    @property
    def at_once(self) -> bool:
        """Whether the activations of all passes may be kept together."""
        return self.limits.chunk_tokens is None or self.padded <= self.limits.chunk_tokens


def token_batches(network: TextEncoder | CrossEncoder, rows: list[TokenRow], limits: TokenLimits) -> TokenBatches:
    """Cut rows into passes within the limits; touches no weight, so that it may run beside a step."""
    distinct, number = distinct_rows(rows)
    lengths, most = network.row_lengths(distinct), limits.pass_tokens
    if network.device.type == "cuda":
        batches = thrifty_batches(lengths, most, PASS_TOKENS)
    else:
        batches = list(length_batches(lengths.tolist(), most))
    passes = [network.padded([distinct[i] for i in batch], batch) for batch in batches]
    order = np.concatenate(batches)
    place_U = np.empty_like(order)
    place_U[order] = np.arange(len(order))
    place_K = upload(torch.from_numpy(place_U[number]), network.device)
    padded = sum(len(batch) * int(lengths[batch[-1]]) for batch in batches)
    return TokenBatches(rows, passes, place_K, padded, limits)


def distinct_rows(rows: list[TokenRow]) -> tuple[list[TokenRow], list[int]]:
    """Each different row once, in the order of first appearance, and the number of each row among them."""
    first: dict[tuple[int, ...], int] = {}
    number = [first.setdefault(tuple(row), len(first)) for row in rows]
    return [list(row) for row in first], number


def thrifty_batches(lengths: NDArray[np.int64], most: int, pass_tokens: int) -> list[list[int]]:
    """Indices sorted by length, cut where padded tokens and passes, each worth so many tokens, are fewest in all.

    Within a batch rows x longest row stays within `most`, but for one row alone.
    """
    order = np.argsort(lengths, kind="stable")
    sorted_U = lengths[order]
    # cost[k] is that of the first k rows, whose last batch begins at first[k].
    cost, first = np.zeros(len(order) + 1), np.zeros(len(order) + 1, dtype=np.int64)
    for count in range(1, len(order) + 1):
        longest = int(sorted_U[count - 1])
        begins = np.arange(max(0, count - max(1, most // max(1, longest))), count)
        costs = cost[begins] + (count - begins) * longest + pass_tokens
        best = int(costs.argmin())
        cost[count], first[count] = costs[best], begins[best]
    batches, end = list[list[int]](), len(order)
    while end:
        batches.append(order[first[end] : end].tolist())
        end = int(first[end])
    return batches[::-1]
