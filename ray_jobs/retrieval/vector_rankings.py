"""Rankings by vectors in tasks, exact, on the encoder's GPUs or on CPUs: each task searches a share of the vectors for
one pass of queries, and what the shares found is joined as a tree.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from embedder.config.run import EncoderConfig, RunConfig
from embedder.console import Counter
from embedder.data.records import PASSAGE, RANKING, count_rows, each_table, parquet_files
from embedder.data.row_ids import RowIds
from embedder.index.exact import Vectors, rank_within_query
from embedder.mining.ranking import Found, merge_found
from embedder.run.gpu_shares import gpu_cpus
from embedder.storage.holding import Permit, own_permit
from embedder.storage.object_store import AnyPath
from ray_jobs.cluster.machines import machines
from ray_jobs.cluster.tables import corpus_files
from ray_jobs.cluster.task_tree import in_tree, some_at_a_time
from ray_jobs.retrieval.passages import corpus_parts
from ray_jobs.retrieval.ranking_files import QueryRows, RankingFiles, Search, ranking_files
from ray_jobs.retrieval.vectors import VectorStore, vector_matrix

if TYPE_CHECKING:
    from ray_jobs.retrieval.vector_share import DenseQueries

PASS_ROWS, GPU_PASS_ROWS = 16_384, 131_072
"""Queries of a pass over the vectors. More on a GPU, which compares as fast as a disk reads only with many."""
SHARE_ROWS = 1_000_000
"""Passages of a task at most, since it holds their ids."""
TASK_MEMORY, GPU_TASK_MEMORY = 2**30, 2**33
"""Bytes that a task asks for."""


def rank_by_vectors(
    config: RunConfig, store: VectorStore, search: Search, counter: Counter, near: RankingFiles | None = None
) -> RankingFiles:
    """The best passages of each query by the vectors of one encoder; only what is missing is computed.

    `near`: with the scores of each query's positives and of what these rankings hold for it.
    """
    dataset, depth = search.dataset, search.depth
    gpus = config.encoder.gpus_per_actor
    task = next(each_table(corpus_files(config.paths, dataset)[:1], PASSAGE, ["task"]))["task"][0].as_py()
    depends_on = [store.folder.name, store.tasks[task].model_dump(mode="json"), near and near.folder.name]
    pass_rows = GPU_PASS_ROWS if gpus else PASS_ROWS
    files = ranking_files(config.paths, search, "vectors", pass_rows, *depends_on)
    missing = files.missing()
    counter.advance(files.num_queries - sum(rows.last - rows.first for rows in missing))
    if not missing:
        return files
    parts = corpus_parts(config.paths, dataset)
    current = join_keys.remote(*[keys_of_part.remote(store, part) for part in parts])
    shares = _shares(parquet_files(store.ledger(dataset, "passage").folder), config, dataset)
    searching = ray.remote(num_returns=2, **_resources(config.encoder))(search_in_task)

    def start(rows: QueryRows) -> ray.ObjectRef:
        asked = ask_vectors.remote(store, dataset, rows, near)
        found = [searching.remote(share, current, asked, depth, gpus) for share in shares]
        joined = in_tree(partial(merge_shares.remote, depth), [best for best, _ in found])
        scores = in_tree(merge_scores.remote, [scores for _, scores in found])
        return write_ranked.remote(files, rows, asked, joined, scores, own_permit())

    # Two, so that the next pass is read while the last one is joined.
    for _, count in some_at_a_time(start, missing, 2):
        counter.advance(count)
    return files


def _shares(files: list[AnyPath], config: RunConfig, dataset: str) -> list[list[AnyPath]]:
    """The files that each task searches: one a GPU, or a CPU, and more of a large corpus."""
    rows = count_rows(corpus_files(config.paths, dataset))
    workers = config.encoder.num_actors
    if not config.encoder.gpus_per_actor:
        workers = max(workers, int(ray.cluster_resources().get("CPU", 1)))
    count = min(len(files), max(min(workers, math.ceil(rows / 16_384)), math.ceil(rows / SHARE_ROWS)))
    return [files[first::count] for first in range(count)]


def _resources(encoder: EncoderConfig) -> dict[str, float]:
    gpus = encoder.gpus_per_actor
    if not gpus:
        return {"num_cpus": 1, "memory": TASK_MEMORY}
    return {"num_cpus": gpu_cpus(gpus, machines()), "num_gpus": gpus, "memory": GPU_TASK_MEMORY}


@ray.remote(num_cpus=1)
def keys_of_part(store: VectorStore, files: list[AnyPath]) -> RowIds:
    """Ray task: the row ids of a part of the corpus, as its texts are now."""
    return RowIds(store.keys(table, "passage") for table in each_table(files, PASSAGE, ["task", "id", "text"]))


@ray.remote(num_cpus=1)
def join_keys(*parts: RowIds) -> RowIds:
    """Ray task: those of all parts, 16 bytes a passage, which lie in shared memory once a node."""
    return RowIds.joined(parts)


@ray.remote(num_cpus=1, memory=TASK_MEMORY)
def ask_vectors(store: VectorStore, dataset: str, rows: QueryRows, near: RankingFiles | None) -> DenseQueries:
    """Ray task: the vectors of a pass of queries, and the pairs whose scores are wanted."""
    # Here, because torch comes with it, which the driver does without.
    from embedder.mining.passage_search import NamedPairs
    from ray_jobs.retrieval.vector_share import DenseQueries

    table = rows.read()
    found = near.read(rows)["ids"].to_pylist() if near else [[]] * table.num_rows
    columns = (table[name].to_pylist() for name in ("pool_ids", "positive_ids", "teacher_scores"))
    query_N: list[int] = []
    id_N: list[str] = []
    in_pool_N: list[bool] = []
    for row, (pool, positives, scores, by_words) in enumerate(zip(*columns, found, strict=True)):
        in_pool = dict.fromkeys(pool or ())
        # Of a query that brings its group, or none that is right, nothing is compared with the best right one.
        wanted = [*positives, *by_words] if near and positives and scores is None else []
        named = list(dict.fromkeys([*in_pool, *wanted]))
        query_N += [row] * len(named)
        id_N += named
        in_pool_N += [name in in_pool for name in named]
    return DenseQueries(
        table["query_id"].combine_chunks(),
        _query_vectors(store, dataset, table),
        np.array(table["pool_ids"].is_null().to_pylist(), dtype=bool),
        NamedPairs(np.array(query_N, dtype=np.int64), pa.array(id_N, pa.string())),
        np.array(in_pool_N, dtype=bool),
    )


def _query_vectors(store: VectorStore, dataset: str, table: pa.Table) -> Vectors:
    """Vectors (Q, D) of some queries, of whose store one block at a time is in memory."""
    keys = store.keys(table, "query")
    wanted = RowIds([keys])
    vectors: Vectors | None = None
    for block in store.ledger(dataset, "query").stream(wanted):
        if block.num_rows:
            matrix = vector_matrix(block)
            vectors = np.empty((len(wanted), matrix.shape[1]), dtype=np.float32) if vectors is None else vectors
            vectors[wanted.positions(block["row_id"].to_pylist())] = matrix
    assert vectors is not None  # `fill_store` has made them all
    return vectors[wanted.positions(keys)]


def search_in_task(
    files: list[AnyPath], current: RowIds, asked: DenseQueries, depth: int, gpus: float
) -> tuple[Found, Vectors]:
    """Ray task: the best passages of a share, and the scores of the pairs whose passage is in it."""
    from ray_jobs.retrieval.vector_share import search_share  # not above, as in `ask_vectors`

    return search_share(files, current, asked, depth, gpus)


@ray.remote(num_cpus=1, memory=TASK_MEMORY)
def merge_shares(depth: int, *found: Found) -> Found:
    """Ray task: the best of several shares."""
    return merge_found(found, depth)


@ray.remote(num_cpus=1)
def merge_scores(*scores: Vectors) -> Vectors:
    """Ray task: the scores of the pairs of several shares."""
    from embedder.mining.passage_search import joined_scores  # not above, as in `ask_vectors`

    return joined_scores(scores)


@ray.remote(num_cpus=1, memory=TASK_MEMORY)
def write_ranked(
    files: RankingFiles,
    rows: QueryRows,
    asked: DenseQueries,
    found: Found,
    score_N: Vectors,
    permit: Permit | None,
) -> int:
    """Ray task: write the rankings of a pass of queries; returns how many these are."""
    return files.commit(rows, ranking_table(asked, found, score_N), permit)


def ranking_table(asked: DenseQueries, found: Found, score_N: Vectors) -> pa.Table:
    """Rows of RANKING, from what the shares found and the scores of the pairs; those in a pool are ranked."""
    depth = found.score_QK.shape[1]
    ranked = merge_found([found, _of_pools(asked, score_N, depth)], depth) if asked.in_pool_N.any() else found
    table = ranked.table(asked.query_ids)
    known = np.flatnonzero(~np.isnan(score_N))
    counts = np.bincount(asked.pairs.query_N[known], minlength=table.num_rows)
    ends = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    ids = pa.ListArray.from_arrays(ends, asked.pairs.id_N.take(pa.array(known)))
    scores = pa.ListArray.from_arrays(ends, pa.array(score_N[known]))
    return pa.table([*table.columns[:3], ids, scores], schema=RANKING)


def _of_pools(asked: DenseQueries, score_N: Vectors, depth: int) -> Found:
    """The best of the pairs in each query's pool."""
    pair = np.flatnonzero(asked.in_pool_N & ~np.isnan(score_N))
    ids = asked.pairs.id_N.take(pa.array(pair))
    distinct = ids.unique().sort()
    place = pc.index_in(ids, distinct).to_numpy(zero_copy_only=False)
    query, score = asked.pairs.query_N[pair], score_N[pair]
    order = np.lexsort((place, -score, query))
    rank = rank_within_query(query[order])
    kept = order[rank < depth]
    score_QK = np.full((len(asked.query_ids), depth), -np.inf, dtype=np.float32)
    row_QK = np.full(score_QK.shape, -1, dtype=np.int64)
    score_QK[query[kept], rank[rank < depth]] = score[kept]
    row_QK[query[kept], rank[rank < depth]] = place[kept]
    return Found(score_QK, row_QK, distinct)
