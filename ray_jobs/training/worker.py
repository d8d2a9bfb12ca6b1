"""What each Ray Train worker runs: the training loop, of which the first worker keeps the metrics."""

from __future__ import annotations

import ray.train

from embedder.training.job import StepMetrics, TrainingJob, append_metrics
from embedder.training.trackers import open_trackers, values_of


def train_worker(settings: dict[str, TrainingJob]) -> None:
    """Train to the end, from the last checkpoint if there is one.

    Checkpoints are the loop's own, on storage that every worker sees. Ray 2.60 lists those it is handed in one file
    that it writes in place: a driver killed at that moment leaves a run that Ray refuses to start again.
    """
    from embedder.training.loop import train  # not above: the driver names this function and needs no DeepSpeed

    job = settings["job"]
    if ray.train.get_context().get_world_rank():
        train(job, lambda metrics: None)
        return
    with open_trackers(job) as trackers:

        def report(metrics: StepMetrics) -> None:
            append_metrics(job.metrics, metrics)
            for tracker in trackers:
                tracker.log(values_of(metrics), metrics.step + 1)

        train(job, report)
