"""Rankings by words (BM25) in tasks: each part of a corpus counts its words, weighs them with the sum of all counts,
and is searched for some queries at a time.

A task holds one part and one pass of queries, whatever the corpus. Postings lie in Ray's object store, which spills
them to disk, and are made anew if their node is lost.
"""

from __future__ import annotations

from functools import partial, reduce
from operator import add

import pyarrow as pa
import ray

from embedder.config.language import WordsConfig
from embedder.config.paths import Paths
from embedder.console import Counter
from embedder.data.records import PASSAGE, QUERY, each_table, read_rows
from embedder.mining import bm25
from embedder.mining.bm25 import Postings, QueryNumbers, WordCounts
from embedder.mining.ranking import Found, merge_found
from embedder.storage.holding import Permit, own_permit
from embedder.storage.object_store import AnyPath
from ray_jobs.cluster.task_tree import in_tree, some_at_a_time
from ray_jobs.retrieval.passages import corpus_parts
from ray_jobs.retrieval.ranking_files import QueryRows, RankingFiles, Search, ranking_files

PASS_ROWS = 16_384
"""Queries that are ranked together. A multiple of the rows of a row group, so that no group is read twice."""
MOST_PASSES = 2
"""Passes under way, besides those that fewer parts than CPUs leave room for."""
TASK_MEMORY = 2**29
"""Bytes that a task asks for."""

AskedWords = tuple[list[QueryNumbers], list[list[str] | None], pa.ChunkedArray]
"""The words of each query of a pass, their pools, and their ids."""


def rank_by_words(paths: Paths, words: WordsConfig, search: Search, counter: Counter) -> RankingFiles:
    """The best passages of each query by BM25; only what is missing is computed."""
    files = ranking_files(paths, search, "words", PASS_ROWS, words.stop_words)
    missing = files.missing()
    counter.advance(files.num_queries - sum(rows.last - rows.first for rows in missing))
    if not missing:
        return files
    vocabulary = vocabulary_of.remote(files, words.stop_words)
    counted = [count_part.remote(part, vocabulary) for part in corpus_parts(paths, search.dataset)]
    total = in_tree(add_counts.remote, [counts for _, counts in counted])
    parts = [weigh_part.remote(postings, total) for postings, _ in counted]
    del counted  # so that Ray may drop the postings once they are weighed
    start = partial(_start_pass, files, parts, vocabulary, words.stop_words, search.depth)
    most = MOST_PASSES + int(ray.cluster_resources().get("CPU", 1)) // len(parts)
    for _, rows in some_at_a_time(start, missing, most):
        counter.advance(rows)
    return files


def _start_pass(
    files: RankingFiles,
    parts: list[ray.ObjectRef],
    vocabulary: ray.ObjectRef,
    stop_words: str | None,
    depth: int,
    rows: QueryRows,
) -> ray.ObjectRef:
    asked = ask_words.remote(rows, stop_words, vocabulary)
    found = [search_part.remote(part, asked, depth) for part in parts]
    return write_found.remote(files, rows, asked, in_tree(partial(merge_parts.remote, depth), found), own_permit())


@ray.remote(num_cpus=1, memory=TASK_MEMORY)
def vocabulary_of(files: RankingFiles, stop_words: str | None) -> list[str]:
    """Ray task: the words of all queries, of which one pass at a time is in memory."""
    words: set[str] = set()
    for rows in files.passes():
        queries = read_rows(rows.path, QUERY, rows.first, rows.last, ["query"])["query"].to_pylist()
        words.update(bm25.query_vocabulary(queries, stop_words))
    return sorted(words)


@ray.remote(num_cpus=1, memory=TASK_MEMORY, num_returns=2)
def count_part(files: list[AnyPath], vocabulary: list[str]) -> tuple[Postings, WordCounts]:
    """Ray task: the words of one part's passages."""
    ids = pa.chunked_array([table["id"].combine_chunks() for table in each_table(files, PASSAGE, ["id"])], pa.string())
    # Texts file by file: as Python's strings they take several times the room of the postings.
    texts = (text for table in each_table(files, PASSAGE, ["text"]) for text in table["text"].to_pylist())
    return bm25.count_words(ids.combine_chunks(), texts, _numbered(vocabulary))


@ray.remote(num_cpus=1)
def add_counts(*counts: WordCounts) -> WordCounts:
    """Ray task: the counts of several parts together."""
    return reduce(add, counts)


@ray.remote(num_cpus=1, memory=TASK_MEMORY)
def weigh_part(postings: Postings, total: WordCounts) -> Postings:
    """Ray task: what each word of a part adds to a score."""
    return bm25.weighed(postings, total)


@ray.remote(num_cpus=1)
def ask_words(rows: QueryRows, stop_words: str | None, vocabulary: list[str]) -> AskedWords:
    """Ray task: the words of a pass of queries."""
    table = rows.read()
    numbers = bm25.query_numbers(table["query"].to_pylist(), stop_words, _numbered(vocabulary))
    return numbers, table["pool_ids"].to_pylist(), table["query_id"]


@ray.remote(num_cpus=1, memory=TASK_MEMORY)
def search_part(part: Postings, asked: AskedWords, depth: int) -> Found:
    """Ray task: the best passages of one part for a pass of queries."""
    numbers, pools, _ = asked
    return bm25.search_words(part, numbers, pools, depth)


@ray.remote(num_cpus=1, memory=TASK_MEMORY)
def merge_parts(depth: int, *found: Found) -> Found:
    """Ray task: the best of several parts."""
    return merge_found(found, depth)


@ray.remote(num_cpus=1)
def write_found(files: RankingFiles, rows: QueryRows, asked: AskedWords, found: Found, permit: Permit | None) -> int:
    """Ray task: write the rankings of a pass of queries; returns how many these are."""
    return files.commit(rows, found.table(asked[2].combine_chunks()), permit)


def _numbered(vocabulary: list[str]) -> dict[str, int]:
    return {word: number for number, word in enumerate(vocabulary)}
