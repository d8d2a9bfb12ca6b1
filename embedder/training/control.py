"""The control: groups whose rewards say nothing, because they are shuffled among the candidates of each group."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from embedder.hashing import row_seed


def shuffle_rewards(groups: Iterable[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """The same groups with the rewards of each one in another order, seeded by its row id.

    Flat groups stay flat and known positives stay known, so that all but the LLM's opinion is as it was.
    """
    return [{**group, "rewards": _shuffled(group, seed)} for group in groups]


def _shuffled(group: dict[str, Any], seed: int) -> list[float] | None:
    rewards: list[float] | None = group["rewards"]
    if rewards is None:
        return None
    return random.Random(row_seed(seed, "control", group["row_id"])).sample(rewards, len(rewards))
