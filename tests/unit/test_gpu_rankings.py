"""Dense rankings as the tasks on GPUs make them, here on the CPU and without Ray, against those of the CPUs."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from embedder.config.paths import Paths
from embedder.config.run import EncoderConfig, RunConfig
from embedder.data.records import PASSAGE, QUERY, VECTOR, parquet_files, write_table
from embedder.mining.device_search import merge_ranked
from embedder.mining.ranking import best
from ray_jobs.cluster.tables import query_table
from ray_jobs.retrieval import gpu_rankings
from ray_jobs.retrieval.gpu_rankings import ahead, load_asked, named, search_share
from ray_jobs.retrieval.vectors import VectorStore
from tests.unit.index_cases import unit

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
    common = {"task": "qa", "dataset": "nq"}
    # In an order that differs between numbers and texts, and outside of ASCII.
    names = [f"{letter}{number}" for letter in "zaé" for number in range(PASSAGES // 3)]
    passages = [dict.fromkeys(PASSAGE.names) | common | {"id": name, "text": f"text of {name}"} for name in names]
    asked = [dict.fromkeys(QUERY.names) | common | {"query_id": f"q{n}", "query": f"who is {n}?"} for n in range(11)]
    vectors = unit(random, PASSAGES)
    vectors[PASSAGES // 2 :] = vectors[: PASSAGES // 2]
    queries = unit(random, len(asked))
    for number in range(2):
        part = passages[number::2]
        write_table(part, PASSAGE, config.paths.corpus / "nq" / f"part-{number}.parquet")
    write_table(asked, QUERY, config.paths.queries / "train" / "nq.parquet")
    _commit(store, "query", asked, queries)
    for first in range(0, PASSAGES, 40):
        _commit(store, "passage", passages[first : first + 40], vectors[first : first + 40])
    _commit(store, "passage", passages[10:50], vectors[10:50])
    _commit(store, "passage", [passages[0] | {"text": "as it was"}], 9 * queries[:1])
    return config, store, names, vectors, queries


def _commit(store, side, rows, vectors):
    table = pa.Table.from_pylist(rows, QUERY if side == "query" else PASSAGE)
    ids = table["query_id" if side == "query" else "id"].to_pylist()
    keys = store.keys(table, side)
    made = [
        {"dataset": "nq", "row_id": key, "id": name, "is_cut": False, "vector": vector}
        for key, name, vector in zip(keys, ids, vectors.tolist(), strict=True)
    ]
    store.ledger("nq", side).commit(pa.Table.from_pylist(made, VECTOR))


@pytest.mark.parametrize("shares", [1, 3])
def test_gpu_rankings_of_shares_are_the_best_by_score_and_id(stored, shares, monkeypatch):
    config, store, names, vectors, queries = stored
    monkeypatch.setattr(gpu_rankings, "STAGED_ROWS", 50)
    table = query_table(config.paths, "train", "nq")
    asked, ids = load_asked(config.paths, store, "nq", table)
    files = parquet_files(store.ledger("nq", "passage").folder)
    assert len(files) == 10
    found = [search_share({"nq": asked}, {"nq": files[n::shares]}, DEPTH, 0)["nq"] for n in range(shares)]
    rankings = named(merge_ranked(found, DEPTH), ids)
    exact = (queries.astype(np.float64) @ vectors.astype(np.float64).T).astype(np.float32)
    expected = [best(list(zip(names, scores.tolist(), strict=True)), DEPTH) for scores in exact]
    assert rankings == expected


def test_gpu_rankings_read_ahead_gives_every_block_in_order():
    assert list(ahead(iter(range(5)))) == [*range(5)]
    assert list(ahead(iter([]))) == []


def test_gpu_rankings_read_ahead_hands_on_an_error():
    def broken():
        yield 1
        raise OSError("disk")

    blocks = ahead(broken())
    assert next(blocks) == 1
    with pytest.raises(OSError, match="disk"):
        next(blocks)
