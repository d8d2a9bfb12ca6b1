"""How far the exported weights go from the base towards the trained ones: as far as harms no task. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

ROUNDING = 1e-9
"""Two measures of the same rankings, summed by other numbers of workers, differ by less."""


def between(
    base: Mapping[str, Tensor], trained: Mapping[str, Tensor], share: float, is_lora: bool
) -> dict[str, Tensor]:
    """Weights that have gone this share of the way from the base's to the trained ones; its ends are met exactly.

    `is_lora`: they are the factors of low-rank additions, and it is their product that goes so far.
    """
    if share == 0:
        return dict(base)
    made = {}
    for name, end in trained.items():
        start = base[name]
        # Of the two factors of an addition one begins with zeros: that one scales their product, the other stays.
        made[name] = end.clone() if is_lora and bool(start.any()) else torch.lerp(start, end, share)
    return made


def choose(measured: Sequence[Mapping[str, Any]], tolerance: float) -> Mapping[str, Any]:
    """The entry of the best mean among those in which no task is worse than in the first, which is the base's.

    An entry is {"share": of the way, "tasks": measure by task, "mean": over the tasks}; of equal means the smallest
    share is taken. `tolerance`: by how much a task may be worse.
    """
    base = measured[0]["tasks"]
    harmless = [
        entry
        for entry in measured
        if all(entry["tasks"][task] >= value - tolerance - ROUNDING for task, value in base.items())
    ]
    best = max(entry["mean"] for entry in harmless)
    return min(
        (entry for entry in harmless if entry["mean"] >= best - ROUNDING), key=lambda entry: float(entry["share"])
    )
