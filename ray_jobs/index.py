"""Embed the corpus with the trained encoder and write the version of the index that `serve` deploys.

    python -m ray_jobs.index --config configs/demo.yaml

reads   model/ (or index.model), prepared/corpus       records.PASSAGE
        reranker/model/                                if `label` trained one, which is then served too
writes  vectors/ENCODER/DATASET.passage/*.parquet          committed blocks; a second run encodes only what is missing
        indexes/versions/VERSION/                      a bundle: model, shards, manifest.json (embedder.index.bundle)
        indexes/catalog/NUMBER.json                    `index.alias` now names this version (embedder.index.catalog)

Ray Data actors encode, one Ray task a shard builds, in memory for its own shard alone. A job that is started again goes
on with the shards that are built. Other versions, and what was written to them, stay as they are.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from embedder.config.run import EncoderConfig, RunConfig
from embedder.credentials import SECRET_FILES
from embedder.errors import ModelError
from embedder.hashing import file_sha256
from embedder.models.locate import locate_model
from embedder.run.cost import Work
from embedder.run.stage_report import StageReport
from embedder.storage.fetched import whole_copy
from embedder.storage.folders import folder_here, is_whole, remove_folder
from embedder.storage.holding import check_lease
from embedder.storage.object_store import AnyPath, reference_of
from ray_jobs.cluster.session import Job, main
from ray_jobs.cluster.tables import encoding_work

if TYPE_CHECKING:
    from embedder.index.bundle import Manifest


def bundle_model(config: RunConfig) -> EncoderConfig:
    """The encoder of the bundle: `index.model`, or the trained one.

    Raises:
        ModelError: nothing was trained yet.
    """
    if config.index.model is None and not is_whole(config.paths.model):
        raise ModelError(
            f"{config.paths.model}: no trained encoder; run `python -m ray_jobs.train` first, or name index.model"
        )
    return config.encoder.model_copy(update={"model": config.index.model or reference_of(config.paths.model)})


def check(config: RunConfig) -> Work:
    """The prepared corpus and the encoder's folder exist."""
    encoder = bundle_model(config)
    # First, because without a trained model nothing else needs to be told.
    locate_model(encoder.model)
    line = f" into {config.index.num_shards} shards, {config.index.factory}"
    work = encoding_work("index", config.paths, encoder, lambda name: line)
    # Last and imported here, because torch comes with it: what can be refused without torch has been by now.
    from embedder.models.encoder import check_encoder
    from ray_jobs.retrieval.shard_builds import ShardSize, vector_width

    check_encoder(encoder)
    size = ShardSize.of(config.paths, config.index.num_shards)
    return replace(work, lines=[*work.lines, size.line(vector_width(encoder), config.build_settings)])


def run(config: RunConfig) -> StageReport:
    """Encode, build the shards in parallel, publish the version, and let the alias name it."""
    from embedder.index.bundle import MODEL, RERANKER, Manifest, instructions
    from embedder.index.catalog import BUILDING, Catalog
    from embedder.index.probe import PROBE, write_probe
    from embedder.models.fingerprint import encoder_fingerprint
    from ray_jobs.retrieval.shard_builds import DIVIDED, ShardSize, build_shards, vector_width
    from ray_jobs.retrieval.shards import check_shard_gpus, probe_texts, shards_fingerprint, vector_dimension
    from ray_jobs.retrieval.vectors import fill_store, open_store

    encoder, gpus = bundle_model(config), config.index.gpus_per_shard
    # Before any text is encoded, which may take hours.
    check_shard_gpus(gpus)
    size = ShardSize.of(config.paths, config.index.num_shards)
    size.request(vector_width(encoder), config.build_settings)
    store = open_store(config, encoder)
    encoded = fill_store(config, store, encoder, [])
    cut_lines = store.cut_lines(config.paths, [])
    catalog = Catalog(config.paths.indexes)
    building = config.paths.indexes / BUILDING
    place = building / shards_fingerprint(config, store)
    manifest = Manifest(
        name=config.paths.work.name,
        encoder_fingerprint=encoder_fingerprint(encoder),
        pooling=encoder.pooling,
        max_tokens=encoder.max_tokens,
        dtype=encoder.dtype,
        dimension=vector_dimension(config.paths, store),
        tasks=instructions(store.tasks),
        num_shards=config.index.num_shards,
        collections={},
        files={},
    )
    manifest = build_shards(config.paths, config.build_settings, store, manifest, place, gpus)
    # Beside the shards; in a store these are stored already.
    with folder_here(place) as staged:
        files = _copied_model(locate_model(encoder.model), staged / MODEL)
        # Left by a start that was cut off, of a run that had one.
        shutil.rmtree(staged / RERANKER, ignore_errors=True)
        if reranker := trained_reranker(config):
            files |= _copied_model(whole_copy(reranker), staged / RERANKER)
        write_probe(*probe_texts(config.paths, store, encoder.max_tokens), staged)
        files[PROBE] = file_sha256(staged / PROBE)
        manifest = manifest.model_copy(update={"files": manifest.files | files})
        manifest.write(staged)
        # The alias moves when the version is whole, so that a service that looks now never reads half of one; what is
        # left in `building` is of no use any more. The mark comes last: with it the stage counts as done.
        check_lease()
        catalog.publish(staged, manifest.index_version)
    # First, so that shards which a kill leaves to be built again are not built without what it took.
    (place.with_name(f"{place.name}.pieces") / DIVIDED).unlink(missing_ok=True)
    remove_folder(building)
    catalog.point(config.index.alias, manifest.index_version)
    catalog.mark_built(manifest.index_version)
    report = _report(manifest, encoded, catalog.bundle(manifest.index_version), config.index.alias)
    report.lines += cut_lines
    if manifest.has_reranker:
        report.lines.append("the reranker that `label` trained is served beside it")
    return report


def trained_reranker(config: RunConfig) -> AnyPath | None:
    """The cross-encoder that labelled for this run; None: the LLM did, or nothing was trained yet."""
    folder = config.paths.reranker
    return folder if config.label.teacher == "reranker" and is_whole(folder) else None


def _copied_model(source: Path, target: Path) -> dict[str, str]:
    """Copy a model folder into a bundle; returns the hashes of its files."""
    from embedder.index.manifest import hash_files

    # Weights in safetensors alone: a pickle could run code where the bundle is served. And no key that lies there.
    left = shutil.ignore_patterns("*.bin", "*.pt", "*.pkl", "*.h5", ".*", *SECRET_FILES)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=left)
    return {f"{target.name}/{name}": digest for name, digest in hash_files(target).items()}


def _report(manifest: Manifest, encoded: int, bundle: AnyPath, alias: str) -> StageReport:
    counts = {name: count for name, count in sorted(manifest.collections.items()) if count}
    details = {"encoded": encoded, "version": manifest.index_version, **counts}
    report = StageReport("index", sum(counts.values()), "passages", details=details)
    report.lines = [f"{name}: {count:,} passages" for name, count in counts.items()]
    report.lines.append(
        f"{bundle}: served as {alias!r}, model "
        f"{manifest.model_version}, {manifest.num_shards} shards of {manifest.dimension} dimensions"
    )
    return report


JOB = Job("index", __doc__, check, run)

if __name__ == "__main__":
    main(JOB)
