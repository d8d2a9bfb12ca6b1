"""Decides which questions are kept, from the log-likelihoods of their outputs alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, isnan

from embedder.config.questions import QuestionsConfig
from embedder.mining.candidates import normalise, word_overlap

SEARCHED = 100
"""Passages among which BM25 looks for a question's own."""
NEAR_DUPLICATE = "like an earlier question"


@dataclass(frozen=True)
class OutputScores:
    """Mean log-likelihoods (nats a token) of a question's output."""

    bare: float
    """Without a passage."""
    own: float
    """With all passages that the question was written for."""
    alone: Sequence[float]
    """With each of these by itself."""
    others: Sequence[float]
    """With passages that a search for the question finds beside its own, those above its own first."""
    above: int
    """Number of `others` that the search puts above its own."""
    rank: int | None
    """Rank of the first of its own passages in the search, from 1; None: not among the first `SEARCHED`."""

    @property
    def gain(self) -> float:
        """Log-likelihood that the passages add."""
        return self.own - self.bare


def verdict(scores: OutputScores, settings: QuestionsConfig) -> str | None:
    """Why a question is dropped; None if it is kept."""
    if isnan(scores.gain):
        return "could not be scored: a server divides it into other tokens"
    # Written so that a score that is no number fails each test.
    if not scores.gain >= settings.min_gain:
        return "the passage does not help"
    if len(scores.alone) > 1 and not scores.own - max(scores.alone) >= settings.min_second_gain:
        return "one passage is enough"
    if scores.rank is None or scores.rank > settings.found_within:
        return "a search does not find the passage"
    if not all(other < scores.own for other in scores.others[: scores.above]):
        return "answered by what a search finds first"
    if not all(other < scores.own for other in scores.others[scores.above :]):
        return "answered by another passage"
    return None


def near_duplicates(texts: Iterable[str], threshold: float) -> list[bool]:
    """For each text, in order, whether its words overlap those of an earlier kept one by `threshold` (Jaccard).

    Two sets that overlap so far share one of the first words of either, rarest first (prefix filtering, Chaudhuri et
    al. 2006), so few are compared.
    """
    normal = [normalise(text) for text in texts]
    counts = Counter(word for text in normal for word in set(text.split()))
    by_word: dict[str, list[str]] = {}
    found = []
    for text in normal:
        words = sorted(set(text.split()), key=lambda word: (counts[word], word))
        first = words[: len(words) - ceil(threshold * len(words)) + 1]
        near = any(word_overlap(text, other) >= threshold for word in first for other in by_word.get(word, ()))
        found.append(near)
        for word in [] if near else first:
            by_word.setdefault(word, []).append(text)
    return found
