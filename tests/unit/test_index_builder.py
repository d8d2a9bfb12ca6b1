"""A collection from committed vectors: each vector stands beside its passage, whatever the blocks hold besides."""

from __future__ import annotations

import numpy as np

from embedder.config.paths import Paths
from embedder.config.run import EncoderConfig, RunConfig
from embedder.data.records import PASSAGE, write_table
from embedder.index.bundle import Manifest, instructions
from ray_jobs.retrieval.shards import build_shard, vector_dimension
from ray_jobs.retrieval.vectors import VectorStore, missing_blocks, vector_table


def test_build_shard_of_blocks_without_a_passage_of_it(tmp_path):
    config = RunConfig(paths=Paths(work=tmp_path), encoder=EncoderConfig(model="none", pooling="mean"))
    rows = [{"id": f"{i}", "dataset": "nq", "task": "qa", "text": f"text {i}"} for i in range(30)]
    write_table(rows, PASSAGE, config.paths.corpus / "nq" / "part-00000.parquet")
    store = VectorStore(config.paths.vectors / "encoder", config.tasks)
    # A block of one text belongs to one shard, so that each shard passes over blocks of which it needs nothing.
    for block in next(missing_blocks(config.paths, store, [], 1)).to_pylist():
        store.ledger("nq", "passage").commit(vector_table(block, np.full((1, 4), 0.5, dtype=np.float32), [False]))
    manifest = Manifest(
        name="run",
        encoder_fingerprint="encoder",
        pooling="mean",
        max_tokens=8,
        dimension=vector_dimension(config.paths, store),
        tasks=instructions(store.tasks),
        num_shards=2,
        collections={},
        files={},
    )
    settings = config.build_settings
    built = [build_shard(config.paths, settings, store, manifest, shard, tmp_path / f"{shard}") for shard in range(2)]
    counts = [shard["qa"].rows for shard in built]
    assert sum(counts) == 30 and min(counts) > 0
    assert [shard["qa"].identity.shard for shard in built] == [0, 1]
