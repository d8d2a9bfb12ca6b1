"""Exact dense search on a given device, for any number of passages: they pass by in blocks, and the queries stay.

A product of many queries and passages in half precision finds candidates. From the vectors themselves it is known how
far such a product can be off, so that no pair of the best is missed. The candidates are scored again, pair by pair in
float64, and the scores rounded to float32: a score depends on its two vectors alone, but for one rounding of float32 by
which compiled code, other code and that for a single pair may differ.

Q queries, P passages of a block, D width, W groups of G products each, N pairs, K results.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from embedder.index.exact import Ranked, Vectors
from embedder.models.memory import BatchLimit, halving_on_memory_error

logger = logging.getLogger(__name__)

PairScorer = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Scores (N) from queries (Q, D), passages (P, D), and the rows of each pair."""

BLOCK_ROWS = 16_384
"""Passages of a block."""
TILE_ROWS = 1_024
"""A block is halved down to so many passages when memory runs out."""
PRODUCTS = 2**29
"""Products that a GPU holds at once, 1 GiB in half precision. Fewer would leave it idle between two of them."""
CPU_PRODUCTS = 2**24
"""The same on a CPU, where they are 100 MB: added up in float32 before they are rounded."""
GROUP = 64
"""Products of which the greatest is looked at first: one in 64 numbers is left to compare, for one pass over all."""
PAIRS_AT_ONCE = 2**14
"""Pairs that are scored again together: 200 MB at 768 dimensions."""
ROUNDING = 2.0**-10
"""Relative error of a number in float16, twice over: the other half is for norms, which are taken in float32."""
ADDING = 2.0**-23
"""Relative error of one addition inside a product."""
LEAST = 1e-6
"""What a score is off by its rounding to float32, and a number near 0 by float16's least step, for vectors of unit
length."""
LIMIT = BatchLimit("dense search", "products")


@dataclass(frozen=True)
class _Pairs:
    """Pairs of a query, by its row in its part, and a passage, by its number."""

    query_N: Tensor
    number_N: Tensor
    score_N: Tensor

    def __len__(self) -> int:
        return len(self.query_N)

    def __getitem__(self, chosen: Tensor) -> _Pairs:
        return _Pairs(self.query_N[chosen], self.number_N[chosen], self.score_N[chosen])


class _Block:
    """Passages on the device, and how far their half precision is off."""

    def __init__(self, vector_PD: Tensor, number_P: Tensor) -> None:
        self.vector_PD, self.number_P = vector_PD, number_P
        self.half_PD = vector_PD.half()
        self.longest = _lengths(vector_PD).amax()
        self.error = _lengths(vector_PD - self.half_PD).amax()


