"""Builds the shards of an index version: passages and vectors are divided once, so that each shard reads only its own.

    building/FINGERPRINT.pieces/SHARD/DATASET/passages/*.parquet, vectors/*.parquet, and `divided` when all are there

A task that builds a shard asks Ray for the memory that it will need, by `embedder.index.build_memory`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
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
from embedder.models.loader import read_config
from embedder.models.locate import locate_model
from embedder.storage.durable import appearing, remove_unfinished
from embedder.storage.object_store import AnyPath
from ray_jobs.cluster.machines import memory_request
from ray_jobs.cluster.metrics import track_progress
from ray_jobs.cluster.tables import corpus_files, datasets
from ray_jobs.retrieval.vectors import VectorStore

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


def build_shards(
    paths: Paths, settings: BuildSettings, store: VectorStore, manifest: Manifest, staged: Path, gpus: float = 0
) -> Manifest:
    """Build what is not built yet of a version; returns its manifest with the shards' files and passages by task.

    Each task has so many GPUs.

    Raises:
        ConfigError: no machine has the memory that a shard takes.
    """
    remove_unfinished(staged / "shards")
    memory = ShardSize.of(paths, manifest.num_shards).request(manifest.dimension, settings)
    pieces = staged.with_name(f"{staged.name}.pieces") if manifest.num_shards > 1 else None
    if pieces is not None:
        divide_corpus(paths, store, manifest.num_shards, pieces)
    build = ray.remote(num_cpus=1, num_gpus=gpus, memory=memory)(build_shard)
    pending = [
        build.remote(paths, settings, store, manifest, shard, shard_folder(staged, shard), pieces, on_gpu=bool(gpus))
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


def divide_corpus(paths: Paths, store: VectorStore, num_shards: int, pieces: Path) -> None:
    """Write passages and vectors again, a file a shard and task, unless that was done."""
    if (pieces / "divided").is_file():
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
                pending.append(divide.remote(own, kind, num_shards, pieces, Path(dataset, kind, name)))
    with track_progress("index: files divided", len(pending)) as counter:
        for reference in pending:
            ray.get(reference)
            counter.advance(1)
    (pieces / "divided").touch()


def divide_files(files: Sequence[AnyPath], kind: str, num_shards: int, pieces: Path, name: Path) -> None:
    """Task: write the rows of some files, `passages` or `vectors`, by shard."""
    schema = PASSAGE if kind == "passages" else VECTOR
    parts: dict[int, list[pa.Table]] = defaultdict(list)
    for table in each_table(files, schema):
        shard = np.array([shard_of(row_id, num_shards) for row_id in table["id"].to_pylist()])
        for number in np.unique(shard).tolist():
            parts[number].append(table.filter(pa.array(shard == number)))
    for number, own in parts.items():
        write_table(pa.concat_tables(own), schema, pieces / f"{number:05d}" / name)


def build_shard(  # noqa: PLR0913  (the arguments of a task, which travel apart)
    paths: Paths,
    settings: BuildSettings,
    store: VectorStore,
    manifest: Manifest,
    shard: int,
    folder: Path,
    pieces: Path | None,
    *,
    on_gpu: bool = False,
) -> dict[str, CollectionInfo]:
    """Task: build one shard, from its pieces or, if there are none, from the whole corpus; returns it by task."""
    if on_gpu:
        check_faiss_gpu()
    if not folder.is_dir():
        parts: dict[str, list[CollectionPart]] = defaultdict(list)
        for dataset in datasets(paths):
            own = None if pieces is None else pieces / f"{shard:05d}" / dataset
            files = corpus_files(paths, dataset) if own is None else parquet_files(own / "passages")
            ledger = store.ledger(dataset, "passage") if own is None else Ledger(own / "vectors", VECTOR, "row_id")
            passages = pa.concat_tables([PASSAGE.empty_table(), *each_table(files, PASSAGE)])
            if passages.num_rows:
                payload = passages.select(PAYLOAD.names).cast(PAYLOAD)
                keys = store.keys(passages, "passage")
                parts[passages["task"][0].as_py()].append(CollectionPart(payload, keys, ledger))
        # The folder appears as a whole when all its collections are built: what is there need not be looked into.
        with appearing(folder) as staged:
            for task in sorted(store.tasks):
                (staged / task).mkdir()
                identity = manifest.collection_identity(task, shard)
                build_collection(staged / task, parts.pop(task, []), identity, settings, on_gpu=on_gpu)
    return {task: CollectionInfo.read(folder / task) for task in sorted(store.tasks)}
