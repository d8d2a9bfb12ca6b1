"""How good rankings are: recall, reciprocal rank and NDCG by ir_measures, a value a query, and their means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ir_measures
import numpy as np
from ir_measures import RR, R, nDCG

from embedder.mining.lexical import Ranking

PerQuery = dict[str, dict[str, float]]
"""Measure -> query id -> value."""


def measure(rankings: Mapping[str, Ranking], relevant: Mapping[str, Sequence[str]], cutoffs: Sequence[int]) -> PerQuery:
    """Recall@k, NDCG@k and reciprocal rank of every query that has a relevant passage; 0 where none is found.

    Equal scores are ranked in the order of the ranking (ours breaks ties by id), so the library gets ranks as scores.
    """
    measures = [RR, *(measure @ k for k in cutoffs for measure in (R, nDCG))]
    qrels = [ir_measures.Qrel(query, passage, 1) for query, passages in relevant.items() for passage in passages]
    run = [
        ir_measures.ScoredDoc(query, passage, float(-rank))
        for query, ranking in rankings.items()
        for rank, (passage, _) in enumerate(ranking)
    ]
    values: PerQuery = {str(one): {query: 0.0 for query, passages in relevant.items() if passages} for one in measures}
    if qrels and run:
        for metric in ir_measures.iter_calc(measures, qrels, run):
            values[str(metric.measure)][metric.query_id] = metric.value
    return values


def mean(values: Mapping[str, float]) -> float | None:
    """Mean over queries; None without queries."""
    return float(np.mean(list(values.values()))) if values else None


def paired_difference(
    values: Mapping[str, float], baseline: Mapping[str, float], seed: int, rounds: int = 2000
) -> tuple[float, float, float] | None:
    """Mean difference over the queries both have, with its 95 % bootstrap interval (resampled queries)."""
    queries = sorted(values.keys() & baseline.keys())
    if not queries:
        return None
    difference = np.array([values[query] - baseline[query] for query in queries])
    drawn = np.random.default_rng(seed).integers(0, len(queries), size=(rounds, len(queries)))
    low, high = np.quantile(difference[drawn].mean(axis=1), [0.025, 0.975])
    return float(difference.mean()), float(low), float(high)