class DeviceSearch:
    """The best passages of each query so far, by inner product and then by number.

    `add` takes passages that were not there before; a passage's number breaks ties, so it is its place in the order of
    the ids.
    """

    @torch.inference_mode()
    def __init__(self, query_QD: Vectors, depth: int, device: torch.device) -> None:
        if device.type == "cuda":
            # Or else cuBLAS may round partial sums to half precision, which the bound does not count.
            torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        self.device, self.depth, self.num_queries = device, depth, len(query_QD)
        height = max(1, (PRODUCTS if device.type == "cuda" else CPU_PRODUCTS) // BLOCK_ROWS)
        score_pairs = pair_scorer(device, query_QD.shape[1])
        self._parts = [
            # A copy, because an array from Ray's object store is not writable, as torch wants them.
            _QueryPart(torch.tensor(query_QD[first : first + height]).to(device), depth, score_pairs)
            for first in range(0, len(query_QD), height)
        ]

    @torch.inference_mode()
    def add(self, vector_PD: Tensor, number_P: Tensor) -> None:
        """Take in passages (float32) with their numbers (int64). Copies come before the work."""
        if not len(vector_PD):
            return
        for vectors, numbers in zip(vector_PD.split(BLOCK_ROWS), number_P.split(BLOCK_ROWS), strict=True):
            block = _Block(vectors.to(self.device, non_blocking=True), numbers.to(self.device, non_blocking=True))
            for part in self._parts:
                part.add(block)

    @torch.inference_mode()
    def ranked(self) -> Ranked:
        """The result so far; its rows are numbers."""
        score_QK = torch.full((self.num_queries, self.depth), -torch.inf)
        number_QK = torch.full((self.num_queries, self.depth), -1, dtype=torch.int64)
        first = 0
        for part in self._parts:
            part.settle()
            query, rank = part.best.query_N.long().cpu(), _rank_within_query(part.best.query_N).cpu()
            score_QK[first + query, rank] = part.best.score_N.cpu()
            number_QK[first + query, rank] = part.best.number_N.cpu()
            first += len(part.query_QD)
        return Ranked(score_QK.numpy(), number_QK.numpy())


class _QueryPart:
    """Queries that are searched together, and their best pairs so far besides those that came in last."""

    def __init__(self, query_QD: Tensor, depth: int, score_pairs: PairScorer) -> None:
        self.query_QD, self.depth, self.score_pairs = query_QD, depth, score_pairs
        self.half_QD = query_QD.half()
        self.length_Q = _lengths(self.half_QD)
        self.error_Q = _lengths(query_QD - self.half_QD)
        self.floor_Q = query_QD.new_full((len(query_QD),), -torch.inf)
        """A score below it is not among the best."""
        self.has_floor = False
        none = query_QD.new_empty(0)
        self.best = _Pairs(none.int(), none.long(), none)
        self.waiting: list[_Pairs] = []

    def add(self, block: _Block) -> None:
        """Take in the pairs of a block that may be among the best."""
        # By Cauchy and Schwarz, for what rounding both vectors costs, and then for adding the products up.
        adding = ADDING * self.query_QD.shape[1] * block.longest
        slack_Q = self.error_Q * block.longest + self.length_Q * (block.error + adding)
        tiles = list(range(0, len(block.vector_PD), TILE_ROWS))
        find = partial(self._find, block, slack_Q)
        self.waiting += halving_on_memory_error(
            find, tiles, LIMIT, lambda part: len(part) * TILE_ROWS * len(self.query_QD)
        )
        # Not after each block, because sorting costs as much for few new pairs; not at the end, because waiting pairs
        # take memory and the floors would stay low.
        if sum(map(len, self.waiting)) > self.depth * len(self.query_QD):
            self.settle()

    def _find(self, block: _Block, slack_Q: Tensor, tiles: list[int]) -> list[_Pairs]:
        """Pairs of all queries and some tiles of a block, given by their first rows, with their exact scores."""
        first, last = tiles[0], min(tiles[-1] + TILE_ROWS, len(block.vector_PD))
        product_QP = _half_product(self.half_QD, block.half_PD[first:last])
        # Groups are smaller where there are few passages, so that several are left for each result. A power of two,
        # because it divides a block; the last passages of a corpus are filled up.
        group = min(GROUP, 2 ** (max(1, (last - first) // (4 * self.depth)).bit_length() - 1))
        if (last - first) % group:
            product_QP = F.pad(product_QP, (0, group - (last - first) % group), value=-torch.inf)
        # Products of neighbours are in different groups, because the GPU then takes the greatest of each group fastest.
        product_QGW = product_QP.view(len(product_QP), group, -1)
        most_QW = product_QGW.amax(1)
        width = most_QW.shape[1]
        if not self.has_floor and width >= self.depth:
            # Each of the K best groups has a product as great as this one.
            kth_Q = most_QW.float().topk(self.depth).values[:, -1]
            self.floor_Q = torch.maximum(self.floor_Q, _lowered(kth_Q, slack_Q))
            self.has_floor = True
        reach_Q = _lowered(self.floor_Q, slack_Q)
        query, column = (most_QW > reach_Q[:, None]).nonzero(as_tuple=True)
        found, member = (product_QGW[query, :, column] > reach_Q[query, None]).nonzero(as_tuple=True)
        query, row = query[found], member * width + column[found] + first
        score = self.score_pairs(self.query_QD, block.vector_PD, query, row)
        return [_Pairs(query.int(), block.number_P[row], score)]

    def settle(self) -> None:
        """Keep the best pairs of each query, and raise the floor to the last of them."""
        taken = [self.best, *self.waiting]
        pairs = _Pairs(
            torch.cat([one.query_N for one in taken]),
            torch.cat([one.number_N for one in taken]),
            torch.cat([one.score_N for one in taken]),
        )
        # By query, then score, then number: a stable sort keeps the order of the one before it.
        for key in ("number_N", "score_N", "query_N"):
            pairs = pairs[getattr(pairs, key).argsort(stable=True, descending=key == "score_N")]
        rank = _rank_within_query(pairs.query_N)
        last = pairs[rank == self.depth - 1]
        self.floor_Q[last.query_N] = last.score_N
        self.best, self.waiting = pairs[rank < self.depth], []


def _lengths(vectors: Tensor) -> Tensor:
    """Euclidean length of each row, in float32."""
    lengths: Tensor = torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float32)
    return lengths


def _lowered(score_Q: Tensor, slack_Q: Tensor) -> Tensor:
    """The least that a score can be in half precision, or the least score of such a product."""
    return score_Q - slack_Q - ROUNDING * (score_Q.abs() + slack_Q) - LEAST


def _half_product(half_QD: Tensor, half_PD: Tensor) -> Tensor:
    """Products of float16, added up in float32 and rounded to float16."""
    if half_QD.device.type == "cuda":
        return half_QD @ half_PD.T
    # A CPU would add up in float16.
    return (half_QD.float() @ half_PD.float().T).half()


def pair_scorer(device: torch.device, width: int) -> PairScorer:
    """What scores pairs on a device; on a GPU compiled, if that is possible.

    Compiled it reads each vector once and writes nothing but scores. Otherwise copies of the vectors move through the
    memory, seven times as many bytes.
    """
    if device.type == "cpu":
        return score_pairs_in_parts
    # Here, because the compiler takes a second to import, and only a GPU needs it.
    from embedder.models.compiled import INDUCTOR, lacking_compiler

    lacking = lacking_compiler()
    if lacking is not None:
        logger.warning("dense search scores pairs uncompiled, which is slower: there is no %s", lacking)
        return score_pairs_in_parts
    return compiled_scorer(device, width, INDUCTOR)


@torch.inference_mode()
def compiled_scorer(device: torch.device, width: int, compiler: str | Callable[..., Any]) -> PairScorer:
    """What scores pairs by compiled code, tried on a few; by other code where that goes wrong."""
    from torch._dynamo.exc import TorchDynamoException

    compiled = torch.compile(pair_scores, dynamic=True, backend=compiler)
    # All of different lengths, or else what is compiled holds for equal ones alone, and is compiled anew in the search.
    query_QD, passage_PD = (torch.ones((count, width), device=device) for count in (2, 3))
    query_N, row_N = (torch.zeros(PAIRS_AT_ONCE, dtype=torch.int64, device=device) for _ in range(2))
    try:
        compiled(query_QD, passage_PD, query_N, row_N)
    except TorchDynamoException as error:
        logger.warning("dense search scores pairs uncompiled, which is slower: %.300s", str(error).partition("\n")[0])
        return score_pairs_in_parts

    # Fewer than two are sizes that would be compiled for once more.
    def score(query_QD: Tensor, passage_PD: Tensor, query_N: Tensor, row_N: Tensor) -> Tensor:
        is_single = min(len(query_QD), len(passage_PD), len(query_N)) < 2
        function: PairScorer = score_pairs_in_parts if is_single else compiled
        return function(query_QD, passage_PD, query_N, row_N)

    return score


def score_pairs_in_parts(query_QD: Tensor, passage_PD: Tensor, query_N: Tensor, row_N: Tensor) -> Tensor:
    """The same as `pair_scores`, with copies of a bounded number of vectors."""
    parts = zip(query_N.split(PAIRS_AT_ONCE), row_N.split(PAIRS_AT_ONCE), strict=True)
    return torch.cat([pair_scores(query_QD, passage_PD, query, row) for query, row in parts])


def pair_scores(query_QD: Tensor, passage_PD: Tensor, query_N: Tensor, row_N: Tensor) -> Tensor:
    """Inner product of each pair of rows, exact to float32."""
    return (query_QD[query_N].double() * passage_PD[row_N].double()).sum(1).float()


def _rank_within_query(query_N: Tensor) -> Tensor:
    """For sorted query numbers, the rank of each within its query, from 0."""
    return torch.arange(len(query_N), device=query_N.device) - torch.searchsorted(query_N, query_N)
