"""Whether labels carry signal: shares of flat, saturated and decided groups, by task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from embedder.labelling.rewards import desired_rank


def reward_summary(groups: Iterable[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By task: groups, share flat (all rewards equal), saturated (desired output first without a candidate), errors,
    and the share in which a known positive has the highest reward, of the groups that know one and are not flat."""
    counts: dict[str, Counter[str]] = {}
    for group in groups:
        count = counts.setdefault(group["task"], Counter())
        count["groups"] += 1
        rewards = group["rewards"]
        if rewards is None:
            count["errors"] += group["error"] is not None
            count["unrewarded"] += group["error"] is None
            continue
        count["rewarded"] += 1
        count["flat"] += max(rewards) == min(rewards)
        count["saturated"] += group["reward"] == "rank" and desired_rank(group["base_scores"]) == 1
        best = max(rewards)
        if any(group["relevance"]) and best > min(rewards):
            count["known"] += 1
            count["agree"] += any(r == best and known for r, known in zip(rewards, group["relevance"], strict=True))
    return {task: _shares(count) for task, count in sorted(counts.items())}


def _shares(count: Counter[str]) -> dict[str, float]:
    rewarded = max(1, count["rewarded"])
    summary: dict[str, float] = {"groups": count["groups"], "rewarded": count["rewarded"], "errors": count["errors"]}
    if count["rewarded"]:
        summary["flat"] = count["flat"] / rewarded
        summary["saturated"] = count["saturated"] / rewarded
    if count["known"]:
        summary["positive_is_best"] = count["agree"] / count["known"]
    return summary
