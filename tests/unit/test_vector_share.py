"""Shares of stored vectors as tasks search them, here without Ray, against products in float64."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from embedder.config.paths import Paths
from embedder.config.run import EncoderConfig, RunConfig
from embedder.data.records import PASSAGE, QUERY, parquet_files, read_tables, write_table
from embedder.data.row_ids import RowIds
from embedder.mining.passage_search import NamedPairs, joined_scores
from embedder.mining.ranking import best, merge_found
from ray_jobs.retrieval import vector_share
from ray_jobs.retrieval.vector_rankings import ranking_table
from ray_jobs.retrieval.vector_share import DenseQueries, ahead, search_share
from ray_jobs.retrieval.vectors import VectorStore
from tests.unit.index_cases import unit
from tests.unit.stored_vectors import commit, passage, query

PASSAGES = 300
DEPTH = 7


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A dataset whose ledger also holds vectors of an earlier text, and of one block twice."""
    random = np.random.default_rng(0)
    config = RunConfig(
        paths=Paths(work=tmp_path_factory.mktemp("run")), encoder=EncoderConfig(model="none", pooling="mean")
    )
    store = VectorStore(config.paths.vectors / "encoder", config.tasks)
    # In an order that differs between numbers and texts, and outside of ASCII.
    names = [f"{letter}{number}" for letter in "zaé" for number in range(PASSAGES // 3)]
    passages = [passage(name, f"text of {name}") for name in names]
    asked = [query(f"q{number}", f"who is {number}?") for number in range(11)]
    vectors = unit(random, PASSAGES)
    vectors[PASSAGES // 2 :] = vectors[: PASSAGES // 2]
    queries = unit(random, len(asked))
    for number in range(2):
        part = passages[number::2]
        write_table(part, PASSAGE, config.paths.corpus / "nq" / f"part-{number}.parquet")
    write_table(asked, QUERY, config.paths.queries / "train" / "nq.parquet")
    commit(store, "query", asked, queries)
    for first in range(0, PASSAGES, 40):
        commit(store, "passage", passages[first : first + 40], vectors[first : first + 40])
    commit(store, "passage", passages[10:50], vectors[10:50])
    commit(store, "passage", [passages[0] | {"text": "as it was"}], 9 * queries[:1])
    return config, store, names, vectors, queries


POOLS = {2: ["z3", "é7", "a1", "z0"], 5: []}
NAMED = {0: ["é9", "a0"], 2: ["z9"]}


def asked_of(queries):
    """Two queries with pools, and two of which passages beside their rankings are named."""
    pairs = [(row, name, True) for row, pool in POOLS.items() for name in pool]
    pairs += [(row, name, False) for row, names in NAMED.items() for name in names]
    pairs.sort(key=lambda pair: pair[0])
    return DenseQueries(
        pa.array([f"q{row}" for row in range(len(queries))]),
        queries,
        np.array([row not in POOLS for row in range(len(queries))]),
        NamedPairs(np.array([row for row, _, _ in pairs]), pa.array([name for _, name, _ in pairs])),
        np.array([in_pool for _, _, in_pool in pairs]),
    )


@pytest.mark.parametrize("shares", [1, 3])
def test_shares_give_the_best_by_score_and_id_of_all_or_of_the_pool_and_the_named_scores(stored, shares, monkeypatch):
    config, store, names, vectors, queries = stored
    monkeypatch.setattr(vector_share, "BLOCK_ROWS", 50)
    corpus = read_tables(parquet_files(config.paths.corpus / "nq"), PASSAGE)
    current, asked = RowIds([store.keys(corpus, "passage")]), asked_of(queries)
    files = parquet_files(store.ledger("nq", "passage").folder)
    assert len(files) == 10
    found = [search_share(files[first::shares], current, asked, DEPTH, 0) for first in range(shares)]
    scores = joined_scores([scores for _, scores in found])
    rows = ranking_table(asked, merge_found([best for best, _ in found], DEPTH), scores).to_pylist()
    exact = (queries.astype(np.float64) @ vectors.astype(np.float64).T).astype(np.float32)
    for number, row in enumerate(rows):
        of_all = dict(zip(names, exact[number].tolist(), strict=True))
        expected = best([(name, of_all[name]) for name in POOLS.get(number, names)], DEPTH)
        assert (row["query_id"], list(zip(row["ids"], row["scores"], strict=True))) == (f"q{number}", expected)
        named = dict(zip(row["named_ids"], row["named_scores"], strict=True))
        assert named == {name: of_all[name] for name in [*POOLS.get(number, []), *NAMED.get(number, [])]}


def test_read_ahead_gives_every_block_in_order():
    assert list(ahead(iter(range(5)))) == [*range(5)]
    assert list(ahead(iter([]))) == []


def test_read_ahead_hands_on_an_error():
    def broken():
        yield 1
        raise OSError("disk")

    blocks = ahead(broken())
    assert next(blocks) == 1
    with pytest.raises(OSError, match="disk"):
        next(blocks)


def test_row_ids_of_parts_together_are_those_of_one_set():
    ids = [f"{number:032x}" for number in (7, 3, 9, 3, 0)]
    joined, whole = RowIds.joined([RowIds([ids[:2]]), RowIds([]), RowIds([ids[2:]])]), RowIds([ids])
    assert (len(joined), joined.total) == (len(whole), whole.total) == (4, 5)
    assert joined.positions([*ids, "f" * 32]).tolist() == whole.positions([*ids, "f" * 32]).tolist()
