"""Queries to read: those on which one retriever did better or worse than the baseline, with what both found."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from embedder.config.evaluate import EvaluateConfig
from embedder.evaluation.base import Measure, Value
from embedder.evaluation.evaluations import measure_of
from embedder.evaluation.measurements import DatasetValues
from embedder.hashing import row_seed
from embedder.mining.lexical import Ranking
from embedder.reporting.html import printable

LEAST_PASSAGES = 3
"""Shown of a ranking that the LLM was not asked about."""
PASSAGE_CHARACTERS, QUERY_CHARACTERS = 600, 2000


@dataclass(frozen=True)
class RankedQuery:
    """The rankings of one dataset by retriever and query id, and the texts of its passages by id."""

    rankings: Mapping[str, Mapping[str, Ranking]]
    texts: Mapping[str, str]


def compared(settings: EvaluateConfig) -> str | None:
    """The retriever whose wins and losses are told: `trained`, else the last one that ranks by a model."""
    others = [one.name for one in settings.retrievers if one.name not in {settings.baseline, "none", "random"}]
    return "trained" if "trained" in others else next(iter(reversed(others)), None)


def won_and_lost(one: DatasetValues, found: RankedQuery, settings: EvaluateConfig) -> dict[str, Any]:
    """The queries with the greatest differences of the dataset's headline measure, a seeded order among equal ones."""
    name, headline = compared(settings), one.headline
    empty: dict[str, Any] = {"retriever": name, "measure": headline, "won": [], "lost": []}
    values = one.values.get(headline or "", {})
    if name is None or headline is None or name not in values or settings.baseline not in values:
        return empty
    measure = measure_of(one.evaluation, headline)
    mine, other = values[name], values[settings.baseline]
    gains = {query: measure.better * (mine[query][0] - other[query][0]) for query in mine.keys() & other.keys()}
    order = sorted(gains, key=lambda query: (-gains[query], row_seed(settings.seed, "example", query)))
    won = [query for query in order[: settings.examples] if gains[query] > 0]
    lost = [query for query in reversed(order[-settings.examples :]) if gains[query] < 0] if settings.examples else []
    pair = (settings.baseline, name)
    shown = {"won": won, "lost": lost}
    return {
        **empty,
        **{kind: [_example(one, query, pair, found, settings) for query in queries] for kind, queries in shown.items()},
    }


def _example(
    one: DatasetValues, query_id: str, pair: tuple[str, str], found: RankedQuery, settings: EvaluateConfig
) -> dict[str, Any]:
    row = next(row for row in one.rows if row["query_id"] == query_id)
    measure = measure_of(one.evaluation, one.headline or "")
    sides = {}
    for name in pair:
        reply = one.replies.get((name, query_id))
        count = settings.passages.get(one.evaluation.name, LEAST_PASSAGES) if reply else LEAST_PASSAGES
        best = found.rankings.get(name, {}).get(query_id, [])[:count]
        sides[name] = {
            "value": shown_value(measure, one.values[one.headline or ""][name][query_id]),
            "reply": printable(reply.text) if reply and reply.text is not None else None,
            "passages": [
                {
                    "id": passage_id,
                    "text": printable(found.texts[passage_id], PASSAGE_CHARACTERS),
                    "relevant": passage_id in one.relevant.get(query_id, {}),
                }
                for passage_id, _ in best
            ],
        }
    return {
        "query_id": query_id,
        "query": printable(row["query"], QUERY_CHARACTERS),
        "answers": [printable(text) for text in row["answers"][:5]],
        "retrievers": sides,
    }


def shown_value(measure: Measure, value: Value) -> float:
    """A query's value on the measure's own scale."""
    return math.exp(value[0]) if measure.kind == "perplexity" else value[0]
