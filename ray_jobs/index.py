"""Embed the corpus with the trained encoder and write the version of the index that `serve` deploys.

    python -m ray_jobs.index --config configs/demo.yaml

reads   model/ (or index.model), prepared/corpus       records.PASSAGE
writes  vectors/ENCODER/DATASET.passage/*.parquet          committed blocks; a second run encodes only what is missing
        indexes/versions/VERSION/                      a bundle: model, shards, manifest.json (embedder.index.bundle)
        indexes/aliases.json                           `index.alias` now names this version (embedder.index.catalog)

Ray Data actors encode, one Ray task a shard builds, in memory for its own shard alone. A job that is started again goes
on with the shards that are built. Other versions, and what was written to them, stay as they are.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from embedder.config.run import EncoderConfig, RunConfig
from embedder.data.records import PASSAGE, each_table, parquet_files
from embedder.errors import DataError, ModelError
from embedder.hashing import content_id, file_sha256
from embedder.index.builder import CollectionPart, build_collection
from embedder.index.bundle import MODEL, Manifest, instructions, shard_folder, shard_of
from embedder.index.catalog import Catalog
from embedder.index.collection import CollectionIdentity, CollectionInfo
from embedder.index.documents import PAYLOAD
from embedder.index.manifest import hash_files
from embedder.models.fingerprint import encoder_fingerprint
from embedder.models.locate import count_parameters, locate_model
from embedder.run.cost import Work, forward_flops, tokens_of
from embedder.run.stage_report import StageReport
from embedder.storage.durable import place_durably, remove_unfinished, unfinished_folder
from ray_jobs.cluster.metrics import track_progress
from ray_jobs.cluster.session import Job, main
from ray_jobs.cluster.tables import corpus_characters, corpus_files, count_rows, datasets
from ray_jobs.retrieval.vectors import VectorStore, ensure_vectors


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
    """Encode, build the shards in parallel, publish the version, and let the alias name it."""
    encoder = bundle_model(config)
    store, encoded = ensure_vectors(config, encoder, [])
    catalog = Catalog(config.paths.indexes)
    building = config.paths.indexes / "building"
    staged = building / _fingerprint(config, store)
    place = CollectionIdentity(
        task="",
        shard=0,
        num_shards=config.index.num_shards,
        encoder_fingerprint=encoder_fingerprint(encoder),
        dimension=_dimension(config, store),
    )
    files, collections = _build_shards(config, store, place, staged)
    model = staged / MODEL
    shutil.rmtree(model, ignore_errors=True)
    shutil.copytree(
        locate_model(encoder.model), model, ignore=shutil.ignore_patterns("*.bin", "*.pt", "*.pkl", "*.h5", ".*")
    )
    manifest = Manifest(
        name=config.paths.work.name,
        encoder_fingerprint=place.encoder_fingerprint,
        pooling=encoder.pooling,
        max_tokens=encoder.max_tokens,
        int8=encoder.int8,
        dimension=place.dimension,
        tasks=instructions(store.tasks),
        collections=collections,
        num_shards=place.num_shards,
        files=files | {f"{MODEL}/{name}": digest for name, digest in hash_files(model).items()},
    )
    manifest.write(staged)
    catalog.publish(staged, manifest.index_version)
    shutil.rmtree(building, ignore_errors=True)
    catalog.point(config.index.alias, manifest.index_version)
    catalog.mark_built(manifest.index_version)
    return _report(config, manifest, encoded)


def _report(config: RunConfig, manifest: Manifest, encoded: int) -> StageReport:
    counts = {name: count for name, count in sorted(manifest.collections.items()) if count}
    details = {"encoded": encoded, "version": manifest.index_version, **counts}
    report = StageReport("index", sum(counts.values()), "passages", details=details)
    report.lines = [f"{name}: {count:,} passages" for name, count in counts.items()]
    report.lines.append(
        f"{Catalog(config.paths.indexes).bundle(manifest.index_version)}: served as {config.index.alias!r}, model "
        f"{manifest.model_version}, {manifest.num_shards} shards of {manifest.dimension} dimensions"
    )
    return report


def _fingerprint(config: RunConfig, store: VectorStore) -> str:
    """Identity of the shards that are built; shards of another are not resumed."""
    corpora = {name: [file_sha256(path) for path in corpus_files(config, name)] for name in datasets(config)}
    tasks = {name: spec.passage_instruction for name, spec in store.tasks.items()}
    settings = [config.index.build_settings.model_dump(mode="json"), config.index.num_shards]
    return content_id(store.folder.name, tasks, settings, corpora)


def _dimension(config: RunConfig, store: VectorStore) -> int:
    """Width of the vectors, from one of them.

    Raises:
        DataError: there is none.
    """
    blocks = (parquet_files(store.ledger(name, "passage").folder) for name in datasets(config))
    first = next((path for paths in blocks for path in paths), None)
    if first is None:
        raise DataError(f"{config.paths.corpus}: no passages to index; run `python -m ray_jobs.prepare` on some")
    return len(pq.ParquetFile(first).read_row_group(0, ["vector"])["vector"][0])


def _build_shards(
    config: RunConfig, store: VectorStore, place: CollectionIdentity, staged: Path
) -> tuple[dict[str, str], dict[str, int]]:
    """Build what is not built yet; returns the hashes of all files, and passages by task."""
    remove_unfinished(staged / "shards")
    build = ray.remote(num_cpus=1)(build_shard)
    pending = [
        build.remote(config, store, place.model_copy(update={"shard": shard}), shard_folder(staged, shard))
        for shard in range(place.num_shards)
    ]
    files: dict[str, str] = {}
    collections = dict.fromkeys(sorted(store.tasks), 0)
    with track_progress("index: shards", len(pending)) as counter:
        for shard, reference in enumerate(pending):
            for task, info in ray.get(reference).items():
                files |= info.sealed_files(shard_folder(staged, shard) / task, staged)
                collections[task] += info.rows
            counter.advance(1)
    return files, collections


def build_shard(
    config: RunConfig, store: VectorStore, place: CollectionIdentity, folder: Path
) -> dict[str, CollectionInfo]:
    """Build one shard: of every task, the passages whose id hashes to it. Returns what was built by task."""
    if not folder.is_dir():
        parts = shard_parts(config, store, place)
        staged = unfinished_folder(folder)
        for task in sorted(store.tasks):
            (staged / task).mkdir()
            own = place.model_copy(update={"task": task})
            build_collection(staged / task, parts[task], own, config.index.build_settings)
        place_durably(staged, folder)
    return {task: CollectionInfo.read(folder / task) for task in sorted(store.tasks)}


def shard_parts(config: RunConfig, store: VectorStore, place: CollectionIdentity) -> dict[str, list[CollectionPart]]:
    """The passages of one shard by task; of the corpora one file at a time is in memory."""
    parts: dict[str, list[CollectionPart]] = defaultdict(list)
    for dataset in datasets(config):
        kept = []
        for table in each_table(corpus_files(config, dataset), PASSAGE):
            mine = [shard_of(row_id, place.num_shards) == place.shard for row_id in table["id"].to_pylist()]
            kept.append(table.filter(pa.array(mine, pa.bool_())))
        passages = pa.concat_tables(kept)
        if passages.num_rows:
            payload = passages.select(PAYLOAD.names).cast(PAYLOAD)
            part = CollectionPart(payload, store.keys(passages, "passage"), store.ledger(dataset, "passage"))
            parts[passages["task"][0].as_py()].append(part)
    return parts


JOB = Job("index", __doc__, check, run)

if __name__ == "__main__":
    main(JOB)
