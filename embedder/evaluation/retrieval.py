"""Measures rankings by ir_measures, finds which passages are relevant, and makes rankings that need no model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from random import Random
from typing import Any

import ir_measures

from embedder.evaluation.base import Evaluation
from embedder.hashing import row_seed
from embedder.mining.ranking import Ranking

PerQuery = dict[str, dict[str, float]]
"""Measure -> query id -> value."""
Relevant = Mapping[str, Mapping[str, int]]
"""Query id -> relevant passage -> grade."""


def measure_names(evaluation: Evaluation, cutoffs: Sequence[int]) -> list[str]:
    """The ranking measures of an evaluation, its own first, then reciprocal rank, recall and NDCG at each cutoff."""
    general = ["RR", *(f"{name}@{k}" for k in cutoffs for name in ("R", "nDCG"))]
    return list(dict.fromkeys([*evaluation.rankings, *general]))


def measure(rankings: Mapping[str, Ranking], relevant: Relevant, names: Sequence[str]) -> PerQuery:
    """Each measure of every query that has a relevant passage; 0 where none is found.

    Equal scores are ranked in the order of the ranking (ours breaks ties by id), so the library gets ranks as scores.
    """
    named = {ir_measures.parse_measure(name): name for name in names}
    run = {
        query: {passage: float(-rank) for rank, (passage, _) in enumerate(ranking)}
        for query, ranking in rankings.items()
    }
    values: PerQuery = {name: {query: 0.0 for query, grades in relevant.items() if grades} for name in names}
    for metric in ir_measures.iter_calc(named, relevant, run):
        # A query without relevant passages has no value, whatever the library says of it.
        if metric.query_id in values[named[metric.measure]]:
            values[named[metric.measure]][metric.query_id] = metric.value
    return values


def relevant_passages(
    evaluation: Evaluation, rows: Iterable[Mapping[str, Any]], answers: Mapping[str, str | None]
) -> dict[str, dict[str, int]]:
    """The known positives of each query with their grades, or the worked examples that have its answer.

    `answers` are those of the passages by id. A query without any relevant passage is left out.
    """
    by_answer: dict[str, list[str]] = {}
    if evaluation.relevance == "same_answer":
        for passage_id, answer in answers.items():
            if answer is not None:
                by_answer.setdefault(answer, []).append(passage_id)
    relevant: dict[str, dict[str, int]] = {}
    for row in rows:
        if evaluation.relevance == "same_answer":
            wanted = by_answer.get(row["answers"][0], []) if row["answers"] else []
            own = set(row.get("example_ids") or [])
            grades = dict.fromkeys((each for each in wanted if each not in own), 1)
        else:
            given = row["positive_grades"] or [1] * len(row["positive_ids"])
            grades = dict(zip(row["positive_ids"], given, strict=True))
        if grades:
            relevant[row["query_id"]] = grades
    return relevant


def own_examples(rows: Iterable[Mapping[str, Any]]) -> dict[str, set[str]]:
    """The passages that are a query itself as a worked example, by query id, of those queries that have such."""
    return {row["query_id"]: set(row["example_ids"]) for row in rows if row.get("example_ids")}


def without_itself(
    rankings: Mapping[str, Ranking], depth: int, own: Mapping[str, set[str]] | None = None
) -> dict[str, Ranking]:
    """Rankings in which no query finds itself: one of the dev split may be a worked example of the corpus (`own`)."""
    own = own or {}
    return {
        query: [entry for entry in ranking if entry[0] not in own.get(query, ())][:depth]
        for query, ranking in rankings.items()
    }


def random_rankings(
    rows: Iterable[Mapping[str, Any]], passage_ids: Sequence[str], depth: int, seed: int
) -> dict[str, Ranking]:
    """`depth` passages a query, drawn by its own seed from its candidates or from all passages."""
    rankings = {}
    for row in rows:
        pool = passage_ids if row["pool_ids"] is None else row["pool_ids"]
        drawn = Random(row_seed(seed, "random", row["query_id"])).sample(pool, min(depth, len(pool)))
        rankings[row["query_id"]] = [(each, float(-rank)) for rank, each in enumerate(drawn)]
    return rankings


def recency_rankings(rows: Iterable[Mapping[str, Any]], depth: int) -> dict[str, Ranking]:
    """The latest of each query's own candidates, the last one first."""
    rankings = {}
    for row in rows:
        latest = list(reversed(row["pool_ids"] or []))[:depth]
        rankings[row["query_id"]] = [(passage_id, float(-rank)) for rank, passage_id in enumerate(latest)]
    return rankings
