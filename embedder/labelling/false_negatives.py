"""Mined candidates that the LLM finds as good as a known positive: which they are, and how many there are.

Positives that nobody marked are common among what a search finds (arXiv 2505.16967, 2604.11092).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from embedder.labelling.even_draw import EvenDraw

SHOWN = 5
"""Groups with such candidates that are kept to read."""

Row = Mapping[str, Any]
"""A row of `records.LABELLED`."""


def as_good_as_positive(rewards: Sequence[float], relevance: Sequence[int]) -> list[int]:
    """Positions of candidates that nobody marked, with at least the reward of the best known positive.

    None in a group without a known positive, and none where that is no better than half of the others: there LLM and
    labels disagree, and the LLM would call everything a positive.
    """
    known = [reward for reward, given in zip(rewards, relevance, strict=True) if given]
    others = [reward for reward, given in zip(rewards, relevance, strict=True) if not given]
    if not known or not others or max(known) <= median(others):
        return []
    pairs = enumerate(zip(rewards, relevance, strict=True))
    return [i for i, (reward, given) in pairs if not given and reward >= max(known)]


class FalseNegatives:
    """Counts them row by row in bounded memory, and keeps some groups to read."""

    def __init__(self, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        """`mined`: candidates of groups with a known positive that nobody marked; `as_good`: those of them that the LLM
        finds as good; `groups`: those that have such ones."""
        self._shown = EvenDraw[Row](seed, SHOWN)

    def add(self, row: Row) -> None:
        """Count a row with rewards."""
        found = as_good_as_positive(row["rewards"], row["relevance"])
        if any(row["relevance"]):
            self.counts["mined"] += sum(not given for given in row["relevance"])
        if found:
            self.counts["as_good"] += len(found)
            self.counts["groups"] += 1
            self._shown.offer(row["row_id"], lambda: row)

    @property
    def rows(self) -> list[Row]:
        """Groups to read."""
        return self._shown.rows

    @property
    def line(self) -> str:
        """How many there are; empty where there are none."""
        counts = self.counts
        if not counts["as_good"]:
            return ""
        return (
            f"the LLM finds {counts['as_good']:,} of {counts['mined']:,} mined candidates "
            f"({counts['as_good'] / counts['mined']:.0%}), in {counts['groups']:,} groups, as good as the best known "
            "positive"
        )

    def numbers(self) -> dict[str, int]:
        """The counts by name, for JSON."""
        return {name: self.counts[name] for name in ("mined", "as_good", "groups")}
