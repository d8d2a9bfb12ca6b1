"""The shards of an index version, each built by a Ray task of its own, in memory for its own passages alone."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from embedder.config.index import BuildSettings
from embedder.config.paths import Paths
from embedder.config.run import RunConfig
from embedder.data.records import PASSAGE, each_table, open_parquet, parquet_files
from embedder.errors import DataError
from embedder.hashing import content_id, file_sha256
from embedder.index.builder import CollectionPart, build_collection
from embedder.index.bundle import Manifest, shard_folder, shard_of
from embedder.index.collection import CollectionInfo
from embedder.index.documents import PAYLOAD
from embedder.index.faiss_index import check_faiss_gpu
from embedder.index.probe import TEXTS
from embedder.storage.durable import appearing, remove_unfinished
from ray_jobs.cluster.metrics import track_progress
from ray_jobs.cluster.tables import corpus_files, datasets
from ray_jobs.retrieval.vectors import VectorStore


def shards_fingerprint(config: RunConfig, store: VectorStore) -> str:
    """Identity of the shards that are built; shards of another are not resumed."""
    corpora = {
        name: [file_sha256(path) for path in corpus_files(config.paths, name)] for name in datasets(config.paths)
    }
    tasks = {name: spec.passage_instruction for name, spec in store.tasks.items()}
    shape = [config.build_settings.model_dump(mode="json"), config.index.num_shards]
    return content_id(store.folder.name, tasks, shape, corpora)


def vector_dimension(paths: Paths, store: VectorStore) -> int:
    """Width of the vectors, from one of them.

    Raises:
        DataError: there is none.
    """
    blocks = (parquet_files(store.ledger(name, "passage").folder) for name in datasets(paths))
    first = next((path for paths in blocks for path in paths), None)
    if first is None:
        raise DataError(f"{paths.corpus}: no passages to index; run `python -m ray_jobs.prepare` on some")
    try:
        with open_parquet(first) as file:
            return len(file.read_row_group(0, ["vector"])["vector"][0])
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{first}: not a readable Parquet file of vectors ({reason}); run the job again") from error


def probe_texts(paths: Paths, store: VectorStore, max_tokens: int) -> tuple[list[str], np.ndarray]:
    """Passages of every dataset with their instruction, `probe.TEXTS` at most, and their vectors (N, D)."""
    names = datasets(paths)
    texts, vectors = [], []
    for name in names:
        table = next(each_table(corpus_files(paths, name), PASSAGE))
        if not table.num_rows:
            continue
        lengths = pc.utf8_length(table["text"]).to_numpy()
        # Short ones alone if there are enough, because a text that is cut would compare the cutting too.
        order = np.argsort(np.maximum(lengths, 2 * max_tokens), kind="stable")
        fitting = order[: max(-(-TEXTS // len(names)), int((lengths <= 2 * max_tokens).sum()))]
        chosen = table.take(pa.array(fitting[:: max(1, len(fitting) * len(names) // TEXTS)]))
        spec = store.tasks[chosen["task"][0].as_py()]
        texts += [str(spec.prompted("passage", text)) for text in chosen["text"].to_pylist()]
        vectors.append(store.read(name, "passage", store.keys(chosen, "passage")))
    return texts[:TEXTS], np.concatenate(vectors)[:TEXTS]


def check_shard_gpus(gpus: float) -> None:
    """Try FAISS on a GPU of the cluster, in a process of its own, where a shard is to have so many.

    Raises:
        DeviceError: it finds none.
    """
    if gpus:
        ray.get(ray.remote(num_gpus=gpus, num_cpus=0)(check_faiss_gpu).remote())


def build_shards(
    paths: Paths, settings: BuildSettings, store: VectorStore, manifest: Manifest, staged: Path, gpus: float = 0
) -> Manifest:
    """Build what is not built yet of a version; returns its manifest with the shards' files and passages by task.

    Each task has so many GPUs.
    """
    remove_unfinished(staged / "shards")
    build = ray.remote(num_cpus=1, num_gpus=gpus)(build_shard)
    pending = [
        build.remote(paths, settings, store, manifest, shard, shard_folder(staged, shard), on_gpu=bool(gpus))
        for shard in range(manifest.num_shards)
    ]
    files: dict[str, str] = {}
    collections = dict.fromkeys(sorted(store.tasks), 0)
    with track_progress("index: shards", len(pending)) as counter:
        for shard, reference in enumerate(pending):
            for task, info in ray.get(reference).items():
                files |= info.hashed_files(shard_folder(staged, shard) / task, staged)
                collections[task] += info.rows
            counter.advance(1)
    return manifest.model_copy(update={"files": files, "collections": collections})


def build_shard(  # noqa: PLR0913  (the arguments of a task, which travel apart)
    paths: Paths,
    settings: BuildSettings,
    store: VectorStore,
    manifest: Manifest,
    shard: int,
    folder: Path,
    *,
    on_gpu: bool = False,
) -> dict[str, CollectionInfo]:
    """Build one shard: of every task, the passages whose id hashes to it. Returns what was built by task."""
    if on_gpu:
        check_faiss_gpu()
    if not folder.is_dir():
        parts = shard_parts(paths, store, manifest.num_shards, shard)
        # The folder appears as a whole when all its collections are built: what is there need not be looked into.
        with appearing(folder) as staged:
            for task in sorted(store.tasks):
                (staged / task).mkdir()
                identity = manifest.collection_identity(task, shard)
                build_collection(staged / task, parts[task], identity, settings, on_gpu=on_gpu)
    return {task: CollectionInfo.read(folder / task) for task in sorted(store.tasks)}


def shard_parts(paths: Paths, store: VectorStore, num_shards: int, shard: int) -> dict[str, list[CollectionPart]]:
    """The passages of one shard by task; of the corpora one file at a time is in memory."""
    parts: dict[str, list[CollectionPart]] = defaultdict(list)
    for dataset in datasets(paths):
        kept = []
        for table in each_table(corpus_files(paths, dataset), PASSAGE):
            mine = [shard_of(row_id, num_shards) == shard for row_id in table["id"].to_pylist()]
            kept.append(table.filter(pa.array(mine, pa.bool_())))
        passages = pa.concat_tables(kept)
        if passages.num_rows:
            payload = passages.select(PAYLOAD.names).cast(PAYLOAD)
            part = CollectionPart(payload, store.keys(passages, "passage"), store.ledger(dataset, "passage"))
            parts[passages["task"][0].as_py()].append(part)
    return parts
