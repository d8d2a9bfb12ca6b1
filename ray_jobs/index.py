"""Embed the corpus with the trained encoder and write the bundle that `serve` deploys.

    python -m ray_jobs.index --config configs/demo.yaml

reads   model/ (or index.model), prepared/corpus       records.PASSAGE
writes  vectors/ENCODER/DATASET.key/*.parquet          committed blocks; a second run encodes only what is missing
        bundle/                                        model, FAISS shards, payload, manifest.json (embedder.bundle)

Ray Data actors encode, one Ray task a shard builds. The new bundle takes the old one's place when it is complete.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow as pa
import ray

from embedder.bundle import MODEL, Manifest, hash_files, instructions, publish, shard_folder, verify
from embedder.config import EncoderConfig, RunConfig
from embedder.cost import Work, forward_flops, tokens_of
from embedder.errors import ModelError
from embedder.fingerprint import encoder_fingerprint
from embedder.index import PAYLOAD, Collection
from embedder.locate import count_parameters, locate_model
from embedder.progress import progress
from embedder.records import PASSAGE, read_tables, row_seed
from embedder.reports import StageReport, console
from ray_jobs.session import Job, main
from ray_jobs.tables import corpus_characters, corpus_files, count_rows, datasets
from ray_jobs.vectors import VectorStore, ensure_vectors


def bundle_model(config: RunConfig) -> EncoderConfig:
    """The encoder of the bundle: `index.model`, or the trained one.

    Raises:
        ModelError: it is the name of a hub model, whose files a bundle could not carry.
    """
    encoder = config.encoder.model_copy(update={"model": config.index.model or str(config.paths.model)})
    if isinstance(locate_model(encoder.model), str):
        raise ModelError(f"index.model {encoder.model!r}: give a folder; a bundle carries its model's files")
    return encoder


def check(config: RunConfig) -> Work:
    """The prepared corpus and the encoder's folder exist."""
    parameters = count_parameters(locate_model(bundle_model(config).model))
    lines, characters = [], 0
    for name in datasets(config):
        files = corpus_files(config, name)
        characters += corpus_characters(files)
        lines.append(
            f"{name}: {count_rows(files):,} passages into {config.index.num_shards} shards, {config.index.factory}"
        )
    return Work("index", lines, forward_flops(parameters, tokens_of(characters)))


def run(config: RunConfig) -> StageReport:
    """Encode, build the shards in parallel, and publish the bundle."""
    encoder = bundle_model(config)
    store, encoded = ensure_vectors(config, encoder, [])
    staged = config.paths.bundle.with_name(f".bundle-staged.{uuid4().hex}")
    try:
        shutil.copytree(
            encoder.model, staged / MODEL, ignore=shutil.ignore_patterns("*.bin", "*.pt", "*.pkl", "*.h5", ".*")
        )
        task = ray.remote(num_cpus=1)(build_shard)
        pending = [
            task.remote(config, store, shard, shard_folder(staged, shard)) for shard in range(config.index.num_shards)
        ]
        collections: dict[str, int] = {}
        width = 0
        with progress("index: shards", len(pending), console()) as counter:
            for reference in pending:
                for name, (count, dimension) in ray.get(reference).items():
                    collections[name] = collections.get(name, 0) + count
                    width = dimension
                counter.advance(1)
        manifest = Manifest(
            name=config.paths.work.name,
            encoder_fingerprint=encoder_fingerprint(encoder),
            pooling=encoder.pooling,
            max_tokens=encoder.max_tokens,
            dimension=width,
            tasks=instructions(store.tasks),
            collections=collections,
            num_shards=config.index.num_shards,
            files=hash_files(staged),
        )
        publish(staged, manifest, config.paths.bundle)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    verify(config.paths.bundle)
    report = StageReport("index", sum(collections.values()), "passages", details={"encoded": encoded, **collections})
    report.lines = [f"{name}: {count:,} passages" for name, count in sorted(collections.items())]
    report.lines.append(
        f"bundle {config.paths.bundle}: model {manifest.encoder_fingerprint}, index {manifest.index_version}, "
        f"{manifest.num_shards} shards of {width} dimensions"
    )
    return report


def build_shard(config: RunConfig, store: VectorStore, shard: int, folder: Path) -> dict[str, tuple[int, int]]:
    """Build one shard's collections: of each task the passages whose id hashes to it.

    Returns passages and dimensions by task.
    """
    folder.mkdir(parents=True)
    parts: dict[str, list[tuple[np.ndarray, pa.Table]]] = {}
    for dataset in datasets(config):
        table = read_tables(corpus_files(config, dataset), PASSAGE)
        mine = [row_seed(0, row_id) % config.index.num_shards == shard for row_id in table["id"].to_pylist()]
        table = table.filter(pa.array(mine))
        if table.num_rows:
            task = table["task"][0].as_py()
            vectors = store.read(dataset, "key", store.keys(table, "key"))
            parts.setdefault(task, []).append((vectors, table.select(PAYLOAD.names)))
    built = {}
    for task, pieces in sorted(parts.items()):
        matrix = np.concatenate([matrix for matrix, _ in pieces])
        payload = pa.concat_tables([payload for _, payload in pieces])
        Collection.build(matrix, payload, config.index.factory).save(folder / task)
        built[task] = matrix.shape
    return built


JOB = Job("index", __doc__, check, run)

if __name__ == "__main__":
    main(JOB)
