"""Many Ray tasks from a driver that holds few of them: some at a time, and results that are joined as a tree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import ray

T = TypeVar("T")

FAN_IN = 8
"""Results that one task joins."""


def in_tree(join: Callable[..., ray.ObjectRef], results: Sequence[ray.ObjectRef]) -> ray.ObjectRef:
    """One result of all: `join` starts a task that joins several, and such tasks join what these return."""
    level = list(results)
    while len(level) > 1:
        level = [join(*level[first : first + FAN_IN]) for first in range(0, len(level), FAN_IN)]
    return level[0]


def some_at_a_time(start: Callable[[T], ray.ObjectRef], items: Iterable[T], most: int) -> Iterator[tuple[T, Any]]:
    """Each item with what its task returned, as tasks end; no more than `most` are under way."""
    waiting: dict[ray.ObjectRef, T] = {}
    for item in items:
        waiting[start(item)] = item
        if len(waiting) >= most:
            yield _ended(waiting)
    while waiting:
        yield _ended(waiting)


def _ended(waiting: dict[ray.ObjectRef, T]) -> tuple[T, Any]:
    (done,), _ = ray.wait(list(waiting), num_returns=1)
    return waiting.pop(done), ray.get(done)
