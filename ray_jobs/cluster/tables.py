"""The tables of a run that several jobs read: queries, passages and groups, with errors that name the missing job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from embedder.config.paths import Paths
from embedder.config.run import EncoderConfig, RunConfig
from embedder.data.ledger import Ledger
from embedder.data.records import (
    GROUP,
    LABELLED,
    QUERY,
    VECTOR,
    Split,
    count_rows,
    open_parquet,
    parquet_files,
    passage_column,
    read_tables,
)
from embedder.errors import DataError
from embedder.hashing import content_id
from embedder.labelling.prompts import ShotPools, read_shot_pools
from embedder.models.fingerprint import vectors_name
from embedder.models.locate import count_parameters, locate_model
from embedder.run.cost import Work, characters_a_token, forward_flops, tokens_of
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


def corpus_files(paths: Paths, dataset: str) -> list[AnyPath]:
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


def passage_texts(paths: Paths, dataset: str) -> dict[str, str]:
    """Passages of one dataset by id, in the order they were written."""
    return passage_column(paths.corpus / dataset, "text")


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


def encoding_work(stage: str, paths: Paths, encoder: EncoderConfig, line: Callable[[str], str]) -> Work:
    """What encoding the passages takes that have no vector yet, with a line for each dataset behind their count.

    Vectors are counted, not compared: of texts or instructions that have changed since, too few are told.

    Raises:
        DataError: `prepare` has not run.
        ModelError: the model is missing.
    """
    model = locate_model(encoder.model)
    store = vectors_folder(paths, vectors_name(encoder))
    lines, tokens = [], 0.0
    for name in datasets(paths):
        files = corpus_files(paths, name)
        count = count_rows(files)
        ahead = max(0, count - count_rows(parquet_files(store / f"{name}.passage")))
        lines.append(f"{name}: {count:,} passages, about {ahead:,} to encode{line(name)}")
        tokens += ahead * _mean_tokens(files[0], model, encoder.max_tokens) if ahead else 0.0
    return Work(stage, lines, forward_flops(count_parameters(model), tokens), tokens)


def _mean_tokens(path: AnyPath, model: Path, most: int) -> float:
    """Estimated tokens of a passage, from the first of a file; each is cut to `most`."""
    with open_parquet(path) as file:
        texts = file.read_row_group(0, ["text"])["text"].to_pylist() if file.num_row_groups else []
    a_token = characters_a_token(model, texts)
    return sum(min(most, tokens_of(len(text), a_token)) for text in texts) / max(1, len(texts))


def vectors_folder(paths: Paths, identity: str) -> AnyPath:
    """The folder of the vectors of whatever has this identity."""
    # By the columns too, because vectors of a version that knew fewer could not be read.
    return paths.vectors / content_id(identity, VECTOR.names)[:16]


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
