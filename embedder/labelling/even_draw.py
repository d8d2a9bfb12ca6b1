"""A few rows of many, drawn evenly while they pass by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from embedder.hashing import content_id

T = TypeVar("T")


class EvenDraw(Generic[T]):
    """Keeps at most `most` rows by a seeded hash of their names."""

    def __init__(self, seed: int, most: int) -> None:
        self._seed, self._most = seed, most
        self._kept: dict[str, T] = {}

    def offer(self, name: str, make: Callable[[], T]) -> None:
        """Keep what `make` gives for a row, if the draw falls on it."""
        # The least hashes are an even draw that needs neither the number of rows nor their order.
        key = content_id(self._seed, name)
        if len(self._kept) < self._most or key < max(self._kept):
            self._kept[key] = make()
            self._kept = dict(sorted(self._kept.items())[: self._most])

    @property
    def rows(self) -> list[T]:
        """What is kept, in the order of the hashes."""
        return list(self._kept.values())
