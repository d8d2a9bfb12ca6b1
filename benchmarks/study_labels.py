"""The labels of the study as small files without any text of the data: `python -m benchmarks.study_labels write|read`.

`write` keeps the labels of a run in benchmarks/labels/, a Parquet file a data set: ids and hashes of queries and
candidates, log-likelihoods, rewards, and what the LLM sampled. An output that is the answer of a query stands as that
query's id. Groups that are not labelled yet stand there without rewards. `read` puts all back into a run whose data is
prepared, in place of `mine` and of what `label` had done: texts are taken by their ids, and refused where their hash is
another.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from embedder.config.load import load_run
from embedder.config.paths import Paths
from embedder.config.run import RunConfig
from embedder.console import console
from embedder.data.ledger import Ledger
from embedder.data.records import (
    GROUP,
    LABELLED,
    QUERY,
    TEXTS,
    group_id,
    parquet_files,
    read_tables,
    unrewarded,
    write_table,
)
from embedder.errors import DataError, EmbedderError
from embedder.hashing import content_id
from ray_jobs.cluster.tables import candidate_groups, labelled_ledger, passage_texts, queries

Row = dict[str, Any]
WITH_TEXT = ("query", "answers", "candidate_texts", "outputs")
"""Columns of a labelled group that hold texts of the data."""
KEPT = pa.schema(
    [
        *(field for field in LABELLED if field.name not in WITH_TEXT),
        ("query_hash", pa.string()),
        ("candidate_hashes", TEXTS),
        ("outputs", pa.list_(pa.struct([("sampled", pa.string()), ("answer_of", pa.string())]))),
    ]
)
"""A labelled group without its texts; an output is what the LLM sampled, or the first answer of a query."""
UNLABELLED = ""
"""What stands for the fingerprint of labels where a group has none."""
BLOCK_ROWS = 512
"""Labels that are put back together."""


def main(arguments: list[str] | None = None) -> int:
    """Write or read the labels; 2 for an error that the user can fix."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.study_labels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["write", "read"], help="out of a run, or into one")
    parser.add_argument("--config", default="configs/study.yaml", help="run file (default configs/study.yaml)")
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value", help="override; repeatable")
    parser.add_argument(
        "--labels", type=Path, default=Path("benchmarks/labels"), help="folder of the files (default benchmarks/labels)"
    )
    given = parser.parse_args(arguments)
    try:
        config = load_run(given.config, given.set)
        counts = write_labels(config, given.labels) if given.what == "write" else read_labels(config, given.labels)
    except EmbedderError as error:
        console().print(f"error: {error}", markup=False)
        return 2
    for name, count in counts.items():
        console().print(f"{name}: {count:,} labelled groups", markup=False)
    return 0


def write_labels(config: RunConfig, folder: Path) -> dict[str, int]:
    """Write a run's candidates with the labels that there are, a file a data set; returns the labelled groups of each.

    Raises:
        DataError: there are none.
    """
    by_dataset: dict[str, list[Row]] = {}
    labels = {row["row_id"]: row for row in _labels(labelled_ledger(config)).to_pylist()}
    for group in candidate_groups(config.paths).to_pylist():
        row = labels.get(group_id(group)) or unrewarded(group, reward="", fingerprint=UNLABELLED)
        by_dataset.setdefault(group["dataset"], []).append(row)
    for name, groups in sorted(by_dataset.items()):
        answer_of = {
            row["answers"][0]: row["query_id"] for row in queries(config.paths, "train", name) if row["answers"]
        }
        write_table([_without_text(group, answer_of) for group in groups], KEPT, folder / f"{name}.parquet")
    return {name: len(_labelled(groups)) for name, groups in sorted(by_dataset.items())}


