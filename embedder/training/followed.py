"""A training whose steps are kept in its folder and told to its trackers: what the first worker does."""

from __future__ import annotations

import json
from collections.abc import Callable

from embedder.training.job import MetricsWriter, StepMetrics, TrainingJob
from embedder.training.loop import train
from embedder.training.trackers import open_trackers, values_at_end, values_of


def train_followed(job: TrainingJob, show: Callable[[StepMetrics], None] = lambda metrics: None) -> None:
    """Train to the end, from the last checkpoint if there is one; `show` too is called after each step."""
    writer = MetricsWriter(job.metrics)
    with open_trackers(job) as trackers:

        def report(metrics: StepMetrics) -> None:
            writer.add(metrics)
            for tracker in trackers:
                tracker.log(values_of(metrics), metrics.step + 1)
            show(metrics)

        def keep() -> None:
            writer.put()
            for tracker in trackers:
                tracker.keep()

        try:
            train(job, report, keep)
        finally:
            # Also of a training that ends by an error: its last steps tell why.
            writer.put()
        outcome = json.loads(job.outcome.read_text(encoding="utf-8"))
        if values := values_at_end(outcome):
            for tracker in trackers:
                tracker.log(values, outcome["steps"])
