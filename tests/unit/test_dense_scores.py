"""Dense scores of named passages, from the committed vectors, whatever their rank."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from embedder.config.paths import Paths
from embedder.config.run import EncoderConfig, RunConfig
from embedder.data.records import PASSAGE, QUERY, VECTOR, write_table
from ray_jobs.retrieval.rankings import dense_scores
from ray_jobs.retrieval.vectors import VectorStore

QUERIES = {"q0": [1.0, 0.0], "q1": [0.6, 0.8]}
PASSAGES = {f"p{i}": [i / 8, 1 - i / 8] for i in range(6)}


def commit(store, side, table, vectors):
    """One block a row, each under the key of its text."""
    for row_id, row_key, vector in zip(vectors, store.keys(table, side), vectors.values(), strict=True):
        row = {"dataset": "nq", "row_id": row_key, "id": row_id, "is_cut": False, "vector": vector}
        store.ledger("nq", side).commit([row])


@pytest.fixture
def stored(tmp_path):
    config = RunConfig(paths=Paths(work=tmp_path), encoder=EncoderConfig(model="none", pooling="mean"))
    store = VectorStore(config.paths.vectors / "encoder", config.tasks)
    common = {"task": "qa", "dataset": "nq"}
    asked = [dict.fromkeys(QUERY.names) | common | {"query_id": name, "query": f"where is {name}?"} for name in QUERIES]
    passages = [dict.fromkeys(PASSAGE.names) | common | {"id": name, "text": f"text of {name}"} for name in PASSAGES]
    write_table(asked, QUERY, config.paths.queries / "train" / "nq.parquet")
    write_table(passages, PASSAGE, config.paths.corpus / "nq" / "part-00000.parquet")
    commit(store, "query", pa.Table.from_pylist(asked, QUERY), QUERIES)
    commit(store, "passage", pa.Table.from_pylist(passages, PASSAGE), PASSAGES)
    return config.paths, store


def test_dense_scores_are_inner_products_of_the_named_pairs_alone(stored):
    found = dense_scores(*stored, "train", "nq", {"q0": {"p1", "p4"}, "q1": ["p4"]})
    expected = {
        name: {passage: float(np.dot(QUERIES[name], PASSAGES[passage])) for passage in named}
        for name, named in (("q0", ["p1", "p4"]), ("q1", ["p4"]))
    }
    assert {name: pytest.approx(scores) for name, scores in expected.items()} == found


def test_dense_scores_pass_over_vectors_of_earlier_texts(stored):
    paths, store = stored
    old = {"dataset": "nq", "row_id": "0" * 32, "id": "p1", "is_cut": False, "vector": [9.0, 9.0]}
    store.ledger("nq", "passage").commit(pa.Table.from_pylist([old], VECTOR))
    assert dense_scores(paths, store, "train", "nq", {"q0": ["p1"]})["q0"] == {"p1": pytest.approx(1 / 8)}
