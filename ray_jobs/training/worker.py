"""Starts the Ray Train workers, and what each of them runs: the training loop, whose metrics the first one keeps."""

from __future__ import annotations

from pathlib import Path

import ray.train
from ray.train import FailureConfig, RunConfig

from embedder.training.job import MetricsReader, StepMetrics, TrainingJob, append_metrics, live_note
from embedder.training.trackers import open_trackers, values_of
from ray_jobs.cluster.trainer import fit_with_progress, make_trainer


def run_workers(job: TrainingJob, storage: Path, name: str) -> None:
    """Run the workers to the end of the training, showing progress from the metrics that the first of them writes."""
    settings = job.config
    least, most = settings.min_workers, settings.num_workers
    run = RunConfig(
        name=name, storage_path=str(storage), failure_config=FailureConfig(max_failures=settings.max_failures)
    )
    trainer = make_trainer(
        train_worker, job, run, workers=most if least is None else (least, most), gpus=settings.gpus_per_worker
    )
    reader = MetricsReader(job.metrics, StepMetrics)
    fit_with_progress(
        trainer, "train: steps", settings.steps, reader, lambda: live_note(reader.steps(), settings.batch_size)
    )


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
