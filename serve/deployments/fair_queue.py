"""What waits, shared out among its owners: whoever has had least goes next. Needs neither Ray nor the web.

Start-time fair queueing (Goyal, Vin and Cheng, 1996): an owner that begins to wait counts as having had as much as the
one whose turn it was last. So nobody saves up turns, and of two owners that both wait none gets ahead of the other by
more than the largest piece of each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Items that wait, those of an owner in their order."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[T]] = {}
        self._had: dict[str, float] = {}
        """Work that each owner has had, counted from the same beginning."""
        self._level = 0.0
        """What the owner had had whose turn it was last."""

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __iter__(self) -> Iterator[T]:
        return (item for line in self._lines.values() for item in line)

    @property
    def owners(self) -> list[str]:
        """The owners of the items that wait."""
        return list(self._lines)

    def of(self, owner: str) -> tuple[T, ...]:
        """The items of an owner, the oldest first."""
        return tuple(self._lines.get(owner, ()))

    def add(self, owner: str, item: T) -> None:
        """Have an item wait behind those of its owner."""
        if owner not in self._lines:
            # Who waits no more is forgotten as soon as it would begin at the level anyway: names must not pile up.
            self._had = {one: had for one, had in self._had.items() if one in self._lines or had > self._level}
            self._had[owner] = max(self._had.get(owner, 0.0), self._level)
            self._lines[owner] = deque()
        self._lines[owner].append(item)

    def first(self) -> tuple[str, T]:
        """The item whose turn it is, and its owner; of owners that have had as much, the one that waits longest."""
        owner = min(self._lines, key=self._had.__getitem__)
        return owner, self._lines[owner][0]

    def charge(self, owner: str, work: float) -> None:
        """Note work that is done for the owner whose turn it is."""
        self._level = self._had[owner]
        self._had[owner] += work

    def pop(self, owner: str) -> T:
        """Take the oldest item of an owner out."""
        line = self._lines[owner]
        item = line.popleft()
        if not line:
            del self._lines[owner]
        return item


def work_before(own: float, others: Iterable[float], work: float) -> float:
    """What is done before an owner's next `work` is, itself apart, if all owners share equally.

    `own` is what the owner has before it, `others` what each other one has.
    """
    return own + sum(min(other, own + work) for other in others)


def is_beyond_share(own: int, total: int, most: int, owners: int) -> bool:
    """Whether an owner that has `own` of `total` may have no more: all is full, and it has had its share of that."""
    return total >= most and own >= most // owners
