"""The tables of a run that several jobs read: queries, passages and groups, with errors that name the missing job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from embedder.config.run import RunConfig
from embedder.data.ledger import Ledger
from embedder.data.records import GROUP, LABELLED, PASSAGE, QUERY, Split, parquet_files, read_tables
from embedder.errors import DataError
from embedder.labelling.prompts import ShotPools, read_shot_pools
from embedder.storage.object_store import AnyPath


def datasets(config: RunConfig) -> list[str]:
    """Names of the prepared datasets.

    Raises:
        DataError: `prepare` has not run.
    """
    names = sorted(path.name for path in config.paths.corpus.glob("*") if path.is_dir() and parquet_files(path))
    if not names:
        raise DataError(f"{config.paths.corpus}: no prepared dataset; run `python -m ray_jobs.prepare` first")
    return names


def corpus_files(config: RunConfig, dataset: str) -> list[Path]:
    """Parquet files of one dataset's passages."""
    return parquet_files(config.paths.corpus / dataset)


def query_table(config: RunConfig, split: Split, dataset: str) -> pa.Table:
    """Queries of one dataset and split; an empty table if the split has no file."""
    path = config.paths.queries / split / f"{dataset}.parquet"
    return read_tables([path] if path.is_file() else [], QUERY)


def queries(config: RunConfig, split: Split, dataset: str) -> list[dict[str, Any]]:
    """The same as plain rows."""
    rows: list[dict[str, Any]] = query_table(config, split, dataset).to_pylist()
    return rows


def positive_ids(config: RunConfig) -> dict[tuple[str, str], list[str]]:
    """Ids of the known positives of each training query, by (dataset, query_id)."""
    found: dict[tuple[str, str], list[str]] = {}
    for path in parquet_files(config.paths.queries / "train"):
        for row in read_tables([path], QUERY, ["dataset", "query_id", "positive_ids"]).to_pylist():
            found[row["dataset"], row["query_id"]] = row["positive_ids"] or []
    return found


def passage_texts(config: RunConfig, dataset: str) -> dict[str, str]:
    """Passages of one dataset by id, in the order they were written."""
    table = read_tables(corpus_files(config, dataset), PASSAGE, ["id", "text"])
    return dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))


def count_rows(files: list[Path]) -> int:
    """Rows of Parquet files, from their footers."""
    return sum(pq.read_metadata(path).num_rows for path in files)


def candidate_files(config: RunConfig) -> list[AnyPath]:
    """Parquet files of candidate groups, one a dataset.

    Raises:
        DataError: `mine` has not run.
    """
    files = parquet_files(config.paths.candidates)
    if not files:
        raise DataError(f"{config.paths.candidates}: no candidates; run `python -m ray_jobs.mine` first")
    return files


def candidate_groups(config: RunConfig) -> pa.Table:
    """All candidate groups at once."""
    return read_tables(candidate_files(config), GROUP)


def corpus_characters(files: list[Path]) -> int:
    """Estimated characters of a dataset's passages: Parquet holds text at about a third of its size."""
    return sum(path.stat().st_size for path in files) * 3


def llm_ledger(config: RunConfig) -> Ledger:
    """The committed blocks of the LLM's labels, or of imported ones."""
    return Ledger(config.paths.labelled / "blocks", LABELLED, "row_id")


def labelled_ledger(config: RunConfig) -> Ledger:
    """The committed blocks of the labels that the embedder learns from: those of the run's teacher."""
    if config.label.teacher == "reranker":
        return Ledger(config.paths.labelled / "reranked", LABELLED, "row_id")
    return llm_ledger(config)


def shot_pools(config: RunConfig) -> ShotPools:
    """By dataset of a task with shots: seeded training rows short enough to serve as worked examples.

    Raises:
        DataError: `prepare` has not run.
    """
    prepared = {split: parquet_files(config.paths.queries / split) for split in ("train", "test")}
    if not any(prepared.values()):
        raise DataError(f"{config.paths.queries}: no prepared queries; run `python -m ray_jobs.prepare` first")
    return read_shot_pools(config)
