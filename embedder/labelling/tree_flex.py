"""Attention over a prefix tree as one interval test, in PyTorch's flex attention: the fastest way on a GPU.

In a row in depth-first order a token q sees a key k exactly if k <= q < end[k], where `end` is one past the last token
below k. T tokens of the row, padded to whole blocks; N blocks of `BLOCK` tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from transformers import PreTrainedModel

from embedder.labelling.prefix_tree import PrefixTree
from embedder.models.transfer import upload_numbers

BLOCK = 128
"""Tokens of a block, of which the kernel passes over those that are hidden."""
LEAST_BLOCKS = 2
"""A row of one block would be compiled for once more, since a dimension of 1 is a constant to the compiler."""


def read_tree(model: PreTrainedModel, tree: PrefixTree, device: torch.device) -> Tensor:
    """The last hidden states (tokens of the tree, width), from a model whose attention is `tree_attention`."""
    length = len(tree.tokens)
    # Filled up with tokens at position 0: roots, which nothing but themselves sees.
    fill = [0] * (max(-(-length // BLOCK), LEAST_BLOCKS) * BLOCK - length)
    positions = [*tree.positions, *fill]
    states: Tensor = model.base_model(
        input_ids=upload_numbers([[*tree.tokens, *fill]], device),
        position_ids=upload_numbers([positions], device),
        # A mask of four dimensions, which that of a row of blocks has, is passed on to the layers as it is.
        attention_mask=interval_mask(subtree_ends(positions), device),
        use_cache=False,
    ).last_hidden_state
    return states[0, :length]


def subtree_ends(positions: Sequence[int]) -> list[int]:
    """One past the last token below each token of a row in depth-first order: the next one that is not deeper."""
    ends, above = [len(positions)] * len(positions), list[int]()
    for index, position in enumerate(positions):
        while above and positions[above[-1]] >= position:
            ends[above.pop()] = index
        above.append(index)
    return ends


def interval_mask(ends: Sequence[int], device: torch.device) -> BlockMask:
    """The mask of a row of whole blocks, (1, 1, T, T): token q sees key k if k <= q < ends[k]."""
    ends_NB = np.array(ends, dtype=np.int32).reshape(-1, BLOCK)
    first_N = np.arange(len(ends_NB)) * BLOCK
    before_NN = first_N[:, None] > first_N[None, :]
    # All of a block of queries sees all of an earlier block of keys, or its first query still sees one of them.
    full_NN = before_NN & (first_N[:, None] + BLOCK <= ends_NB.min(1)[None, :])
    partial_NN = before_NN & (first_N[:, None] < ends_NB.max(1)[None, :]) & ~full_NN
    np.fill_diagonal(partial_NN, True)
    ends_T = upload_numbers(ends_NB.reshape(-1), device)
    return BlockMask.from_kv_blocks(
        *_block_lists(partial_NN, device),
        *_block_lists(full_NN, device),
        BLOCK_SIZE=BLOCK,
        mask_mod=lambda batch, head, query, key: (key <= query) & (query < ends_T[key]),
        # Only a backward pass asks which queries a block of keys has.
        compute_q_blocks=False,
    )


def _block_lists(seen_NN: NDArray[np.bool_], device: torch.device) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries sees, (1, 1, N), and which, these first, (1, 1, N, N)."""
    order_NN = np.argsort(~seen_NN, axis=1, kind="stable").astype(np.int32)
    return upload_numbers(seen_NN.sum(1, dtype=np.int32)[None, None], device), upload_numbers(
        order_NN[None, None], device
    )
