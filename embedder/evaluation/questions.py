"""Makes the questions that the LLM is asked: chosen queries with the passages of each retriever, equal ones once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from embedder.config.evaluate import EvaluateConfig
from embedder.evaluation.base import Evaluation, Passage, Question
from embedder.evaluation.replies import Fingerprint
from embedder.hashing import row_seed
from embedder.mining.ranking import Ranking

Row = dict[str, Any]
Rankings = Mapping[str, Mapping[str, Ranking]]
"""Retriever -> query id -> ranking."""


@dataclass
class Asked:
    """The questions of one dataset or many."""

    rows: dict[str, Row] = field(default_factory=dict)
    """Rows of `base.ASKED` by id."""
    ids: dict[tuple[str, str, str], str] = field(default_factory=dict)
    """The question's id by (dataset, retriever, query id)."""


def chosen_queries(evaluation: Evaluation, rows: Iterable[Row], settings: EvaluateConfig) -> list[Row]:
    """The queries that the LLM is asked: a seeded choice among those with an answer, which grows with the limit."""
    limit = settings.llm_queries.get(evaluation.name, 0)
    # The seed of a query does not depend on the others, so a greater limit keeps what was chosen before.
    usable = [row for row in rows if row["answers"] and (row["options"] or evaluation.name != "choice")]
    usable.sort(key=lambda row: row_seed(settings.seed, "judge", row["dataset"], row["query_id"]))
    return usable[:limit] if evaluation.measures else []


def ask_all(
    asked: Asked,
    evaluation: Evaluation,
    rows: Sequence[Row],
    found: tuple[Rankings, Mapping[str, str]],
    limits: tuple[int, Fingerprint],
) -> None:
    """Enter the questions of one dataset's chosen queries.

    `found`: the rankings, and the texts of passages by id; `limits`: how many passages the LLM sees, and the
    fingerprint of the replies.
    """
    (rankings, texts), (count, fingerprint) = found, limits
    for row in rows:
        positions = {passage_id: position for position, passage_id in enumerate(row["pool_ids"] or [])}
        for retriever, by_query in rankings.items():
            best = by_query.get(row["query_id"], [])[:count]
            passages = [Passage(each, texts[each], positions.get(each)) for each, _ in best]
            known = {
                name: row[name] for name in ("task", "dataset", "query_id", "query", "answers", "options", "category")
            }
            question = Question(evaluation=evaluation.name, **known, passages=passages)
            entry = question.row(fingerprint(row["task"], row["dataset"]))
            asked.rows[entry["row_id"]] = entry
            asked.ids[row["dataset"], retriever, row["query_id"]] = entry["row_id"]


def plan_units(rows: Iterable[Row], unit_queries: int, done: set[str]) -> list[list[Row]]:
    """Questions that are asked and committed together: those of `unit_queries` queries of a dataset, less what is done.

    Which queries make a unit depends on all rows, not on what is done: after a kill the rest is asked in the same
    units, so that replies depend neither on the place of the kill nor on how many actors share the units.
    """
    by_query: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        by_query.setdefault((row["evaluation"], row["dataset"], row["query_id"]), []).append(row)
    units: dict[tuple[str, str], list[list[Row]]] = {}
    for evaluation, dataset, query_id in sorted(by_query):
        units.setdefault((evaluation, dataset), []).append(by_query[evaluation, dataset, query_id])
    planned = []
    for queries in units.values():
        for i in range(0, len(queries), unit_queries):
            unit = [row for query in queries[i : i + unit_queries] for row in query if row["row_id"] not in done]
            if unit:
                planned.append(sorted(unit, key=lambda row: str(row["row_id"])))
    return planned
