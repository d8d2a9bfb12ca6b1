"""Dense search block by block equals one exact search."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.mining.dense import merge, search_block
from tests.unit.judges import quick


def exact(query: np.ndarray, ids: list[str], vectors: np.ndarray, depth: int) -> list[tuple[str, float]]:
    scored = [(name, float(query @ vector)) for name, vector in zip(ids, vectors, strict=True)]
    return sorted(scored, key=lambda entry: (-entry[1], entry[0]))[:depth]


@quick
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 12), st.integers(1, 15), st.booleans())
def test_dense_search_merged_blocks_equal_the_exact_search(seed, passages, block, depth, pooled):
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((passages, 4)).astype(np.float32)
    queries = random.standard_normal((3, 4)).astype(np.float32)
    ids = [f"p{i}" for i in random.permutation(passages)]
    pool = set(random.choice(ids, passages // 2, replace=False).tolist()) if pooled else None
    merged = [[], [], []]
    for start in random.permutation(range(0, passages, block)):
        found = search_block(queries, [pool] * 3, ids[start : start + block], vectors[start : start + block], depth)
        merged = [merge(one, other, depth) for one, other in zip(merged, found, strict=True)]
    kept = [i for i, name in enumerate(ids) if pool is None or name in pool]
    for query, ranking in zip(queries, merged, strict=True):
        expected = exact(query, [ids[i] for i in kept], vectors[kept], depth)
        assert [name for name, _ in ranking] == [name for name, _ in expected]
        assert [score for _, score in ranking] == pytest.approx([score for _, score in expected], abs=1e-5)


def test_dense_search_every_query_has_its_own_pool():
    found = search_block(np.eye(2), [{"b", "elsewhere"}, None], ["a", "b"], np.eye(2), 5)
    assert found == [[("b", 0.0)], [("b", 1.0), ("a", 0.0)]]


def test_merge_equal_scores_of_two_blocks_are_ordered_by_id():
    assert merge([("c", 1.0), ("a", 0.5)], [("b", 1.0)], 2) == [("b", 1.0), ("c", 1.0)]


def test_dense_search_ties_at_the_cut_go_by_id_too():
    ids = [f"p{i:03}" for i in range(300)]
    (found,) = search_block(np.ones((1, 4)), [None], ids[::-1], np.ones((300, 4)), 3)
    assert [name for name, _ in found] == ids[:3]
