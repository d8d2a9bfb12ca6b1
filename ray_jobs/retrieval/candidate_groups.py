"""The groups of a dataset's queries, made in tasks from ranking files.

For some queries at a time: which passages their rankings name, the texts of these from each part of the corpus, and
then the groups. The parts of the file are joined row group by row group.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from embedder.config.mine import MineConfig
from embedder.config.paths import Paths
from embedder.console import Counter as Progress
from embedder.data.records import GROUP, ROW_GROUP_ROWS, parquet_files, read_tables, write_table
from embedder.mining.candidates import make_group
from embedder.storage.folders import remove_folder
from embedder.storage.holding import Permit, own_permit
from embedder.storage.object_store import AnyPath, replacing
from ray_jobs.cluster.task_tree import some_at_a_time
from ray_jobs.retrieval.passages import corpus_parts, texts_of_part
from ray_jobs.retrieval.ranking_files import QueryRows, RankingFiles, named_rankings

PART_ROWS = 2 * ROW_GROUP_ROWS
"""Queries of a task: some 200,000 texts are in its memory. A multiple of the rows of a row group, so that the file has
the same row groups however it was made."""
MOST_PARTS = 4
"""Parts under way, besides those that fewer parts of the corpus than CPUs leave room for."""
TASK_MEMORY = 2**30
"""Bytes that a task asks for."""


def write_groups(
    paths: Paths, settings: MineConfig, dataset: str, words: RankingFiles, vectors: RankingFiles, progress: Progress
) -> Counter[str]:
    """Write the groups of one dataset, and count them and what was kept out of them."""
    parts = corpus_parts(paths, dataset)
    folder = paths.rankings / "groups" / dataset
    remove_folder(folder)
    ends = range(0, words.num_queries, PART_ROWS)
    asked = [QueryRows(words.queries, first, min(first + PART_ROWS, words.num_queries)) for first in ends]

    def start(rows: QueryRows) -> ray.ObjectRef:
        wanted = named_passages.remote(rows, words, vectors)
        texts = [texts_of_part.remote(part, wanted) for part in parts]
        return write_part.remote(settings, rows, words, vectors, folder / f"{rows.first:010d}.parquet", *texts)

    counts: Counter[str] = Counter()
    most = MOST_PARTS + int(ray.cluster_resources().get("CPU", 1)) // len(parts)
    for _, counted in some_at_a_time(start, asked, most):
        counts.update(counted)
        progress.advance(counted["groups"])
    ray.get(join_parts.remote(folder, paths.candidates / f"{dataset}.parquet", own_permit()))
    remove_folder(folder)
    return counts


@ray.remote(num_cpus=1)
def named_passages(rows: QueryRows, words: RankingFiles, vectors: RankingFiles) -> pa.Array:
    """Ray task: the ids of all passages that may stand in the groups of some queries."""
    table = rows.read()
    columns = [table["positive_ids"], table["pool_ids"], words.read(rows)["ids"], vectors.read(rows)["ids"]]
    ids = [chunk for column in columns for chunk in pc.list_flatten(column).chunks]
    return pa.chunked_array(ids, pa.string()).unique()


@ray.remote(num_cpus=1, memory=TASK_MEMORY)
def write_part(
    settings: MineConfig, rows: QueryRows, words: RankingFiles, vectors: RankingFiles, path: AnyPath, *texts: pa.Table
) -> Counter[str]:
    """Ray task: write the groups of some queries, and count them."""
    held = pa.concat_tables(texts)
    passages = dict(zip(held["id"].to_pylist(), held["text"].to_pylist(), strict=True))
    by_vectors = vectors.read(rows)
    named = (by_vectors[name].to_pylist() for name in ("named_ids", "named_scores"))
    found = zip(named_rankings(words.read(rows)), named_rankings(by_vectors), *named, strict=True)
    counts: Counter[str] = Counter()
    groups: list[dict[str, Any]] = []
    for query, ((_, lexical), (_, dense), ids, scores) in zip(rows.read().to_pylist(), found, strict=True):
        # A positive, or what was found by words, may stand below the end of the dense ranking.
        dense_scores = {**dict(dense), **dict(zip(ids, scores, strict=True))}
        group, kept_out = make_group(query, {"lexical": lexical, "dense": dense}, passages, settings, dense_scores)
        groups.append(group)
        counts["groups"] += 1
        counts["candidates"] += len(group["candidate_ids"])
        counts["positives"] += sum(group["relevance"])
        counts.update(kept_out)
        counts["short"] += len(group["candidate_ids"]) < settings.group_size
    write_table(groups, GROUP, path)
    return counts


@ray.remote(num_cpus=1)
def join_parts(folder: AnyPath, path: AnyPath, permit: Permit | None) -> None:
    """Ray task: make one file of the parts, of which one at a time is in memory."""
    if permit is not None:
        permit.check()
    with replacing(path) as file, pq.ParquetWriter(file, GROUP, compression="zstd") as writer:
        for part in parquet_files(folder):
            writer.write_table(read_tables([part], GROUP), row_group_size=ROW_GROUP_ROWS)
