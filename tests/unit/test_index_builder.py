"""A collection from committed vectors: each vector stands beside its passage, whatever the blocks hold besides."""

from __future__ import annotations

import shutil

import numpy as np

from embedder.config.paths import Paths
from embedder.config.run import EncoderConfig, RunConfig
from embedder.data.records import PASSAGE, parquet_files, write_table
from embedder.index.bundle import Manifest, instructions, shard_folder, shard_of
from embedder.index.collection import Collection, CollectionInfo
from embedder.index.probe import TEXTS
from ray_jobs.cluster.tables import corpus_files
from ray_jobs.retrieval.shard_builds import ShardJob, ShardSize, build_shard, divide_files
from ray_jobs.retrieval.shards import probe_texts, vector_dimension
from ray_jobs.retrieval.vectors import VectorStore, missing_blocks, vector_table


def corpus_of(folder, count=30):
    """A run of one dataset with vectors of blocks of one text, and what its shards belong to."""
    config = RunConfig(paths=Paths(work=folder), encoder=EncoderConfig(model="none", pooling="mean"))
    rows = [{"id": f"{i}", "dataset": "nq", "task": "qa", "text": f"text {i}"} for i in range(count)]
    write_table(rows, PASSAGE, config.paths.corpus / "nq" / "part-00000.parquet")
    store = VectorStore(config.paths.vectors / "encoder", config.tasks)
    # A block of one text belongs to one shard, so that each shard passes over blocks of which it needs nothing.
    for block in next(missing_blocks(config.paths, store, [], 1)).to_pylist():
        vector = np.asarray([[float(block["ids"][0]), 1, 1, 1]], dtype=np.float32)
        store.ledger("nq", "passage").commit(vector_table(block, vector, [False]))
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
    return config, store, manifest


def test_build_shard_of_blocks_without_a_passage_of_it(tmp_path):
    config, store, manifest = corpus_of(tmp_path)
    pieces = tmp_path / "pieces"
    for kind, files in (
        ("passages", corpus_files(config.paths, "nq")),
        ("vectors", parquet_files(store.ledger("nq", "passage").folder)),
    ):
        for first in range(0, len(files), 20):
            divide_files(files[first : first + 20], kind, 2, pieces, f"nq/{kind}/{first}.parquet")
    # What a shard does not need it never opens: the whole corpus and all vectors are gone.
    shutil.rmtree(store.folder)
    job = ShardJob(config.paths, config.build_settings, store, manifest, tmp_path / "staged", pieces, on_gpu=False)
    built = [build_shard(job, shard) for shard in range(2)]
    counts = [shard.rows["qa"] for shard in built]
    assert sum(counts) == 30 and min(counts) > 0
    for shard, one in enumerate(built):
        assert all(name.startswith(f"shards/{shard:05d}/") for name in one.files)
        folder = shard_folder(tmp_path / "staged", shard) / "qa"
        info = CollectionInfo.read(folder)
        assert info.identity.shard == shard
        found = Collection(folder, info)
        ids = found.payload["id"].to_pylist()
        assert [shard_of(row_id, 2) for row_id in ids] == [shard] * len(ids)
        assert found.vectors[:, 0].tolist() == [float(row_id) for row_id in ids]


def test_build_shard_that_is_the_only_one_reads_the_corpus_itself(tmp_path):
    config, store, manifest = corpus_of(tmp_path)
    whole = manifest.model_copy(update={"num_shards": 1})
    job = ShardJob(config.paths, config.build_settings, store, whole, tmp_path / "staged", None, on_gpu=False)
    assert build_shard(job, 0).rows["qa"] == 30


def test_size_of_a_shard_is_its_share_and_grows_with_the_width_of_vectors(tmp_path):
    config, _, _ = corpus_of(tmp_path, 300)
    whole, half = ShardSize.of(config.paths, 1), ShardSize.of(config.paths, 2)
    assert whole.rows == 300 and 150 < half.rows < 210 and whole.text_bytes == half.text_bytes > 0
    settings = config.build_settings
    assert whole.bytes(768, settings) > whole.bytes(384, settings) > half.bytes(384, settings)
    assert whole.line(384, settings).startswith("a shard of 300 passages takes 0.")


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