def read_labels(config: RunConfig, folder: Path) -> dict[str, int]:
    """Put the labels of all files into a run, as candidates and labels; returns the labelled groups of each data set.

    Raises:
        DataError: there are none, or a text is not the one that was labelled.
    """
    files = parquet_files(folder)
    if not files:
        raise DataError(f"{folder}: no labels; fetch the repository's, or run `python -m ray_jobs.label`")
    # All are checked before any is put in, so that a run never holds a part of them.
    by_dataset = {path.stem: _with_text(config, path) for path in files}
    for name, groups in by_dataset.items():
        candidates = [{key: group[key] for key in GROUP.names} for group in groups]
        write_table(candidates, GROUP, config.paths.candidates / f"{name}.parquet")
        labelled = _labelled(groups)
        for first in range(0, len(labelled), BLOCK_ROWS):
            labelled_ledger(config).commit(labelled[first : first + BLOCK_ROWS])
    return {name: len(_labelled(groups)) for name, groups in by_dataset.items()}


def labelled_groups(paths: Paths, ledger: Ledger) -> list[Row]:
    """The labels that a ledger holds of a run's current candidates.

    Raises:
        DataError: `label` has not run, or not for all of these candidates.
    """
    rows: list[Row] = _labels(ledger, [group_id(group) for group in candidate_groups(paths).to_pylist()]).to_pylist()
    return rows


def _labels(ledger: Ledger, expected: list[str] | None = None) -> pa.Table:
    if not parquet_files(ledger.folder):
        raise DataError(f"{ledger.folder}: no labels; run `python -m ray_jobs.label` first")
    return ledger.read(expected)


def _labelled(groups: list[Row]) -> list[Row]:
    return [group for group in groups if group["label_fingerprint"] != UNLABELLED]


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


def query_hash(row: Mapping[str, Any]) -> str:
    """Hash of a query's text and answers."""
    return content_id(row["query"], row["answers"])[:16]


def text_hash(text: str) -> str:
    """Hash of a candidate's text."""
    return content_id(text)[:16]


def _without_text(group: Row, answer_of: Mapping[str, str]) -> Row:
    kept = {name: value for name, value in group.items() if name not in WITH_TEXT}
    outputs = None
    if group["outputs"] is not None:
        outputs = [
            {"sampled": None if text in answer_of else text, "answer_of": answer_of.get(text)}
            for text in group["outputs"]
        ]
    hashes = [text_hash(text) for text in group["candidate_texts"]]
    return {**kept, "query_hash": query_hash(group), "candidate_hashes": hashes, "outputs": outputs}


def _with_text(config: RunConfig, path: Path) -> list[Row]:
    """The labelled groups of a file with the texts of the run's prepared data."""
    name = path.stem
    known = {row["query_id"]: row for row in queries(config.paths, "train", name)}
    passages = passage_texts(config.paths, name)
    remedy = f"prepare {name} by the run file that these labels are of, or label anew"
    groups = []
    for row in read_tables([path], KEPT).to_pylist():
        query = known.get(row["query_id"])
        if query is None or query_hash(query) != row["query_hash"]:
            raise DataError(f"{path}: query {row['query_id']} is not the one that was labelled; {remedy}")
        for passage_id, wanted in zip(row["candidate_ids"], row["candidate_hashes"], strict=True):
            if passage_id not in passages or text_hash(passages[passage_id]) != wanted:
                raise DataError(f"{path}: passage {passage_id} is not the one that was labelled; {remedy}")
        outputs = row["outputs"] and [
            one["sampled"] if one["answer_of"] is None else known[one["answer_of"]]["answers"][0]
            for one in row["outputs"]
        ]
        texts = {"candidate_texts": [passages[each] for each in row["candidate_ids"]], "outputs": outputs}
        group = {**row, **texts, "query": query["query"], "answers": query["answers"]}
        if group_id(group) != row["row_id"]:
            raise DataError(f"{path}: the group of query {row['query_id']} is not the one that was labelled; {remedy}")
        groups.append({key: group[key] for key in LABELLED.names})
    return groups


if __name__ == "__main__":
    sys.exit(main())
