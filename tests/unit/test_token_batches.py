"""The rows of a step in padded passes: each row once, found again, and with little padding on a GPU."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embedder.models.encoder import load_encoder
from embedder.training.cross_encoder import load_cross_encoder
from embedder.training.token_batches import TokenLimits, distinct_rows, thrifty_batches, token_batches
from tests.unit.judges import quick

TEXTS = ["a fox", "the quick brown fox jumps over it", "a fox", "dogs", "the lazy dog and a cat", "dogs"]


def test_distinct_rows_come_in_the_order_of_their_first():
    assert distinct_rows([[3, 4], [5], [3, 4], [], [5]]) == ([[3, 4], [5], []], [0, 1, 0, 2, 1])
    assert distinct_rows([]) == ([], [])


@pytest.mark.parametrize("tokens", [12, 64])
def test_token_batches_hold_each_text_once_and_find_the_vector_of_every_row(tiny_encoder, tokens):
    encoder = load_encoder(tiny_encoder, device="cpu")
    batches = token_batches(encoder, encoder.tokenize(TEXTS), TokenLimits(tokens, None))
    assert sorted(i for rows in batches.passes for i in rows.indices) == [0, 1, 2, 3]
    assert batches.padded == sum(rows.ids_BL.numel() for rows in batches.passes)
    assert len(batches.passes) == (3 if tokens == 12 else 1)
    with torch.no_grad():
        found = torch.cat([encoder(rows) for rows in batches.passes])[batches.place_K]
        assert torch.allclose(found, encoder(encoder.tokenize(TEXTS)), atol=1e-6)


def test_token_batches_are_encoded_at_once_up_to_the_limit(tiny_encoder):
    encoder = load_encoder(tiny_encoder, device="cpu")
    rows = encoder.tokenize(TEXTS)
    padded = token_batches(encoder, rows, TokenLimits(256, None)).padded
    least = sum(map(len, distinct_rows(rows)[0])) - 1
    at_once = [token_batches(encoder, rows, TokenLimits(256, most)).at_once for most in (None, padded, least)]
    assert at_once == [True, True, False]


def test_token_batches_of_a_cross_encoder_count_the_number_before_each_row(tiny_encoder_folder):
    """A step is encoded at once or in chunks by the same sum as ever."""
    encoder = load_cross_encoder(str(tiny_encoder_folder), max_tokens=32, batch_tokens=128, device="cpu")
    batches = token_batches(encoder, [[0, 5, 6], [0, 7], [0, 5, 6]], TokenLimits(256, None))
    assert batches.passes[0].ids_BL.shape == (2, 2) and batches.padded == 2 * 3


@pytest.mark.parametrize(
    ("lengths", "most", "pass_tokens", "batches"),
    [
        ([], 10, 5, []),
        ([4, 1, 4, 1], 100, 5, [[1, 3], [0, 2]]),
        ([4, 1, 4, 1], 100, 7, [[1, 3, 0, 2]]),
        ([3, 3, 3], 6, 100, [[0], [1, 2]]),
        ([30, 2], 6, 0, [[1], [0]]),
        ([0, 0], 6, 1, [[0, 1]]),
    ],
)
def test_thrifty_batches_worked_by_hand(lengths, most, pass_tokens, batches):
    assert thrifty_batches(np.array(lengths, dtype=np.int64), most, pass_tokens) == batches


def cost(lengths, batches, pass_tokens):
    return sum(len(batch) * max(lengths[i] for i in batch) + pass_tokens for batch in batches)


@quick
@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.integers(9, 40), st.integers(0, 12))
def test_thrifty_batches_cost_least_of_all_cuts_of_the_sorted_rows(lengths, most, pass_tokens):
    found = thrifty_batches(np.array(lengths), most, pass_tokens)
    order = np.argsort(lengths, kind="stable").tolist()
    assert [i for batch in found for i in batch] == order
    assert all(len(batch) * max(lengths[i] for i in batch) <= most for batch in found)
    costs = []
    for chosen in range(2 ** (len(order) - 1)):
        ends = [0, *(place for place in range(1, len(order)) if chosen >> (place - 1) & 1), len(order)]
        cut = [order[begin:end] for begin, end in pairwise(ends)]
        if all(len(batch) * max(lengths[i] for i in batch) <= most for batch in cut):
            costs.append(cost(lengths, cut, pass_tokens))
    assert cost(lengths, found, pass_tokens) == min(costs)
