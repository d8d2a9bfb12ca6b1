"""Rankings of a dataset's passages for its queries: dense on the encoder's GPUs, or else over vector blocks sharded by
Ray Data; and lexical.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from embedder.config.language import WordsConfig
from embedder.config.paths import Paths
from embedder.config.run import RunConfig
from embedder.data.records import PASSAGE, VECTOR, Split, count_rows, each_table, parquet_files, read_tables
from embedder.data.row_ids import RowIds
from embedder.mining.ranking import LexicalIndex, Ranking, best, merge, search_block
from ray_jobs.cluster.tables import corpus_files, datasets, passage_texts, queries, query_table
from ray_jobs.retrieval.vectors import VectorStore, vector_matrix

SEARCH_ROWS = 16_384
"""Passage vectors that are searched together: 25 MB at 384 dimensions."""

PARTIAL = pa.schema(
    [
        ("dataset", pa.string()),
        ("ids", pa.list_(pa.list_(pa.string()))),
        ("scores", pa.list_(pa.list_(pa.float64()))),
    ]
)
"""The best passages of one block for every query of a dataset, in the order of its queries."""


@dataclass(frozen=True)
class DatasetQueries:
    """What a block of one dataset's passages is searched for."""

    query_ids: list[str]
    query_QD: np.ndarray
    pools: list[set[str] | None]
    valid: set[str]
    """Row ids of the passages as they are now; vectors of earlier texts are skipped."""


def load_queries(paths: Paths, store: VectorStore, split: Split) -> dict[str, DatasetQueries]:
    """The queries of all datasets that have some in this split."""
    loaded = {}
    for dataset in datasets(paths):
        table = query_table(paths, split, dataset)
        if table.num_rows:
            vectors = store.read(dataset, "query", store.keys(table, "query"))
            valid = set(store.keys(read_tables(corpus_files(paths, dataset), PASSAGE), "passage"))
            pools = [None if pool is None else set(pool) for pool in table["pool_ids"].to_pylist()]
            loaded[dataset] = DatasetQueries(table["query_id"].to_pylist(), vectors, pools, valid)
    return loaded


def dense_rankings(config: RunConfig, store: VectorStore, split: Split, depth: int) -> dict[str, dict[str, Ranking]]:
    """By dataset and query id: the `depth` best passages by the vectors of one encoder, exact, ties by id.

    Computed where the run's encoder computes.
    """
    paths = config.paths
    if not config.encoder.gpus_per_actor:
        return cpu_rankings(paths, store, split, depth)
    # Here, because torch comes with it, which searches on CPUs and by words do without.
    from ray_jobs.retrieval.gpu_rankings import gpu_rankings

    found = gpu_rankings(paths, store, split, depth, config.encoder)
    for dataset in datasets(paths):
        if pools := {row["query_id"]: row["pool_ids"] for row in queries(paths, split, dataset) if row["pool_ids"]}:
            scores = dense_scores(paths, store, split, dataset, pools)
            found[dataset] |= {query_id: best(list(scores[query_id].items()), depth) for query_id in pools}
    return found


def cpu_rankings(paths: Paths, store: VectorStore, split: Split, depth: int) -> dict[str, dict[str, Ranking]]:
    """The same on CPUs."""
    loaded = load_queries(paths, store, split)
    blocks = [path for dataset in loaded for path in parquet_files(store.ledger(dataset, "passage").folder)]
    # Ray reads any column type, so the types are looked at before it does.
    count_rows(blocks)
    files = [str(path) for path in blocks]
    merged: dict[str, list[Ranking]] = {dataset: [[] for _ in loaded[dataset].query_ids] for dataset in loaded}
    if files:
        # By reference: Ray then holds the queries once a node, and not in every task.
        partial = ray.data.read_parquet(files, columns=VECTOR.names).map_batches(
            search_blocks, fn_args=(ray.put(loaded), depth), batch_size=SEARCH_ROWS, batch_format="pyarrow"
        )
        # Blocks arrive in any order; `merge` breaks ties by id, so that the result does not depend on it.
        for row in partial.iter_rows():
            rankings = merged[row["dataset"]]
            for i, (ids, scores) in enumerate(zip(row["ids"], row["scores"], strict=True)):
                rankings[i] = merge(rankings[i], list(zip(ids, scores, strict=True)), depth)
    return {name: dict(zip(loaded[name].query_ids, rankings, strict=True)) for name, rankings in merged.items()}


def search_blocks(block: pa.Table, reference: ray.ObjectRef, depth: int) -> pa.Table:
    """Ray Data function: the best passages of one block of vectors, a row for each dataset in it."""
    loaded: dict[str, DatasetQueries] = ray.get(reference)
    rows = []
    for dataset in sorted(set(block["dataset"].to_pylist())):
        asked = loaded[dataset]
        owners, row_ids = block["dataset"].to_pylist(), block["row_id"].to_pylist()
        current = [owner == dataset and row_id in asked.valid for owner, row_id in zip(owners, row_ids, strict=True)]
        kept = block.filter(pa.array(current))
        if kept.num_rows:
            ids = kept["id"].to_pylist()
            rankings = search_block(asked.query_QD, asked.pools, ids, vector_matrix(kept), depth)
            found = [[passage_id for passage_id, _ in ranking] for ranking in rankings]
            scores = [[score for _, score in ranking] for ranking in rankings]
            rows.append({"dataset": dataset, "ids": found, "scores": scores})
    return pa.Table.from_pylist(rows, schema=PARTIAL)


def dense_scores(
    paths: Paths, store: VectorStore, split: Split, dataset: str, wanted: Mapping[str, Collection[str]]
) -> dict[str, dict[str, float]]:
    """By query id: the dense score of each passage that `wanted` names for it, whatever its rank.

    One block of vectors is in memory at a time.
    """
    table = query_table(paths, split, dataset)
    query_ids = table["query_id"].to_pylist()
    query_QD = store.read(dataset, "query", store.keys(table, "query"))
    askers: dict[str, list[int]] = {}
    for row, query_id in enumerate(query_ids):
        for passage_id in wanted.get(query_id, ()):
            askers.setdefault(passage_id, []).append(row)
    passages = each_table(corpus_files(paths, dataset), PASSAGE, ["task", "id", "text"])
    asked_for = (part.filter(pc.is_in(part["id"], pa.array(askers, pa.string()))) for part in passages)
    keys = RowIds(store.keys(part, "passage") for part in asked_for)
    scores: dict[str, dict[str, float]] = {query_id: {} for query_id in query_ids}
    for block in store.ledger(dataset, "passage").stream(keys):
        vectors = vector_matrix(block) if block.num_rows else ()
        for passage_id, vector_D in zip(block["id"].to_pylist(), vectors, strict=True):
            rows = askers[passage_id]
            for row, score in zip(rows, (query_QD[rows] @ vector_D).tolist(), strict=True):
                scores[query_ids[row]][passage_id] = score
    return scores


@ray.remote(num_cpus=1)
def lexical_rankings(paths: Paths, words: WordsConfig, split: Split, dataset: str, depth: int) -> dict[str, Ranking]:
    """Ray task: the same by BM25 for one dataset, whose passages it indexes."""
    rows = queries(paths, split, dataset)
    if not rows:
        return {}
    passages = passage_texts(paths, dataset)
    index = LexicalIndex(list(passages), list(passages.values()), words.stop_words)
    rankings = index.search([row["query"] for row in rows], [row["pool_ids"] for row in rows], depth)
    return {row["query_id"]: ranking for row, ranking in zip(rows, rankings, strict=True)}
