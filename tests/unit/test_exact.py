"""Exact search by blocked product against numpy in float64, and against FAISS."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.index import exact
from embedder.index.exact import exact_search, pair_scores
from tests.unit.index_cases import unit
from tests.unit.judges import quick


def judged(queries, passages, k, allowed):
    """Rows by score, rounded to float32, then by row."""
    scores = (queries.astype(np.float64) @ passages.astype(np.float64).T).astype(np.float32)
    found = []
    for row in scores:
        order = sorted(np.flatnonzero(allowed), key=lambda i: (-row[i], i))[:k]
        found.append([int(i) for i in order])
    return found


def rows_of(ranked):
    return [[row for row in rows if row >= 0] for rows in ranked.row_QK.tolist()]


@quick
@given(
    seed=st.integers(0, 10**6),
    passages=st.integers(0, 3000),
    queries=st.integers(1, 40),
    k=st.integers(1, 60),
    share=st.sampled_from([0.0, 0.001, 0.1, 0.5, 1.0]),
    copies=st.integers(1, 200),
)
def test_exact_search_gives_the_best_rows_of_float64_with_ties_by_row(seed, passages, queries, k, share, copies):
    random = np.random.default_rng(seed)
    distinct = unit(random, passages // copies + 1)
    rows = distinct[random.integers(0, len(distinct), passages)]
    allowed = random.random(passages) < share
    asked = unit(random, queries)
    assert rows_of(exact_search(asked, rows, k, allowed)) == judged(asked, rows, k, allowed)


def test_exact_score_depends_on_its_two_vectors_alone(monkeypatch):
    random = np.random.default_rng(1)
    passages, queries = unit(random, 700, 384), unit(random, 9, 384)
    whole = exact_search(queries, passages, 5)
    monkeypatch.setattr(exact, "BLOCK_ROWS", 64)
    monkeypatch.setattr(exact, "BLOCK_SCORES", 64)
    for i in range(9):
        alone = exact_search(queries[i : i + 1], passages, 5)
        assert (alone.row_QK[0] == whole.row_QK[i]).all()
        assert (alone.score_QK[0] == whole.score_QK[i]).all()


@pytest.mark.parametrize("batch", [1, 32])
def test_exact_search_gives_the_ids_of_faiss(batch):
    random = np.random.default_rng(2)
    passages, queries = unit(random, 20_000, 384), unit(random, batch, 384)
    flat = faiss.IndexFlatIP(384)
    flat.add(passages)
    scores, rows = flat.search(queries, 10)
    ranked = exact_search(queries, passages, 10)
    assert (ranked.row_QK == rows).all()
    assert np.abs(ranked.score_QK - scores).max() < 1e-6


def test_exact_search_with_fewer_rows_than_asked_for_ends_with_none():
    ranked = exact_search(np.eye(4, dtype=np.float32)[:1], np.eye(4, dtype=np.float32), 6)
    assert ranked.row_QK.tolist() == [[0, 1, 2, 3, -1, -1]]


def test_exact_scores_of_equal_vectors_are_equal_whatever_is_beside_them():
    random = np.random.default_rng(3)
    one, other = unit(random, 50, 384), unit(random, 50, 384)
    together = pair_scores(one, other)
    assert all(pair_scores(one[i : i + 1], other[i : i + 1])[0] == together[i] for i in range(50))
