"""A share of the stored passage vectors, searched file by file: what a task of `vector_rankings` does.

The queries stay in memory, on a GPU where the task has one, and the passages pass by: they are read, and copied to
pinned memory, beside the search.
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
import torch
from numpy.typing import NDArray

from embedder.data.records import VECTOR, each_table, read_tables
from embedder.data.row_ids import RowIds
from embedder.errors import DeviceError
from embedder.index.exact import Vectors
from embedder.mining.device_search import BLOCK_ROWS
from embedder.mining.passage_search import NamedPairs, PassageSearch
from embedder.mining.ranking import Found
from embedder.models.device import resolve_device
from embedder.models.memory import one_memory_error
from embedder.storage.object_store import AnyPath
from ray_jobs.retrieval.vectors import vector_matrix

T = TypeVar("T")

GPU_STAGED_ROWS = 4 * BLOCK_ROWS
"""Passages that are brought to a GPU together: 200 MB at 768 dimensions, twice, since the next ones are read beside."""
FILES_AHEAD = 4
"""Files that a thread reads ahead of those in use."""


@dataclass(frozen=True)
class DenseQueries:
    """What the passages of one dataset are searched for in one pass."""

    query_ids: pa.Array
    query_QD: Vectors
    is_free_Q: NDArray[np.bool_]
    """Whether the query searches all passages; of the others the pairs in a pool are ranked."""
    pairs: NamedPairs
    in_pool_N: NDArray[np.bool_]


@dataclass(frozen=True)
class Share:
    """Files of vectors, and the passages in them that count."""

    files: list[AnyPath]
    ids: pa.Array
    """Of these passages, ascending."""
    place_F: list[NDArray[np.int64]]
    """For each file, the place of each row among the ids; -1 for a vector of an earlier text, or one that repeats."""


def read_share(files: Sequence[AnyPath], current: RowIds) -> Share:
    """What the files hold of the passages as they are now, whose row ids are given; no vector is read."""
    tables = list(each_table(files, VECTOR, ["row_id", "id"]))
    valid = [current.contains(table["row_id"].to_pylist()) for table in tables]
    held = [table["id"].combine_chunks().filter(pa.array(kept)) for table, kept in zip(tables, valid, strict=True)]
    distinct = pa.concat_arrays(held).unique() if held else pa.array([], pa.string())
    # By bytes, which in UTF-8 is the order of Python's strings.
    ids = distinct.take(pc.sort_indices(distinct))
    seen = np.zeros(len(ids), dtype=bool)
    places = []
    for kept, own in zip(valid, held, strict=True):
        place = np.full(len(kept), -1, dtype=np.int64)
        found = pc.index_in(own, ids).to_numpy(zero_copy_only=False).astype(np.int64)
        place[np.flatnonzero(kept)] = np.where(seen[found], -1, found)
        seen[found] = True
        places.append(place)
    return Share(list(files), ids, places)


def search_share(
    files: Sequence[AnyPath], current: RowIds, asked: DenseQueries, depth: int, gpus: float
) -> tuple[Found, Vectors]:
    """The best passages of some files for each query, and the scores of the pairs whose passage is in them.

    Raises:
        DeviceError: the queries and their best passages do not fit on the GPU.
    """
    device = resolve_device(gpus)
    share = read_share(files, current)
    try:
        with one_memory_error():
            search = PassageSearch(asked.query_QD, asked.is_free_Q, asked.pairs, share.ids, depth, device)
            is_cuda = device.type == "cuda"
            for vectors, places in ahead(staged(share, GPU_STAGED_ROWS if is_cuda else BLOCK_ROWS, pin=is_cuda)):
                search.add(vectors, places)
            return search.found()
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"dense search for {len(asked.query_QD):,} queries does not fit on the GPU "
            f"({str(error).partition(chr(10))[0]}); raise encoder.gpus_per_actor from {gpus:g}"
        ) from error


def staged(share: Share, rows: int, pin: bool) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Vectors and places of a share's passages, at least `rows` at a time; pinned ones are copied to a GPU faster."""
    waiting: list[tuple[Vectors, NDArray[np.int64]]] = []
    for vectors, place in zip(_each_matrix(share.files), share.place_F, strict=True):
        fresh = np.flatnonzero(place >= 0)
        waiting.append((vectors[fresh], place[fresh]))
        if sum(len(places) for _, places in waiting) >= rows:
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


def _each_matrix(files: Sequence[AnyPath]) -> Iterator[Vectors]:
    threads, remaining = torch.get_num_threads(), iter(files)
    with ThreadPoolExecutor(threads) as pool:
        while batch := list(islice(remaining, FILES_AHEAD * threads)):
            yield from pool.map(lambda path: vector_matrix(read_tables([path], VECTOR, ["vector"])), batch)


def _joined(parts: list[tuple[Vectors, NDArray[np.int64]]], pin: bool) -> tuple[torch.Tensor, torch.Tensor]:
    rows = sum(len(places) for _, places in parts)
    vectors = torch.empty((rows, parts[0][0].shape[1]), pin_memory=pin)
    numbers = torch.empty(rows, dtype=torch.int64, pin_memory=pin)
    np.concatenate([part for part, _ in parts], out=vectors.numpy())
    np.concatenate([part for _, part in parts], out=numbers.numpy())
    return vectors, numbers
