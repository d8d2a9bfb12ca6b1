"""Training on the card: samples a second of the shipped settings, and of sentence-transformers' trainer."""

from __future__ import annotations

import shutil
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.gpu_bench import Bench, profiled, random_bert
from benchmarks.gpu_inputs import ROWS
from benchmarks.training_groups import batches_of, benchmark_tasks
from benchmarks.training_rivals import train_peer
from embedder.config.load import load_run
from embedder.storage.fetched import local_copy
from embedder.training.job import TrainingJob
from embedder.training.loop import Trainer

SHIPPED = Path(__file__).parents[1] / "configs" / "single-gpu.yaml"
COMPILED = "layers compiled"
WAYS: dict[str, dict[str, Any]] = {
    "as shipped": {},
    COMPILED: {"compile_layers": True},
    "float32": {"precision": "float32"},
    "ZeRO 3": {"zero_stage": 3},
}
"""What is changed of the shipped settings."""
STEPS, WARM = 7, 2
"""Steps of each way, and how many of them are not timed."""
LOADERS = 4
"""Processes that read and tokenise for sentence-transformers."""


def training(bench: Bench) -> None:
    """Steps of 64 queries with 8 candidates each, by our trainer in some ways and by the rival's."""
    # On a CPU the setting is refused.
    ways = [name for name in WAYS if name != COMPILED or bench.device.type == "cuda"]
    speeds = {name: ours(bench, name, WAYS[name]) for name in ways}
    best = max(speeds, key=lambda name: speeds[name])
    bench.figures.row(f"the fastest of ours: {best}", train_way=best, train_samples_s=speeds[best])
    ratio = speeds[best] / theirs(bench)
    bench.figures.row(
        f"it to sentence-transformers' trainer in bfloat16: {ratio:.2f}", train_vs_sentence_transformers=ratio
    )


def job_of(bench: Bench, name: str, changed: dict[str, Any]) -> TrainingJob:
    """A training of the shipped settings with some of them changed, its rows in place."""
    shipped = load_run(SHIPPED)
    kept = shipped.needed_train.model_dump() | {"validation": None, "guard": None, "temperature": 0.05}
    sizes = {"steps": STEPS, "batch_size": bench.size(64, 2), "gpus_per_worker": float(bench.device.type == "cuda")}
    config = type(shipped.needed_train).model_validate({**kept, **sizes, **changed})
    encoder = shipped.encoder.model_copy(update={"model": random_bert(bench).model})
    job = TrainingJob(encoder, benchmark_tasks(), config, bench.scratch / name.replace(" ", "-"))
    shutil.copytree(bench.inputs / ROWS, local_copy(job.rows))
    return job


def ours(bench: Bench, name: str, changed: dict[str, Any]) -> float:
    """Samples a second of our trainer."""
    trainer = Trainer(job_of(bench, name, changed))
    bench.gigabytes()
    times = [bench.seconds(trainer.step) for _ in range(STEPS - 1)]
    speed = trainer.job.config.batch_size / median(times[WARM:])
    bench.figures.row(
        f"{name}: {speed:,.0f} samples/s, {bench.gigabytes():.0f} GB, steps {[round(each, 3) for each in times]} s",
        **{f"{name.replace(' ', '_')}_samples_s": speed},
    )
    # To the last step, after which no thread prepares another.
    if changed:
        trainer.step()
    else:
        profiled(bench, "a training step", trainer.step)
    del trainer
    bench.forget()
    return speed


def theirs(bench: Bench) -> float:
    """Samples a second of sentence-transformers' trainer in bfloat16, with processes that tokenise ahead."""
    job = job_of(bench, "sentence-transformers", {"precision": "bfloat16"})
    times: list[float] = []
    loaders = bench.size(LOADERS, 0)
    train_peer(job, batches_of(job), lambda step, seconds: times.append(seconds), str(bench.device), loaders)
    speed = job.config.batch_size / median(times[WARM:])
    bench.figures.row(
        f"sentence-transformers' trainer in bfloat16: {speed:,.0f} samples/s, {bench.gigabytes():.0f} GB",
        sentence_transformers_samples_s=speed,
    )
    return speed
