"""Which data sets a training of the study learns from, and which it is judged on: fixed before any run.

A training has a number, 0 to 5. Even numbers are direction A, odd ones B. Of a task with two data sets each direction
trains on one and is judged on the other; of the worked examples (icl) each training leaves one kind out, every kind
twice. The number is also the seed of the order of the batches and of the validation split, so no two trainings of an
arm are alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Direction = Literal["A", "B"]

LEARNED: dict[Direction, frozenset[str]] = {
    "A": frozenset({"nq", "irc", "metatool", "books", "dstc11"}),
    "B": frozenset({"pubmedqa", "topicalchat", "apibench", "code", "dstc11"}),
}
"""The data sets that a direction trains on, the worked examples apart."""
EXAMPLES = (("clinc150", "snips"), ("sentence_polarity", "subjectivity"), ("snli", "strategyqa"))
"""The data sets of worked examples by kind: what is asked for, how a text sounds, what follows. A training learns from
two kinds, so that what it is judged on is none of those that it knows."""
TRAININGS = 2 * len(EXAMPLES)
"""Trainings of an arm whose gain is claimed."""


@dataclass(frozen=True)
class Training:
    """One training of an arm, by its number."""

    number: int

    @property
    def direction(self) -> Direction:
        """The side of the pairs of data sets that is trained on."""
        return "B" if self.number % 2 else "A"

    @property
    def left_out(self) -> tuple[str, str]:
        """The data sets of worked examples that it never sees."""
        return EXAMPLES[self.number // 2 % len(EXAMPLES)]

    @property
    def learned(self) -> frozenset[str]:
        """All data sets that it trains on."""
        examples = (name for kind in EXAMPLES if kind != self.left_out for name in kind)
        return LEARNED[self.direction] | frozenset(examples)

    def seen(self, datasets: Iterable[str]) -> list[str]:
        """Those of a run's data sets that it trains on."""
        return [name for name in datasets if name in self.learned]

    def unseen(self, datasets: Iterable[str]) -> list[str]:
        """Those of a run's data sets that it is judged on."""
        return [name for name in datasets if name not in self.learned]
