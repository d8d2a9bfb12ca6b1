"""Which passages must not stand among the negatives of a query."""

from __future__ import annotations

import re
from collections.abc import Sequence

NOT_WORD = re.compile(r"[^\w]+", re.UNICODE)


def normalise(text: str) -> str:
    """Lower case, words joined by single spaces: two texts that differ in layout and punctuation become equal."""
    return " ".join(NOT_WORD.sub(" ", text.lower()).split())


def overlap(one: str, other: str) -> float:
    """Jaccard overlap of the word sets of two normalised texts, 0 to 1."""
    words, others = set(one.split()), set(other.split())
    union = words | others
    return len(words & others) / len(union) if union else 1.0


def is_duplicate(text: str, positives: Sequence[str], threshold: float) -> bool:
    """Whether a passage equals a positive in text, or overlaps one by `threshold` or more (both normalised)."""
    return any(text == positive or overlap(text, positive) >= threshold for positive in positives)
