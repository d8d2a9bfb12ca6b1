"""How texts to encode are found and shared out among actors."""

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
    CHUNK_ROWS,
    CHUNKS_AN_ACTOR,
    TO_ENCODE,
    commit_vectors,
    missing_texts,
    open_store,
    shared_out,
)


@pytest.mark.parametrize("sizes", [[1], [BLOCK_ROWS], [5_000], [300, 7_000], [45_000, 3]])
@pytest.mark.parametrize("actors", [1, 2, 64])
def test_no_row_is_lost_and_every_actor_has_several_chunks(sizes, actors):
    total, tables = 0, []
    for size in sizes:
        tables.append(pa.table({"row": range(total, total + size)}))
        total += size
    chunks = [chunk for table in tables for chunk in shared_out(table, total, actors)]
    assert pa.concat_tables(chunks)["row"].to_pylist() == list(range(total))
    assert max(chunk.num_rows for chunk in chunks) <= CHUNK_ROWS
    if total >= CHUNKS_AN_ACTOR * actors * BLOCK_ROWS:
        assert len(chunks) >= CHUNKS_AN_ACTOR * actors
        assert sum(chunk.num_rows % BLOCK_ROWS > 0 for chunk in chunks) <= len(sizes)


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


def test_what_no_block_holds_is_found_file_by_file_with_its_instruction_the_shortest_first(config):
    store = open_store(config, config.encoder)
    query, *passages = missing_texts(config, store, ["test"])
    assert query.schema == TO_ENCODE and query["text"].to_pylist() == [store.tasks["qa"].query_instruction + "what?"]
    instruction = store.tasks["qa"].passage_instruction
    assert [table["text"].to_pylist() for table in passages] == [
        [f"{instruction}short", f"{instruction}a long passage"],
        [f"{instruction}middling"],
    ]
    first = passages[0].slice(1, 1)
    commit_vectors(store.folder, first, np.ones((1, 3), dtype=np.float32))
    commit_vectors(store.folder, query, np.ones((1, 3), dtype=np.float32))
    again = list(missing_texts(config, store, ["test"]))
    assert [table["id"].to_pylist() for table in again] == [["s"], ["m"]]
    assert store.read("nq", "passage", first["row_id"].to_pylist()).shape == (1, 3)
