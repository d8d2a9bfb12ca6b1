"""Which texts are encoded, and in which blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml

from embedder.config.load import load_run
from embedder.config.run import RunConfig
from embedder.data.records import PASSAGE, QUERY, write_table
from ray_jobs.retrieval.vectors import (
    BLOCK_ROWS,
    TO_ENCODE,
    VectorStore,
    missing_texts,
    open_store,
    text_blocks,
    vector_table,
)


@pytest.mark.parametrize("size", [1, BLOCK_ROWS - 1, BLOCK_ROWS, BLOCK_ROWS + 1, 5_000])
def test_text_blocks_hold_every_text_once_in_order(size):
    names = [f"{number}" for number in range(size)]
    table = pa.table([["nq"] * size, ["passage"] * size, names, names, [f"text {name}" for name in names]], TO_ENCODE)
    blocks = text_blocks(table).to_pylist()
    assert [name for block in blocks for name in block["row_ids"]] == names
    assert [text for block in blocks for text in block["texts"]] == table["text"].to_pylist()
    assert [block["rows"] for block in blocks[:-1]] == [BLOCK_ROWS] * (len(blocks) - 1)
    assert blocks[-1]["rows"] == len(blocks[-1]["ids"]) > 0


@pytest.fixture
def config(tmp_path: Path, tiny_encoder_folder: Path) -> RunConfig:
    """A run whose corpus has two files of passages and one of queries."""
    run = {
        "paths": {"work": str(tmp_path / "work"), "cache": str(tmp_path / "cache")},
        "encoder": {"model": str(tiny_encoder_folder), "pooling": "mean", "instructions": True},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run), encoding="utf-8")
    config = load_run(tmp_path / "run.yaml")
    for part, texts in enumerate([["a long passage", "short"], ["middling"]]):
        rows = [{"id": text[:1], "dataset": "nq", "task": "qa", "text": text} for text in texts]
        write_table(rows, PASSAGE, config.paths.corpus / "nq" / f"part-{part:05d}.parquet")
    rows = [{"query_id": "1", "dataset": "nq", "task": "qa", "query": "what?"}]
    write_table(rows, QUERY, config.paths.queries / "test" / "nq.parquet")
    return config


def commit(store: VectorStore, texts: pa.Table) -> None:
    """Commit some vector for each row of TO_ENCODE."""
    ledger = store.ledger(texts["dataset"][0].as_py(), texts["side"][0].as_py())
    vectors = np.ones((texts.num_rows, 3), dtype=np.float32)
    ledger.commit(vector_table("nq", texts["row_id"].to_pylist(), texts["id"].to_pylist(), vectors))


def test_missing_texts_come_file_by_file_with_their_instruction_the_shortest_first(config):
    store = open_store(config, config.encoder)
    query, *passages = missing_texts(config.paths, store, ["test"])
    assert query.schema == TO_ENCODE and query["text"].to_pylist() == [store.tasks["qa"].query_instruction + "what?"]
    instruction = store.tasks["qa"].passage_instruction
    assert [table["text"].to_pylist() for table in passages] == [
        [f"{instruction}short", f"{instruction}a long passage"],
        [f"{instruction}middling"],
    ]
    first = passages[0].slice(1, 1)
    commit(store, first)
    commit(store, query)
    again = list(missing_texts(config.paths, store, ["test"]))
    assert [table["id"].to_pylist() for table in again] == [["s"], ["m"]]
    assert store.read("nq", "passage", first["row_id"].to_pylist()).shape == (1, 3)
