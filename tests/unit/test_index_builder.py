"""A collection from committed vectors: each vector stands beside its passage, whatever the blocks hold besides."""

from __future__ import annotations

import numpy as np

from embedder.config.paths import Paths
from embedder.config.run import EncoderConfig, RunConfig
from embedder.data.records import PASSAGE, write_table
from embedder.index.bundle import Manifest, instructions
from embedder.index.probe import TEXTS
from ray_jobs.retrieval.shards import build_shard, probe_texts, vector_dimension
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


def test_probe_texts_are_of_every_dataset_short_if_they_can_be_and_with_their_own_vectors(tmp_path):
    config = RunConfig(paths=Paths(work=tmp_path), encoder=EncoderConfig(model="none", pooling="mean"))
    lengths = {"nq": [5] * 100, "docs": [500, 5] * 30, "few": [900, 5]}
    for name, sizes in lengths.items():
        rows = [
            {"id": f"{i}", "dataset": name, "task": "qa", "text": f"{name} {i} ".ljust(n)} for i, n in enumerate(sizes)
        ]
        write_table(rows, PASSAGE, config.paths.corpus / name / "part-00000.parquet")
    store, made = VectorStore(config.paths.vectors / "encoder", config.tasks), {}
    for table in missing_blocks(config.paths, store, [], 16):
        for block in table.to_pylist():
            vectors = np.asarray([[len(made) + i, 1.0] for i in range(block["rows"])], dtype=np.float32)
            texts = [block["instruction"] + text for text in block["texts"]]
            made |= dict(zip(texts, vectors.tolist(), strict=True))
            store.ledger(block["dataset"], "passage").commit(vector_table(block, vectors, [False] * block["rows"]))
    texts, vectors = probe_texts(config.paths, store, 16)
    instruction = config.tasks["qa"].passage_instruction
    assert 40 <= len(texts) <= TEXTS and len(set(texts)) == len(texts)
    assert {text.removeprefix(instruction).split()[0] for text in texts} == set(lengths)
    assert sum(len(text) - len(instruction) > 32 for text in texts) <= 1
    assert vectors.tolist() == [made[text] for text in texts]
