"""How far a process knows a folder of numbered objects, and for how long it may rely on that without asking.

Numbers are removed some day, and the store takes them again: a put that slept for a day succeeds where the number had
another owner, whose object is gone. So nobody relies on a number for longer than `trusted_s`, and nobody removes one
before what replaces it has been there for `kept_s`, which is far longer. Each time is measured by one clock: the first
by that of the process, the second by that of the store. No two clocks need to agree.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from embedder.storage.numbered import NumberedObjects


@dataclass(frozen=True)
class Retention:
    """How long numbers are relied on, and kept."""

    trusted_s: float = 60.0
    """For so long a position is relied on; after that the store is asked again."""
    kept_s: float = 24 * 3600.0
    """For so long what has been replaced is kept; several times `trusted_s`, as clocks run differently."""


RETENTION = Retention()


def clock() -> float:
    """Seconds that pass while the machine sleeps too, so that who wakes up knows that its time is over."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.time()


class Position(NamedTuple):
    """A number that was not replaced yet at some moment since `since`, so that the one after it was not removed."""

    number: int
    since: float
    """By the clock of the process that holds it, taken before it asked the store."""


def newest(objects: NumberedObjects, clock: Callable[[], float]) -> tuple[Position, bytes | None]:
    """The object with the highest number and its content; (0, None) where there is none.

    Raises:
        StorageError: the store does not answer.
    """
    while True:
        began = clock()
        number = objects.latest()
        content = objects.get(number) if number else None
        # Gone since it was listed only where there is a newer one.
        if content is not None or not number:
            return Position(number, began), content


def replaced(stored: Mapping[int, float], now: float, retention: Retention) -> tuple[int, list[int]]:
    """The highest number that has been there for `kept_s`, 0 where there is none, and the numbers before it.

    `stored`: seconds by the store's clock at which each was stored; `now` is by the same clock.
    """
    kept = max((number for number, stored_s in stored.items() if now - stored_s >= retention.kept_s), default=0)
    return kept, [number for number in stored if number < kept]
