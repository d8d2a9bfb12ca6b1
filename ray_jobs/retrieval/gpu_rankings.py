"""Dense rankings on the encoder's GPUs: a task a GPU searches its share of the vectors' files for all queries.

The queries lie on each GPU, and the passages pass by: they are read, filtered and copied to pinned memory beside the
search. What the tasks found is merged once, at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
from numpy.typing import NDArray

from embedder.config.paths import Paths
from embedder.config.run import EncoderConfig
from embedder.data.records import PASSAGE, VECTOR, Split, each_table, parquet_files, read_tables
from embedder.data.row_ids import RowIds
from embedder.errors import DeviceError
from embedder.index.exact import Ranked, Vectors
from embedder.mining.device_search import BLOCK_ROWS, DeviceSearch, merge_ranked, with_ids
from embedder.mining.ranking import Ranking
from embedder.models.device import resolve_device
from embedder.models.memory import one_memory_error
from embedder.run.gpu_shares import gpu_cpus
from embedder.storage.object_store import AnyPath
from ray_jobs.cluster.machines import machines
from ray_jobs.cluster.tables import corpus_files, datasets, query_table
from ray_jobs.retrieval.vectors import VectorStore, vector_matrix

T = TypeVar("T")

STAGED_ROWS = 4 * BLOCK_ROWS
"""Passages that are brought to the GPU together: 200 MB at 768 dimensions, twice, since the next ones are read beside.
"""
FILES_AHEAD = 4
"""Files that a thread reads ahead of those in use."""


@dataclass(frozen=True)
class GpuQueries:
    """What the passages of one dataset are searched for, and which of them count."""

    query_QD: Vectors
    keys: RowIds
    """Row ids of the passages as they are now; vectors of earlier texts are skipped."""
    numbers: NDArray[np.int64]
    """By position in `keys`: the passage's place in the order of the ids, which breaks ties."""


def gpu_rankings(
    paths: Paths, store: VectorStore, split: Split, depth: int, encoder: EncoderConfig
) -> dict[str, dict[str, Ranking]]:
    """By dataset and query id: the `depth` best passages, exact, ties by id; none for a query that brings a pool."""
    rankings: dict[str, dict[str, Ranking]] = {}
    asked: dict[str, GpuQueries] = {}
    free: dict[str, tuple[list[str], pa.Array]] = {}
    for name in datasets(paths):
        table = query_table(paths, split, name)
        if table.num_rows:
            rankings[name] = {query_id: [] for query_id in table["query_id"].to_pylist()}
        table = table.filter(pc.is_null(table["pool_ids"]))
        if table.num_rows:
            asked[name], ids = load_asked(paths, store, name, table)
            free[name] = table["query_id"].to_pylist(), ids
    files = {name: parquet_files(store.ledger(name, "passage").folder) for name in asked}
    num_tasks = min(encoder.num_actors, max(map(len, files.values()), default=0))
    if not num_tasks:
        return rankings
    # A task a GPU for all datasets, because each task is a new process, which imports torch and starts CUDA.
    gpus = encoder.gpus_per_actor
    search = ray.remote(num_gpus=gpus, num_cpus=gpu_cpus(gpus, machines()))(search_share)
    reference = ray.put(asked)
    shares = [{name: own[n::num_tasks] for name, own in files.items()} for n in range(num_tasks)]
    found = ray.get([search.remote(reference, share, depth, gpus) for share in shares])
    for name, (query_ids, ids) in free.items():
        best = named(merge_ranked([part[name] for part in found], depth), ids)
        rankings[name] |= dict(zip(query_ids, best, strict=True))
    return rankings


def load_asked(paths: Paths, store: VectorStore, dataset: str, queries: pa.Table) -> tuple[GpuQueries, pa.Array]:
    """What a dataset's passages are searched for, and their ids in order."""
    parts: list[pa.ChunkedArray] = []
    keys: list[list[str]] = []
    for table in each_table(corpus_files(paths, dataset), PASSAGE, ["task", "id", "text"]):
        parts.append(table["id"])
        keys.append(store.keys(table, "passage"))
    ids = pa.chunked_array([chunk for part in parts for chunk in part.chunks], pa.string()).combine_chunks()
    # By bytes, which in UTF-8 is the order of Python's strings.
    order = pc.sort_indices(ids)
    place = np.empty(len(order), dtype=np.int64)
    place[order.to_numpy()] = np.arange(len(order))
    known = RowIds(keys)
    numbers = np.empty(len(known), dtype=np.int64)
    numbers[np.concatenate([known.positions(part) for part in keys])] = place
    vectors = store.read(dataset, "query", store.keys(queries, "query"))
    return GpuQueries(vectors, known, numbers), ids.take(order)


