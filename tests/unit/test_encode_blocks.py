"""Blocks of texts in an actor: several at once where it has a GPU, and what each holds."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import pyarrow as pa
import pytest
import yaml

from embedder.config.load import load_run
from embedder.config.run import RunConfig
from embedder.data.records import PASSAGE, VECTOR, write_table
from embedder.models.encoder import encode_batches, encode_prompted, load_encoder
from ray_jobs.cluster.blocks import BlockCost, actor_pool
from ray_jobs.retrieval import vectors
from ray_jobs.retrieval.vectors import (
    BLOCK_ROWS,
    CALLS_AT_ONCE,
    GPU_BLOCK_ROWS,
    EncodeBlocks,
    open_store,
    vector_matrix,
    vector_table,
)


@pytest.fixture
def config(tmp_path: Path, tiny_encoder_folder: Path) -> RunConfig:
    """A run whose corpus has enough passages for two blocks of a GPU."""
    run = {
        "paths": {"work": str(tmp_path / "work"), "cache": str(tmp_path / "cache")},
        "encoder": {"model": str(tiny_encoder_folder), "pooling": "mean", "max_tokens": 64, "num_actors": 1},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run), encoding="utf-8")
    config = load_run(tmp_path / "run.yaml")
    rows = [
        {"id": f"{number}", "dataset": "nq", "task": "qa", "text": f"passage {number}"}
        for number in range(GPU_BLOCK_ROWS + 1)
    ]
    write_table(rows, PASSAGE, config.paths.corpus / "nq" / "part-00000.parquet")
    return config


def block(names: list[str]) -> dict[str, object]:
    """A block as an actor is given it."""
    row_ids = [f"{int(name):032x}" for name in names]
    shared = {"task": "qa", "dataset": "nq", "side": "passage", "instruction": "Represent: ", "keeps_end": False}
    return {**shared, "row_ids": row_ids, "ids": names, "texts": [f"text {name}" for name in names], "rows": len(names)}


def test_encode_blocks_tokenises_the_next_block_while_one_is_computed(config, monkeypatch):
    actor = EncodeBlocks(config.encoder, open_store(config, config.encoder), 0)
    plain, tokenise, second = encode_batches, actor.encoder.tokenize_and_tell, Event()

    def tokenise_and_note(texts):
        made = tokenise(texts)
        if len(made[0]) == 2:
            second.set()
        return made

    def wait_for_the_second(encoder, batches):
        # The first block to be computed is the one of three texts: the other is tokenised when this ends.
        assert second.wait(30)
        return plain(encoder, batches)

    monkeypatch.setattr(actor.encoder, "tokenize_and_tell", tokenise_and_note)
    monkeypatch.setattr("embedder.models.encoder.encode_batches", wait_for_the_second)
    blocks = [block(["1", "2", "3"]), block(["4", "5"])]
    with ThreadPoolExecutor(2) as pool:
        tables = list(pool.map(actor.compute, blocks))
    encoder = load_encoder(config.encoder, "cpu")
    for given, table in zip(blocks, tables, strict=True):
        assert table["row_id"].to_pylist() == given["row_ids"]
        wanted = encode_prompted(encoder, [f"Represent: {text}" for text in given["texts"]])
        np.testing.assert_allclose(vector_matrix(table), wanted, atol=1e-5)


def test_encode_blocks_in_several_threads_commits_each_block(config):
    store = open_store(config, config.encoder)
    actor = EncodeBlocks(config.encoder, store, 0)
    blocks = [block([str(10 * number + i) for i in range(number + 1)]) for number in range(12)]
    batches = [pa.Table.from_pylist([{**each, "tokens": 1.0}], vectors.BLOCK) for each in blocks]
    with ThreadPoolExecutor(4) as pool:
        costs = [cost for table in pool.map(actor, batches) for cost in table.to_pylist()]
    assert [cost["rows"] for cost in costs] == [each["rows"] for each in blocks]
    encoder = load_encoder(config.encoder, "cpu")
    for each in blocks:
        wanted = encode_prompted(encoder, [f"Represent: {text}" for text in each["texts"]])
        np.testing.assert_allclose(store.read("nq", "passage", each["row_ids"]), wanted, atol=1e-5)


@pytest.mark.parametrize(("gpus", "rows", "calls"), [(0, BLOCK_ROWS, None), (0.5, GPU_BLOCK_ROWS, CALLS_AT_ONCE)])
def test_fill_store_cuts_larger_blocks_for_actors_with_a_gpu(config, monkeypatch, gpus, rows, calls):
    sent = []

    def note(parts, actor, arguments, pool, label):
        sent.append(([each["rows"] for part in parts for each in part.to_pylist()], arguments[2:], pool))
        return BlockCost()

    machine = {"Alive": True, "Resources": {"CPU": 16.0, "GPU": 1.0}}
    monkeypatch.setattr("ray_jobs.cluster.blocks.ray.nodes", lambda: [machine])
    monkeypatch.setattr(vectors, "run_blocks", note)
    encoder = config.encoder.model_copy(update={"gpus_per_actor": gpus})
    given = config.model_copy(update={"encoder": encoder})
    store = open_store(given, encoder)
    vectors.fill_store(given, store, encoder, [])
    monkeypatch.setattr(vectors, "COMPILE_FROM", GPU_BLOCK_ROWS)
    vectors.fill_store(given, store, encoder, [])
    for (sizes, arguments, pool), many in zip(sent, (False, True), strict=True):
        assert sizes == [rows] * (GPU_BLOCK_ROWS // rows) + [1]
        assert arguments == (gpus, bool(gpus) and many)
        assert pool["compute"].max_concurrent_calls_per_actor == calls
        assert pool["compute"].enable_true_multi_threading == bool(calls)


def test_actor_pool_of_one_call_is_what_it_was():
    strategy = actor_pool(3, 0)["compute"]
    assert (strategy.max_size, strategy.max_concurrent_calls_per_actor) == (3, None)


def test_vector_table_holds_the_vectors_of_any_layout_as_float32():
    made = np.arange(12, dtype=np.float64).reshape(4, 3).T[:, :2]
    table = vector_table(block(["1", "2", "3"]), made, [True, None, False])
    assert table.schema == VECTOR
    assert table["vector"].to_pylist() == made.tolist() and table["is_cut"].to_pylist() == [True, None, False]
    table.validate(full=True)
