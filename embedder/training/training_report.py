"""What a finished training tells in numbers: its curves, both ends of each task's loss, and the validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from embedder.config.train import TrainConfig
from embedder.training.job import StepMetrics

MOST_POINTS = 300
"""Of a curve; neighbouring steps are averaged above that."""
END_SHARE = 5
"""The first and the last of so many parts stand for both ends of a loss."""

Point = tuple[float, float]
"""Step, counted from 1, and value."""


def summarise(
    steps: Sequence[StepMetrics],
    sizes: Mapping[str, int],
    left_out: Mapping[str, int],
    outcome: Mapping[str, Any],
    config: TrainConfig,
) -> dict[str, Any]:
    """The training as plain numbers, which the report's page, picture and JSON show.

    Args:
        steps: Of `MetricsReader`.
        sizes: Rows trained on, by task.
        left_out: Groups left out, by task and reason.
        outcome: What the loop wrote at the end.
        config: The settings.
    """
    seconds = sum(step.seconds for step in steps)
    return {
        "steps": len(steps),
        "queries": len(steps) * config.batch_size,
        "seconds": seconds,
        "queries_per_s": len(steps) * config.batch_size / seconds if seconds else 0.0,
        "workers": sorted({step.workers for step in steps}),
        "tasks": {task: _task(task, size, steps) for task, size in sorted(sizes.items())},
        "validation": _validation(outcome, config),
        "left_out": dict(sorted(left_out.items())),
        "settings": config.model_dump(mode="json"),
    }


def _task(task: str, size: int, steps: Sequence[StepMetrics]) -> dict[str, Any]:
    mine = [step for step in steps if task in step.losses]
    losses = [step.losses[task] for step in mine]
    edge = max(1, len(losses) // END_SHARE)
    return {
        "rows": size,
        "steps": len(mine),
        "loss_first": mean(losses[:edge]) if losses else None,
        "loss_last": mean(losses[-edge:]) if losses else None,
        "pace_last": mine[-1].paces[task] if mine else None,
        "losses": thinned([(step.step + 1, step.losses[task]) for step in mine]),
        "paces": thinned([(step.step + 1, step.paces[task]) for step in mine]),
    }


def _validation(outcome: Mapping[str, Any], config: TrainConfig) -> dict[str, Any] | None:
    if config.validation is None:
        return None
    history, best = outcome["validation"]["history"], outcome["validation"]["best"]
    return {
        "cutoff": config.validation.cutoff,
        "history": history,
        "best": best,
        "stopped_early": outcome["steps"] < config.steps,
    }


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most so many points, each the mean of neighbours."""
    size = -(-len(points) // most) if points else 1
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(mean(step for step, _ in part), mean(value for _, value in part)) for part in parts]
