"""Exact search in half precision, as it runs on a GPU, against float64; here it runs on the CPU."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter

from embedder.mining import device_search
from embedder.mining.device_search import (
    DeviceSearch,
    compiled_scorer,
    pair_scorer,
    pair_scores,
    score_pairs_in_parts,
)
from embedder.mining.ranking import Found, merge_found
from embedder.models import compiled
from embedder.models.device import CPU
from embedder.models.memory import BatchLimit
from tests.unit.index_cases import unit
from tests.unit.judges import quick
from tests.unit.test_exact import judged, rows_of


def searched(queries, passages, depth, order=None, block=None):
    """The result of one search, to which the passages come in some order."""
    search = DeviceSearch(queries, depth, CPU)
    order = np.arange(len(passages)) if order is None else order
    for part in np.array_split(order, max(1, len(order) // (block or len(order) or 1))):
        search.add(torch.from_numpy(passages[part]), torch.from_numpy(part))
    return search.ranked()


def small_blocks(patch):
    """Several parts of queries, blocks and tiles for a few vectors."""
    patch.setattr(device_search, "BLOCK_ROWS", 256)
    patch.setattr(device_search, "TILE_ROWS", 32)
    patch.setattr(device_search, "CPU_PRODUCTS", 256 * 7)
    patch.setattr(device_search, "PAIRS_AT_ONCE", 100)


def test_compiled_scorer_compiles_in_its_trial_alone_whatever_is_scored_later():
    compiler = CompileCounter()
    score, draw = compiled_scorer(CPU, 24, compiler), np.random.default_rng(0)
    assert compiler.frame_count == 1
    with torch.inference_mode(), torch.compiler.set_stance("fail_on_recompile"):
        for queries, passages, pairs in [
            (3, 3, 3),
            (7, 40, 500),
            (40, 7, 20_000),
            (1, 9, 5),
            (9, 1, 5),
            (4, 4, 1),
            (2, 2, 0),
        ]:
            query_QD, passage_PD = (torch.from_numpy(unit(draw, count, 24)) for count in (queries, passages))
            rows = [torch.from_numpy(draw.integers(0, count, pairs)) for count in (queries, passages)]
            assert torch.equal(score(query_QD, passage_PD, *rows), pair_scores(query_QD, passage_PD, *rows))
    assert compiler.frame_count == 1


def test_compiled_scorer_that_fails_its_trial_leaves_it_to_parts(caplog):
    def broken(module, inputs):
        raise RuntimeError("no kernel")

    assert compiled_scorer(CPU, 24, broken) is score_pairs_in_parts
    assert "dense search scores pairs uncompiled, which is slower" in caplog.text


def test_pair_scorer_of_a_gpu_without_a_compiler_says_what_is_missing(monkeypatch, caplog):
    monkeypatch.setattr(compiled, "lacking_compiler", lambda: "Triton")
    assert pair_scorer(torch.device("cuda"), 24) is score_pairs_in_parts
    assert "slower: there is no Triton" in caplog.text


@quick
@given(
    seed=st.integers(0, 10**6),
    passages=st.integers(0, 2000),
    queries=st.integers(1, 20),
    depth=st.integers(1, 60),
    width=st.sampled_from([2, 8, 100]),
    copies=st.integers(1, 200),
)
def test_device_search_gives_the_best_rows_of_float64_with_ties_by_number(
    seed, passages, queries, depth, width, copies
):
    random = np.random.default_rng(seed)
    distinct = unit(random, passages // copies + 1, width)
    rows = distinct[random.integers(0, len(distinct), passages)]
    asked = unit(random, queries, width)
    with pytest.MonkeyPatch.context() as patch:
        small_blocks(patch)
        ranked = searched(asked, rows, depth, random.permutation(passages), block=300)
    assert rows_of(ranked) == judged(asked, rows, depth, np.ones(passages, dtype=bool))
    found = [[score for score in scores if score > -np.inf] for scores in ranked.score_QK.tolist()]
    exact = (asked.astype(np.float64) @ rows.astype(np.float64).T).astype(np.float32)
    assert found == [[exact[query, row] for row in rows] for query, rows in enumerate(rows_of(ranked))]


def test_device_search_tells_passages_apart_that_half_precision_cannot():
    random = np.random.default_rng(0)
    # All products of a query are one number in float16, and those of a passage and its copy in float32 too.
    rows = unit(random, 1, 64) + random.normal(scale=1e-6, size=(1500, 64)).astype(np.float32)
    rows = np.concatenate([rows, rows[:500]])
    queries = unit(random, 9, 64)
    half = device_search._half_product(torch.from_numpy(queries).half(), torch.from_numpy(rows).half())
    assert max(len(products.unique()) for products in half) <= 3
    assert rows_of(searched(queries, rows, 40)) == judged(queries, rows, 40, np.ones(2000, dtype=bool))


def test_device_search_scores_few_pairs_again(monkeypatch):
    random = np.random.default_rng(1)
    queries, rows = unit(random, 30, 128), unit(random, 20_000, 128)
    scored = []
    pair_scores = device_search.pair_scores
    monkeypatch.setattr(
        device_search, "pair_scores", lambda *given: scored.append(len(given[2])) or pair_scores(*given)
    )
    monkeypatch.setattr(device_search, "BLOCK_ROWS", 2048)
    searched(queries, rows, 20)
    # 20 are among the best of each block, and of the second block on ever fewer.
    assert sum(scored) < 30 * 20 * 8
    assert scored[-1] < 30 * 20


def test_device_search_halves_a_block_that_does_not_fit_and_remembers(monkeypatch):
    random = np.random.default_rng(2)
    queries, rows = unit(random, 7, 16), unit(random, 1024, 16)
    whole = searched(queries, rows, 5)
    small_blocks(monkeypatch)
    limit = BatchLimit("dense search")
    monkeypatch.setattr(device_search, "LIMIT", limit)
    product, failed = device_search._half_product, []

    def short(half_QD, half_PD):
        if len(half_PD) > 64:
            failed.append(len(half_PD))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return product(half_QD, half_PD)

    monkeypatch.setattr(device_search, "_half_product", short)
    halved = searched(queries, rows, 5)
    assert (halved.row_QK == whole.row_QK).all()
    assert (halved.score_QK == whole.score_QK).all()
    assert failed == [256, 128]
    assert limit.most == 7 * 64


def test_device_search_merges_shares_and_counts_what_stands_in_two_once():
    random = np.random.default_rng(3)
    queries, rows = unit(random, 4, 8), unit(random, 90, 8)
    rows[60:] = rows[:30]
    numbers = random.permutation(90)
    # Of each share the last passages are in the next one too.
    shares = [numbers[0:35], numbers[30:65], numbers[60:90], numbers[:0]]
    ids = pa.array([f"p{number:02}" for number in range(90)])
    found = [searched(queries, rows, 12, share) for share in [*shares, numbers[:3], numbers[1:5]]]
    parts = [Found(ranked.score_QK, ranked.row_QK, ids) for ranked in found]
    places = [[int(name[1:]) for name, _ in ranking] for ranking in merge_found(parts[:4], 12).rankings()]
    assert places == judged(queries, rows, 12, np.ones(90, dtype=bool))
    few = merge_found(parts[4:], 12).rankings()
    assert [sorted(int(name[1:]) for name, _ in ranking) for ranking in few] == [sorted(numbers[:5].tolist())] * 4
