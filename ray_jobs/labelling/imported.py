"""Rewards made elsewhere: the `teacher_scores` that `prepare` kept become the rewards of the groups that `mine` made.

Memory holds the scores of one dataset and one row group of candidates.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow.compute as pc

from embedder.config.paths import Paths
from embedder.config.run import RunConfig
from embedder.config.tasks import TaskSpec
from embedder.data.ledger import Ledger
from embedder.data.records import QUERY, parquet_files, read_tables, unrewarded
from embedder.data.row_ids import RowIds
from embedder.errors import DataError
from embedder.hashing import content_id
from ray_jobs.labelling.block_plan import commit_missing, read_row_group, row_groups

Scores = dict[str, dict[str, float]]
"""Scores of a dataset's candidates: by query id, then by passage id."""


def imported_fingerprint(paths: Paths) -> str:
    """16 hexadecimal digits that depend on all scores, and on the queries and candidates they are for.

    Raises:
        DataError: `prepare` kept no scores.
    """
    datasets = [
        (path.stem, content_id(sorted((query_id, sorted(of.items())) for query_id, of in scores.items())))
        for path in parquet_files(paths.queries / "train")
        if (scores := _scores(paths, path.stem))
    ]
    if not datasets:
        raise DataError(
            f"{paths.queries}: no training query has teacher_scores; name a source with teacher_scores: true in "
            "prepare.sources, then run prepare and mine"
        )
    return content_id("imported", datasets)[:16]


def commit_imported(config: RunConfig, ledger: Ledger, fingerprint: str) -> tuple[RowIds, int]:
    """Commit the candidate groups that no block holds, with their scores as rewards, a row group at a time.

    Returns the ids of all groups, and how many of them were committed before.

    Raises:
        DataError: a file is unreadable, or `mine` has not run.
    """
    done = ledger.row_ids()

    def committed() -> Iterator[list[str]]:
        scores: tuple[str, Scores] = ("", {})
        for path, number in row_groups(config.paths):
            if scores[0] != path.stem:
                scores = path.stem, _scores(config.paths, path.stem)
            rows = read_row_group(path, number)
            labelled = [
                imported_row(group, scores[1].get(group["query_id"]), config.tasks, fingerprint)
                for group in rows.groups
            ]
            for position, reason in rows.unreadable.items():
                labelled[position] |= {"rewards": None, "error": reason}
            commit_missing(ledger, labelled, done)
            yield [row["row_id"] for row in labelled]

    expected = RowIds(committed())
    return expected, len(expected) - expected.missing_from(done)[0]


def imported_row(
    group: dict[str, Any], scores: dict[str, float] | None, tasks: dict[str, TaskSpec], fingerprint: str
) -> dict[str, Any]:
    """A row of `records.LABELLED`; `error` says why a group that needs rewards has none."""
    row = unrewarded(group, "none", fingerprint)
    if scores is None:
        loss = tasks[group["task"]].loss
        if loss == "contrastive":
            return row
        return {**row, "error": f"no teacher_scores, but tasks.{group['task']}.loss is {loss!r} and needs them"}
    unscored = [passage_id for passage_id in group["candidate_ids"] if passage_id not in scores]
    if unscored:
        return {**row, "error": f"candidate {unscored[0]!r} has no teacher score; run mine again"}
    return {**row, "reward": "imported", "rewards": [scores[passage_id] for passage_id in group["candidate_ids"]]}


def _scores(paths: Paths, dataset: str) -> Scores:
    path = paths.queries / "train" / f"{dataset}.parquet"
    table = read_tables([path] if path.is_file() else [], QUERY, ["query_id", "pool_ids", "teacher_scores"])
    rows = table.filter(pc.is_valid(table["teacher_scores"])).to_pylist()
    return {row["query_id"]: dict(zip(row["pool_ids"], row["teacher_scores"], strict=True)) for row in rows}
