"""Which groups are kept out of the training, to measure it on. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedder.config.train import ValidationConfig
from embedder.errors import ConfigError
from embedder.hashing import row_seed


def query_key(seed: int, task: str, query: str) -> int:
    """A hash of a query's text by which it is kept apart or not, so that two groups of one query are never parted."""
    return row_seed(seed, "validation", task, query)


def greatest_apart(task: str, keys: NDArray[np.uint64], config: ValidationConfig | None) -> int:
    """The greatest of a task's keys that is kept apart with all below it; -1: none.

    By hash and not drawn, so that the choice depends on neither the order of the groups nor other tasks.

    Raises:
        ConfigError: the task would have nothing left to train on.
    """
    if config is None:
        return -1
    queries = np.unique(keys)
    count = config.queries or int((config.share or 0) * len(queries))
    if count >= len(queries):
        raise ConfigError(
            f"train.validation.queries is {count}, but task {task!r} has {len(queries)} queries, so none would "
            "be left to train on; lower it, or give train.validation.share instead"
        )
    return int(queries[count - 1]) if count else -1


def split_groups(
    groups: Sequence[dict[str, Any]], config: ValidationConfig | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Groups to train on, and those kept apart.

    Raises:
        ConfigError: a task would have nothing left to train on.
    """
    seed = config.seed if config else 0
    keys = [query_key(seed, group["task"], group["query"]) for group in groups]
    by_task: dict[str, list[int]] = {}
    for group, key in zip(groups, keys, strict=True):
        by_task.setdefault(group["task"], []).append(key)
    apart = {
        task: greatest_apart(task, np.array(own, dtype=np.uint64), config) for task, own in sorted(by_task.items())
    }
    kept: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for group, key in zip(groups, keys, strict=True):
        kept[key <= apart[group["task"]]].append(group)
    return kept
