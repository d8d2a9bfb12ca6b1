"""The tables of a run that several jobs read: queries, passages and groups, with errors that name the missing job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from embedder.config.paths import Paths
from embedder.config.run import RunConfig
from embedder.data.ledger import Ledger
from embedder.data.records import GROUP, LABELLED, QUERY, Split, parquet_files, passage_column, read_tables
from embedder.errors import DataError
from embedder.labelling.prompts import ShotPools, read_shot_pools
from embedder.models.locate import count_parameters, locate_model
from embedder.run.cost import Work, forward_flops, tokens_of
from embedder.storage.object_store import AnyPath


def datasets(paths: Paths) -> list[str]:
    """Names of the prepared datasets.

    Raises:
        DataError: `prepare` has not run.
    """
    names = sorted(path.name for path in paths.corpus.glob("*") if path.is_dir() and parquet_files(path))
    if not names:
        raise DataError(f"{paths.corpus}: no prepared dataset; run `python -m ray_jobs.prepare` first")
    return names


def corpus_files(paths: Paths, dataset: str) -> list[Path]:
    """Parquet files of one dataset's passages."""
    return parquet_files(paths.corpus / dataset)


def query_table(paths: Paths, split: Split, dataset: str) -> pa.Table:
    """Queries of one dataset and split; an empty table if the split has no file."""
    path = paths.queries / split / f"{dataset}.parquet"
    return read_tables([path] if path.is_file() else [], QUERY)


def queries(paths: Paths, split: Split, dataset: str) -> list[dict[str, Any]]:
    """Queries of one dataset and split as plain rows."""
    rows: list[dict[str, Any]] = query_table(paths, split, dataset).to_pylist()
    return rows


def positive_ids(paths: Paths) -> dict[tuple[str, str], list[str]]:
    """Ids of the known positives of each training query, by (dataset, query_id)."""
    return _ids_by_query(paths, "positive_ids")


def example_ids(paths: Paths) -> dict[tuple[str, str], list[str]]:
    """Ids of the passages that each training query itself is as a worked example, by (dataset, query_id)."""
    return _ids_by_query(paths, "example_ids")


def _ids_by_query(paths: Paths, column: str) -> dict[tuple[str, str], list[str]]:
    ids: dict[tuple[str, str], list[str]] = {}
    for path in parquet_files(paths.queries / "train"):
        for row in read_tables([path], QUERY, ["dataset", "query_id", column]).to_pylist():
            ids[row["dataset"], row["query_id"]] = row[column] or []
    return ids


def passage_texts(paths: Paths, dataset: str) -> dict[str, str]:
    """Passages of one dataset by id, in the order they were written."""
    return passage_column(paths.corpus / dataset, "text")


def count_rows(files: list[Path]) -> int:
    """Rows of Parquet files, from their footers."""
    return sum(pq.read_metadata(path).num_rows for path in files)


def candidate_files(paths: Paths) -> list[AnyPath]:
    """Parquet files of candidate groups, one a dataset.

    Raises:
        DataError: `mine` has not run.
    """
    files = parquet_files(paths.candidates)
    if not files:
        raise DataError(f"{paths.candidates}: no candidates; run `python -m ray_jobs.mine` first")
    return files


def candidate_groups(paths: Paths) -> pa.Table:
    """All candidate groups at once."""
    return read_tables(candidate_files(paths), GROUP)


def encoding_work(stage: str, paths: Paths, model: str, line: Callable[[str], str]) -> Work:
    """What encoding all passages takes, with a line for each dataset behind the count of its passages.

    Raises:
        DataError: `prepare` has not run.
        ModelError: the model is missing.
    """
    files = {name: corpus_files(paths, name) for name in datasets(paths)}
    lines = [f"{name}: {count_rows(files[name]):,} passages{line(name)}" for name in files]
    # Parquet holds text at about a third of its size.
    characters = 3 * sum(path.stat().st_size for own in files.values() for path in own)
    return Work(stage, lines, forward_flops(count_parameters(locate_model(model)), tokens_of(characters)))


def llm_ledger(paths: Paths) -> Ledger:
    """The committed blocks of the LLM's labels, or of imported ones."""
    return Ledger(paths.labelled / "blocks", LABELLED, "row_id")


def reranked_ledger(paths: Paths) -> Ledger:
    """The committed blocks of a reranker's labels."""
    return Ledger(paths.labelled / "reranked", LABELLED, "row_id")


def labelled_ledger(config: RunConfig) -> Ledger:
    """The committed blocks of the labels that the embedder learns from: those of the run's teacher."""
    return reranked_ledger(config.paths) if config.label.teacher == "reranker" else llm_ledger(config.paths)


def shot_pools(config: RunConfig) -> ShotPools:
    """By dataset of a task with shots: seeded training rows short enough to serve as worked examples.

    Raises:
        DataError: `prepare` has not run.
    """
    prepared = {split: parquet_files(config.paths.queries / split) for split in ("train", "test")}
    if not any(prepared.values()):
        raise DataError(f"{config.paths.queries}: no prepared queries; run `python -m ray_jobs.prepare` first")
    return read_shot_pools(config)