def search_share(
    asked: dict[str, GpuQueries], files: dict[str, list[AnyPath]], depth: int, gpus: float
) -> dict[str, Ranked]:
    """Ray task: the best passages of some files by dataset, for each of its queries.

    Raises:
        DeviceError: the queries and their best passages do not fit on the GPU.
    """
    device = resolve_device(gpus)
    found = {}
    for name, own in files.items():
        try:
            with one_memory_error():
                search = DeviceSearch(asked[name].query_QD, depth, device)
                for vectors, numbers in ahead(staged(own, asked[name], pin=device.type == "cuda")):
                    search.add(vectors, numbers)
                found[name] = search.ranked()
        except torch.OutOfMemoryError as error:
            raise DeviceError(
                f"{name}: dense search for {len(asked[name].query_QD):,} queries does not fit on the GPU "
                f"({str(error).partition(chr(10))[0]}); raise encoder.gpus_per_actor from {gpus:g}, or mine fewer "
                "queries at once"
            ) from error
    return found


def staged(files: Sequence[AnyPath], asked: GpuQueries, pin: bool) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Vectors and numbers of the current passages of some files, each once, in memory that a GPU can copy from."""
    seen = np.zeros(len(asked.keys), dtype=bool)
    waiting: list[tuple[Vectors, NDArray[np.int64]]] = []
    for vectors, positions in _read(files, asked.keys):
        fresh = np.flatnonzero(positions >= 0)
        fresh = fresh[~seen[positions[fresh]]]
        seen[positions[fresh]] = True
        waiting.append((vectors[fresh], asked.numbers[positions[fresh]]))
        if sum(len(numbers) for _, numbers in waiting) >= STAGED_ROWS:
            yield _joined(waiting, pin)
            waiting = []
    if waiting:
        yield _joined(waiting, pin)


def ahead(blocks: Iterator[T]) -> Iterator[T]:
    """The blocks, each made in a thread while the one before it is in use."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, blocks, None)
        while (block := coming.result()) is not None:
            coming = thread.submit(next, blocks, None)
            yield block


def _read(files: Sequence[AnyPath], keys: RowIds) -> Iterator[tuple[Vectors, NDArray[np.int64]]]:
    """Vectors of each file, and the positions of their row ids among the keys."""

    def read(path: AnyPath) -> tuple[Vectors, NDArray[np.int64]]:
        table = read_tables([path], VECTOR, ["row_id", "vector"])
        return vector_matrix(table), keys.positions(table["row_id"].to_pylist())

    threads, remaining = torch.get_num_threads(), iter(files)
    with ThreadPoolExecutor(threads) as pool:
        while batch := list(islice(remaining, FILES_AHEAD * threads)):
            yield from pool.map(read, batch)


def _joined(parts: list[tuple[Vectors, NDArray[np.int64]]], pin: bool) -> tuple[torch.Tensor, torch.Tensor]:
    rows = sum(len(numbers) for _, numbers in parts)
    vectors = torch.empty((rows, parts[0][0].shape[1]), pin_memory=pin)
    numbers = torch.empty(rows, dtype=torch.int64, pin_memory=pin)
    np.concatenate([part for part, _ in parts], out=vectors.numpy())
    np.concatenate([part for _, part in parts], out=numbers.numpy())
    return vectors, numbers


def named(ranked: Ranked, ids: pa.Array) -> list[Ranking]:
    """The ranking of each query; a number is a place in `ids`."""
    numbers = np.unique(ranked.row_QK[ranked.row_QK >= 0])
    return with_ids(ranked, dict(zip(numbers.tolist(), ids.take(pa.array(numbers)).to_pylist(), strict=True)))
