"""What the shards of an index version are made of, its width and its probe; `shard_builds` builds them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from embedder.config.paths import Paths
from embedder.config.run import RunConfig
from embedder.data.records import PASSAGE, each_table, open_parquet, parquet_files
from embedder.errors import DataError
from embedder.hashing import content_id
from embedder.index.faiss_index import check_faiss_gpu
from embedder.index.probe import TEXTS
from embedder.storage.folders import content_hashes
from ray_jobs.cluster.tables import corpus_files, datasets
from ray_jobs.retrieval.vectors import VectorStore


def shards_fingerprint(config: RunConfig, store: VectorStore) -> str:
    """Identity of the shards that are built; shards of another are not resumed."""
    corpora = {name: content_hashes(corpus_files(config.paths, name)) for name in datasets(config.paths)}
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
