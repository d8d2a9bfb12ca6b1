"""Joins rows that are one query: what each of them knows is united, and what contradicts is refused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from embedder.data.fields import Row, RowError
from embedder.errors import shown

FACTS = ("options", "category", "origin")
"""Columns that two rows of a query have in common, where both have them."""


def merge_line(known: Sequence[Row], further: Sequence[Row], *, in_time: bool) -> None:
    """Add the queries of a further line to those of an earlier one: one query each, or those of one long text.

    Raises:
        RowError: the two contradict each other; the known ones stay as they were.
    """
    if len(known) != len(further):
        raise RowError(f"query_id {further[0]['query_id']!r} was seen before, of another kind of row")
    for query, more in zip(known, further, strict=True):
        merge_query(query, more, in_time=in_time)


def merge_query(known: Row, further: Row, *, in_time: bool) -> None:
    """Add a further row of one query to the one that is known: answers, positives and candidates are united.

    `in_time`: the candidates are a history, whose order counts, so that two of them cannot be united.

    Raises:
        RowError: the two contradict each other; the known row stays as it was.
    """
    contradiction = _contradiction_of_candidates(known, further, in_time) or _contradiction_of_facts(known, further)
    if known["query"] != further["query"]:
        contradiction = "another query"
    if contradiction:
        raise RowError(f"query_id {known['query_id']!r} was seen before, with {contradiction}")
    for name in ("answers", "positive_ids"):
        known[name] = _united(known[name], further[name])
    if known["teacher_scores"] is None and known["pool_ids"] is not None:
        known["pool_ids"] = _united(known["pool_ids"], further["pool_ids"])
    for name in FACTS:
        known[name] = further[name] if known[name] is None else known[name]


def _contradiction_of_candidates(known: Row, further: Row, in_time: bool) -> str | None:
    pool, more = known["pool_ids"], further["pool_ids"]
    if (pool, known["teacher_scores"]) == (more, further["teacher_scores"]):
        return None
    if known["teacher_scores"] is not None or further["teacher_scores"] is not None:
        # Scores of two readings cannot be told to be of one scale.
        return "other candidates or teacher_scores"
    if in_time:
        return "another history"
    if pool is None or more is None:
        return "candidates of its own in one row alone"
    positives, more_positives = set(known["positive_ids"]), set(further["positive_ids"])
    if positives & (set(more) - more_positives) or more_positives & (set(pool) - positives):
        return "a candidate that is positive in one row and negative in the other"
    return None


def _contradiction_of_facts(known: Row, further: Row) -> str | None:
    if name := contradicting_fact(known, further):
        return f"{name} {shown(known[name])}"
    answers, more = set(known["answers"]), set(further["answers"])
    # Of options one is right: a second one is not another way to say it.
    if (known["options"] or further["options"]) and answers and more and answers != more:
        return f"the answer {shown(known['answers'][0])}"
    return None


def contradicting_fact(known: Row, further: Row) -> str | None:
    """The first column of `FACTS` that two rows both have, with different values."""
    return next(
        (name for name in FACTS if None not in (known[name], further[name]) and known[name] != further[name]), None
    )


def _united(first: Iterable[str], second: Iterable[str]) -> list[str]:
    return list(dict.fromkeys([*first, *second]))
