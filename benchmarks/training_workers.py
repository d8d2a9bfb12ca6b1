"""Trainings in processes of their own, as many as there are workers."""

from __future__ import annotations

import json
import os
import resource

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from embedder.storage.json_file import write_json
from embedder.training.job import MetricsReader, StepMetrics, TrainingJob, append_metrics
from embedder.training.loop import Trainer

PEAK = "peak.json"
KIB = 1024


def _work(rank: int, job: TrainingJob, threads: int) -> None:
    torch.set_num_threads(threads)
    os.environ["LOCAL_RANK"] = str(rank)
    meeting = f"file://{job.folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=job.config.num_workers)
    trainer = Trainer(job)
    while not trainer.finished:
        metrics: StepMetrics = trainer.step()
        if rank == 0:
            append_metrics(job.metrics, metrics)
    if rank == 0:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB
        write_json(peak, job.folder / PEAK)
    dist.destroy_process_group()


def steps_on_workers(job: TrainingJob, threads: int) -> list[float]:
    """Seconds of every step."""
    spawn(_work, args=(job, threads), nprocs=job.config.num_workers)
    return [step.seconds for step in MetricsReader(job.metrics).steps()]


def peak_memory(job: TrainingJob, threads: int) -> int:
    """Greatest resident memory of the first worker, in bytes."""
    steps_on_workers(job, threads)
    return int(json.loads((job.folder / PEAK).read_text(encoding="utf-8")))
