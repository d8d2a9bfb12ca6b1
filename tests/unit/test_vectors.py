"""Which texts are encoded, and in which blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from embedder.config.load import load_run
from embedder.config.run import RunConfig
from embedder.data.records import PASSAGE, QUERY, write_table
from ray_jobs.retrieval.vectors import BLOCK, BLOCK_ROWS, missing_blocks, open_store, vector_table


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


@pytest.mark.parametrize("size", [1, BLOCK_ROWS - 1, BLOCK_ROWS, BLOCK_ROWS + 1, 5_000])
def test_missing_blocks_hold_every_text_once_in_order(config, size):
    names = [f"{number:04d}" for number in range(size)]
    rows = [{"id": name, "dataset": "other", "task": "qa", "text": f"text {name}"} for name in names]
    write_table(rows, PASSAGE, config.paths.corpus / "other" / "part-00000.parquet")
    store = open_store(config, config.encoder)
    *_, table = missing_blocks(config.paths, store, [])
    blocks = table.to_pylist()
    assert table.schema == BLOCK and {block["dataset"] for block in blocks} == {"other"}
    assert [name for block in blocks for name in block["ids"]] == names
    instruction = store.tasks["qa"].passage_instruction
    assert [text for block in blocks for text in block["texts"]] == [f"text {name}" for name in names]
    assert {(block["instruction"], block["keeps_end"]) for block in blocks} == {(instruction, False)}
    assert [block["rows"] for block in blocks[:-1]] == [BLOCK_ROWS] * (len(blocks) - 1)
    assert blocks[-1]["rows"] == len(blocks[-1]["row_ids"]) > 0


def test_missing_blocks_come_file_by_file_with_their_instruction_the_shortest_first(config):
    store = open_store(config, config.encoder)
    query, *passages = (table.to_pylist() for table in missing_blocks(config.paths, store, ["test"], 1))
    (what,) = query
    assert (what["instruction"], what["texts"]) == (store.tasks["qa"].query_instruction, ["what?"])
    assert [[block["texts"] for block in blocks] for blocks in passages] == [
        [["short"], ["a long passage"]],
        [["middling"]],
    ]
    first = passages[0][1]
    for block in (first, *query):
        store.ledger("nq", block["side"]).commit(vector_table(block, np.ones((1, 3), dtype=np.float32), [False]))
    again = [table["ids"].to_pylist() for table in missing_blocks(config.paths, store, ["test"])]
    assert again == [[["s"]], [["m"]]]
    assert store.read("nq", "passage", first["row_ids"]).shape == (1, 3)
