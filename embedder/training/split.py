"""Which groups are kept out of the training, to measure it on. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from embedder.config.train import ValidationConfig
from embedder.errors import ConfigError
from embedder.hashing import row_seed


def split_groups(
    groups: Sequence[dict[str, Any]], config: ValidationConfig | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Groups to train on, and those kept apart.

    Those with the least seeded hash of the query's text, so that two groups of one query are never parted.

    Raises:
        ConfigError: a task would have nothing left to train on.
    """
    if config is None:
        return list(groups), []
    apart: set[tuple[str, str]] = set()
    for task in sorted({group["task"] for group in groups}):
        queries = {group["query"] for group in groups if group["task"] == task}
        count = config.queries or int((config.share or 0) * len(queries))
        if count >= len(queries):
            raise ConfigError(
                f"train.validation.queries is {count}, but task {task!r} has {len(queries)} queries, so none would "
                "be left to train on; lower it, or give train.validation.share instead"
            )
        # By hash and not drawn, so that the choice depends on neither the order of the groups nor other tasks.
        ranked = sorted(queries, key=lambda query: row_seed(config.seed, "validation", task, query))
        apart.update((task, query) for query in ranked[:count])
    kept: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for group in groups:
        kept[(group["task"], group["query"]) in apart].append(group)
    return kept
