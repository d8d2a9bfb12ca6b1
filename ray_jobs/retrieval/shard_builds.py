"""Builds the shards of an index version: passages and vectors are divided once, so that each shard reads only its own.

    building/FINGERPRINT.pieces/SHARD/DATASET/passages/*.parquet, vectors/*.parquet, and `divided` when all are there
    building/FINGERPRINT/shards/SHARD/          a shard that is built; in an object store its files are stored as those
                         SHARD.json             of versions are (embedder.index.stored_files), and a note names them

A task that builds a shard asks Ray for the memory that it will need, by `embedder.index.build_memory`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray

from embedder.config.index import BuildSettings
from embedder.config.paths import Paths
from embedder.config.run import EncoderConfig
from embedder.data.ledger import Ledger
from embedder.data.records import PASSAGE, VECTOR, each_table, open_parquet, parquet_files, write_table
from embedder.index.build_memory import build_bytes
from embedder.index.builder import CollectionPart, build_collection
from embedder.index.bundle import Manifest, shard_folder, shard_of
from embedder.index.collection import CollectionInfo
from embedder.index.documents import PAYLOAD
from embedder.index.faiss_index import check_faiss_gpu
from embedder.index.stored_files import file_sizes, put_files
from embedder.models.loader import read_config
from embedder.models.locate import locate_model
from embedder.storage.durable import appearing, remove_unfinished
from embedder.storage.json_file import write_json
from embedder.storage.node_cache import scratch
from embedder.storage.object_store import AnyPath, ObjectPath, replacing
from ray_jobs.cluster.machines import memory_request
from ray_jobs.cluster.metrics import track_progress
from ray_jobs.cluster.tables import corpus_files, datasets
from ray_jobs.retrieval.vectors import VectorStore

DIVIDED = "divided"
"""Beside the pieces once all are there."""
FILES_A_TASK = 4
"""Files of passages or vectors that a task divides."""
DIVIDE_BYTES = 1.5e9
"""Memory of such a task: four files of 16,384 vectors of 1,536 numbers, twice."""


@dataclass(frozen=True)
class ShardSize:
    """The passages that a shard is expected to hold."""

    rows: int
    """Passages: an even share, and what chance may add to it."""
    text_bytes: float
    """Of a passage with its id, title and metadata."""

    @classmethod
    def of(cls, paths: Paths, num_shards: int) -> ShardSize:
        """Read it from the footers of the corpus."""
        rows = size = 0
        for dataset in datasets(paths):
            for path in corpus_files(paths, dataset):
                with open_parquet(path) as file:
                    rows += file.metadata.num_rows
                    groups = (file.metadata.row_group(number) for number in range(file.metadata.num_row_groups))
                    size += sum(group.total_byte_size for group in groups)
        share = rows / num_shards
        return cls(min(rows, int(share + 4 * share**0.5) + 1), size / max(1, rows))

    def bytes(self, dimension: int, settings: BuildSettings) -> float:
        """Memory of the task that builds it."""
        return build_bytes(self.rows, dimension, self.text_bytes, settings)

    def request(self, dimension: int, settings: BuildSettings) -> int:
        """The same, as it is asked from Ray.

        Raises:
            ConfigError: no machine has so much.
        """
        told = f"building a shard of {self.rows:,} passages (index.num_shards divides them)"
        return memory_request(self.bytes(dimension, settings), told)

    def line(self, dimension: int, settings: BuildSettings) -> str:
        """The memory as the user reads it."""
        return f"a shard of {self.rows:,} passages takes {self.bytes(dimension, settings) / 1e9:,.1f} GB to build"


def vector_width(encoder: EncoderConfig) -> int:
    """Numbers of a vector, as the configuration of the model says before there is one."""
    width: int = read_config(locate_model(encoder.model)).get_text_config().hidden_size
    return width


@dataclass(frozen=True)
class BuiltShard:
    """A shard that is built."""

    files: dict[str, str]
    """SHA-256 of each, by its name in the bundle."""
    rows: dict[str, int]
    """Passages by task."""

    @classmethod
    def of(cls, bundle: Path, shard: int, infos: Mapping[str, CollectionInfo]) -> BuiltShard:
        """The shard of a bundle, from what its collections say."""
        folder, files = shard_folder(bundle, shard), dict[str, str]()
        for task, info in infos.items():
            files |= info.hashed_files(folder / task, bundle)
        return cls(files, {task: info.rows for task, info in infos.items()})


def build_shards(
    paths: Paths, settings: BuildSettings, store: VectorStore, manifest: Manifest, staged: AnyPath, gpus: float = 0
) -> Manifest:
    """Build what is not built yet of a version; returns its manifest with the shards' files and passages by task.

    Each task has so many GPUs.

    Raises:
        ConfigError: no machine has the memory that a shard takes.
    """
    if isinstance(staged, Path):
        remove_unfinished(staged / "shards")
    memory = ShardSize.of(paths, manifest.num_shards).request(manifest.dimension, settings)
    pieces = staged.with_name(f"{staged.name}.pieces") if manifest.num_shards > 1 else None
    if pieces is not None:
        divide_corpus(paths, store, manifest.num_shards, pieces)
    build = ray.remote(num_cpus=1, num_gpus=gpus, memory=memory)(build_shard)
    job = ShardJob(paths, settings, store, manifest, staged, pieces, on_gpu=bool(gpus))
    shared = ray.put(job)
    pending = [build.remote(shared, shard) for shard in range(manifest.num_shards)]
    files: dict[str, str] = {}
    collections = dict.fromkeys(sorted(store.tasks), 0)
    with track_progress("index: shards", len(pending)) as counter:
        for reference in pending:
            built = ray.get(reference)
            files |= built.files
            for task, rows in built.rows.items():
                collections[task] += rows
            counter.advance(1)
    return manifest.model_copy(update={"files": files, "collections": collections})


def divide_corpus(paths: Paths, store: VectorStore, num_shards: int, pieces: AnyPath) -> None:
    """Write passages and vectors again, a file a shard and task, unless that was done."""
    if (pieces / DIVIDED).is_file():
        return
    divide = ray.remote(num_cpus=1, memory=memory_request(DIVIDE_BYTES, "dividing the corpus"))(divide_files)
    pending = []
    for dataset in datasets(paths):
        vectors = parquet_files(store.ledger(dataset, "passage").folder)
        sources: dict[str, Sequence[AnyPath]] = {"passages": corpus_files(paths, dataset), "vectors": vectors}
        for kind, files in sources.items():
            for first in range(0, len(files), FILES_A_TASK):
                name = f"{first // FILES_A_TASK:05d}.parquet"
                own = files[first : first + FILES_A_TASK]
                pending.append(divide.remote(own, kind, num_shards, pieces, f"{dataset}/{kind}/{name}"))
    with track_progress("index: files divided", len(pending)) as counter:
        for reference in pending:
            ray.get(reference)
            counter.advance(1)
    with replacing(pieces / DIVIDED):
        pass


def divide_files(files: Sequence[AnyPath], kind: str, num_shards: int, pieces: AnyPath, name: str) -> None:
    """Task: write the rows of some files, `passages` or `vectors`, by shard."""
    schema = PASSAGE if kind == "passages" else VECTOR
    parts: dict[int, list[pa.Table]] = defaultdict(list)
    for table in each_table(files, schema):
        shard = np.array([shard_of(row_id, num_shards) for row_id in table["id"].to_pylist()])
        for number in np.unique(shard).tolist():
            parts[number].append(table.filter(pa.array(shard == number)))
    for number, own in parts.items():
        write_table(pa.concat_tables(own), schema, pieces / f"{number:05d}" / name)


@dataclass(frozen=True)
class ShardJob:
    """All that a task needs to build a shard."""

    paths: Paths
    settings: BuildSettings
    store: VectorStore
    manifest: Manifest
    staged: AnyPath
    """Folder of what is built for the version."""
    pieces: AnyPath | None
    """None: each shard reads the whole corpus."""
    on_gpu: bool

    def parts(self, shard: int) -> dict[str, list[CollectionPart]]:
        """The passages of a shard by task, from its pieces or from the whole corpus."""
        found: dict[str, list[CollectionPart]] = defaultdict(list)
        for dataset in datasets(self.paths):
            own = None if self.pieces is None else self.pieces / f"{shard:05d}" / dataset
            files = corpus_files(self.paths, dataset) if own is None else parquet_files(own / "passages")
            ledger = self.store.ledger(dataset, "passage") if own is None else Ledger(own / "vectors", VECTOR, "row_id")
            passages = pa.concat_tables([PASSAGE.empty_table(), *each_table(files, PASSAGE)])
            if passages.num_rows:
                payload = passages.select(PAYLOAD.names).cast(PAYLOAD)
                keys = self.store.keys(passages, "passage")
                found[passages["task"][0].as_py()].append(CollectionPart(payload, keys, ledger))
        return found

    def write(self, shard: int, folder: Path) -> None:
        """Build the collections of a shard into a folder."""
        parts = self.parts(shard)
        for task in sorted(self.store.tasks):
            (folder / task).mkdir(parents=True)
            identity = self.manifest.collection_identity(task, shard)
            build_collection(folder / task, parts.pop(task, []), identity, self.settings, on_gpu=self.on_gpu)

    def built(self, bundle: Path, shard: int) -> BuiltShard:
        """The shard, as it stands in a folder."""
        folder = shard_folder(bundle, shard)
        return BuiltShard.of(bundle, shard, {task: CollectionInfo.read(folder / task) for task in self.store.tasks})


def build_shard(job: ShardJob, shard: int) -> BuiltShard:
    """Task: build one shard, unless that was done."""
    if job.on_gpu:
        check_faiss_gpu()
    if isinstance(job.staged, ObjectPath):
        return _build_stored(job, shard, job.staged)
    folder = shard_folder(job.staged, shard)
    if not folder.is_dir():
        # The folder appears as a whole when all its collections are built: what is there need not be looked into.
        with appearing(folder) as staged:
            job.write(shard, staged)
    return job.built(job.staged, shard)


def _build_stored(job: ShardJob, shard: int, staged: ObjectPath) -> BuiltShard:
    """Build a shard on this machine, and store its files and then a note of them."""
    note, indexes = staged / f"{shard:05d}.json", staged.parent.parent
    if note.is_file():
        built = BuiltShard(**json.loads(note.read_text()))
        if set(built.files.values()) <= file_sizes(indexes).keys():
            return built
    with scratch(f"shard-{shard:05d}") as bundle:
        job.write(shard, shard_folder(bundle, shard))
        built = job.built(bundle, shard)
        put_files(indexes, bundle, built.files)
    write_json(asdict(built), note)
    return built
