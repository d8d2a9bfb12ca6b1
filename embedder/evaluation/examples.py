"""Queries to read: those on which one retriever did better or worse than the baseline, with what both found."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from embedder.config.evaluate import EvaluateConfig
from embedder.evaluation.evaluations import measure_of
from embedder.evaluation.measurements import DatasetValues
from embedder.hashing import row_seed
from embedder.reporting.html import printable

PASSAGES = 3
"""Passages shown of a ranking that the LLM was not asked about."""
PASSAGE_CHARACTERS, QUERY_CHARACTERS, ANSWERS = 600, 2000, 5


def compared(settings: EvaluateConfig) -> str | None:
    """The retriever whose wins and losses are shown: `trained`, else the last one that ranks by a model."""
    baselines = {settings.baseline, "none", "random"}
    others = [retriever.name for retriever in settings.retrievers if retriever.name not in baselines]
    return "trained" if "trained" in others else next(reversed(others), None)


def won_and_lost(
    dataset: DatasetValues, texts_of: Callable[[set[str]], Mapping[str, str]], settings: EvaluateConfig
) -> dict[str, Any]:
    """The queries with the greatest differences of the dataset's headline measure; a seed decides among equal ones.

    `texts_of` gives at least those of the dataset's passages, by id, whose ids it is told.
    """
    name, headline, baseline = compared(settings), dataset.headline, settings.baseline
    examples: dict[str, Any] = {"retriever": name, "measure": headline, "won": [], "lost": []}
    values = dataset.values.get(headline or "", {})
    if name is None or headline is None or not {name, baseline} <= values.keys():
        return examples
    measure = measure_of(dataset.evaluation, headline)
    queries = values[name].keys() & values[baseline].keys()
    gains = {query: measure.better * (values[name][query][0] - values[baseline][query][0]) for query in queries}
    order = sorted(gains, key=lambda query: (-gains[query], row_seed(settings.seed, "example", query)))
    won = [query for query in order if gains[query] > 0][: settings.examples]
    lost = [query for query in reversed(order) if gains[query] < 0][: settings.examples]
    rows = {row["query_id"]: row for row in dataset.rows}
    shown = [_shown(dataset, side, query, settings) for query in [*won, *lost] for side in (baseline, name)]
    texts = texts_of({passage_id for ids in shown for passage_id in ids})
    for kind, chosen in (("won", won), ("lost", lost)):
        for query in chosen:
            row = rows[query]
            sides = {side: _side(dataset, side, query, texts, settings) for side in (baseline, name)}
            examples[kind].append(
                {
                    "query_id": query,
                    "query": printable(row["query"], QUERY_CHARACTERS),
                    "answers": [printable(text) for text in row["answers"][:ANSWERS]],
                    "retrievers": sides,
                }
            )
    return examples


def _side(
    dataset: DatasetValues, retriever: str, query_id: str, texts: Mapping[str, str], settings: EvaluateConfig
) -> dict[str, Any]:
    """The measured value, the LLM's reply, and the passages it got, or the first of the ranking if it got none."""
    headline = dataset.headline or ""
    value, _ = dataset.values[headline][retriever][query_id]
    if measure_of(dataset.evaluation, headline).kind == "perplexity":
        # Values are kept as nats a token, because only their mean over queries becomes a perplexity.
        value = math.exp(value)
    reply = dataset.replies.get((retriever, query_id))
    relevant = dataset.relevant.get(query_id, {})
    return {
        "value": value,
        "reply": printable(reply.text) if reply and reply.text is not None else None,
        "passages": [
            {"id": id_, "text": printable(texts[id_], PASSAGE_CHARACTERS), "relevant": id_ in relevant}
            for id_ in _shown(dataset, retriever, query_id, settings)
        ],
    }


def _shown(dataset: DatasetValues, retriever: str, query_id: str, settings: EvaluateConfig) -> list[str]:
    """The ids of the passages that the LLM got, or of the first of the ranking if it got none."""
    is_asked = (retriever, query_id) in dataset.replies
    count = settings.passages.get(dataset.evaluation.name, PASSAGES) if is_asked else PASSAGES
    return [passage_id for passage_id, _ in dataset.rankings.get(retriever, {}).get(query_id, [])[:count]]
