"""Chooses the queries that the LLM is asked, and which questions about them are asked together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from embedder.config.evaluate import EvaluateConfig
from embedder.evaluation.base import Evaluation
from embedder.hashing import row_seed

Row = dict[str, Any]


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
