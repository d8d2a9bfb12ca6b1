"""Teach the encoder from the labelled groups.

    python -m ray_jobs.train --config configs/demo.yaml

reads   candidates/*.parquet, labelled/blocks/*.parquet   records.GROUP, records.LABELLED
writes  training/RUN/                                     rows, checkpoints, metrics.jsonl (a line a step)
        model/                                            the trained encoder as a Hugging Face folder

RUN is named by a hash of data and settings: running the command again resumes from the last checkpoint, and a
finished run only writes its model again. Ray Train starts the workers, DeepSpeed trains.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
from ray.train import CheckpointConfig, FailureConfig, Result, ScalingConfig
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchConfig, TorchTrainer

from embedder.config import RunConfig
from embedder.cost import Work, forward_flops, tokens_of
from embedder.errors import ConfigError, DataError
from embedder.fingerprint import encoder_fingerprint
from embedder.locate import count_parameters, locate_model
from embedder.progress import progress
from embedder.records import content_id, group_id, parquet_files, write_json
from embedder.reports import StageReport, console
from embedder.train_config import TrainConfig
from embedder.training.data import training_row, write_training_rows
from embedder.training.loop import EXPORT, TrainingJob
from embedder.training.plan import BatchPlan
from ray_jobs.session import Job, main
from ray_jobs.tables import candidate_groups, labelled_ledger, positive_ids
from ray_jobs.worker import WorkerJob, read_metrics, train_worker

POLL_S = 1.0
"""How often the driver looks for new steps."""


def section(config: RunConfig) -> TrainConfig:
    """The run file's `train` section, which this job cannot do without."""
    if config.train is None:
        raise ConfigError("the run file has no `train` section; give it train.steps")
    return config.train


def labelled_groups(config: RunConfig) -> pa.Table:
    """The labels of the current candidates.

    Raises:
        DataError: `label` has not run, or not for all of these candidates.
    """
    ledger = labelled_ledger(config)
    if not parquet_files(ledger.folder):
        raise DataError(f"{ledger.folder}: no labels; run `python -m ray_jobs.label` first")
    return ledger.read([group_id(group) for group in candidate_groups(config).to_pylist()])


def check(config: RunConfig) -> Work:
    """Labels exist for every candidate group, the encoder's folder has weights, and the plan has a task to train."""
    settings = section(config)
    groups = labelled_groups(config).to_pylist()
    parameters = count_parameters(locate_model(config.encoder.model))
    rows = [(group["task"], training_row(group, config.tasks[group["task"]])) for group in groups]
    sizes = Counter(task for task, row in rows if not isinstance(row, str))
    plan = BatchPlan.of(sizes, settings)
    characters = sum(len(row["query"]) + sum(map(len, row["candidates"])) for _, row in rows if isinstance(row, dict))
    tokens = settings.steps * settings.batch_size * tokens_of(characters) / max(1, sum(sizes.values()))
    lines = [
        f"{task}: {sizes[task]:,} groups, trained {plan.rows_of(task) / sizes[task]:.1f} times, "
        f"loss {config.tasks[task].loss}"
        for task in plan.tasks
    ]
    candidates = max((len(row["candidates"]) for _, row in rows if isinstance(row, dict)), default=0)
    lines.append(
        f"batch of {settings.batch_size} queries on {settings.num_workers} workers; up to "
        f"{settings.batch_size * candidates - 1:,} negatives a query"
    )
    return Work("train", lines, 3 * forward_flops(parameters, tokens))


def run(config: RunConfig) -> StageReport:
    """Train or resume; the summary tells the rows left out and each task's loss at both ends."""
    settings = section(config)
    groups = labelled_groups(config)
    name = run_name(config, groups)
    folder = config.paths.training / name
    sizes, left_out = write_training_rows(groups.to_pylist(), config.tasks, folder / "rows.arrow", positive_ids(config))
    job = TrainingJob(config.encoder, config.tasks, settings, folder / "rows.arrow")
    result = _fit(WorkerJob(job, folder / "metrics.jsonl"), config.paths.training, name)
    if result.checkpoint is None:
        raise DataError(f"training {name} ended without a checkpoint; see {folder}")
    with result.checkpoint.as_directory() as checkpoint:
        _install(Path(checkpoint) / EXPORT, config.paths.model, config, name)
    return _report(folder / "metrics.jsonl", sizes, left_out)


def run_name(config: RunConfig, groups: pa.Table) -> str:
    """Identity of a training run: data, encoder, tasks, and the settings that change the result."""
    settings = section(config).model_dump(exclude={"save_every", "max_failures", "num_workers", "gpus_per_worker"})
    tasks = {name: spec.model_dump() for name, spec in config.tasks.items()}
    labels = [groups["row_id"].to_pylist(), groups["label_fingerprint"].to_pylist()]
    return content_id(encoder_fingerprint(config.encoder), settings, tasks, labels)[:16]


def _fit(job: WorkerJob, storage: Path, name: str) -> Result:
    """Run the workers, showing progress from the metrics that rank 0 writes."""
    settings = job.training.config
    resources = {"GPU": settings.gpus_per_worker, "CPU": 1} if settings.gpus_per_worker else {"CPU": 1}
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if settings.gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=settings.num_workers, use_gpu=bool(settings.gpus_per_worker), resources_per_worker=resources
        ),
        run_config=RayRunConfig(
            name=name,
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    finished = threading.Event()
    with progress("train: steps", settings.steps, console()) as counter:

        def watch() -> None:
            while not finished.wait(POLL_S):
                steps = read_metrics(job.metrics)
                counter.advance((steps[-1].step + 1 if steps else 0) - counter.count)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            return trainer.fit()
        finally:
            finished.set()
            watcher.join()


def _install(exported: Path, model: Path, config: RunConfig, name: str) -> None:
    """Put the exported encoder in place of `paths.model`, with a note of where it comes from."""
    staged = model.with_name(f".{model.name}.{uuid4().hex}")
    shutil.copytree(exported, staged)
    lineage: dict[str, Any] = {
        "training_run": name,
        "base_encoder": config.encoder.model,
        "llm": config.llm and config.llm.model,
    }
    write_json(lineage, staged / "lineage.json")
    shutil.rmtree(model, ignore_errors=True)
    os.replace(staged, model)


def _report(metrics: Path, sizes: Counter[str], left_out: Counter[str]) -> StageReport:
    steps = read_metrics(metrics)
    report = StageReport("train", len(steps), "steps", details={"rows": dict(sizes), "left_out": dict(left_out)})
    for task in sorted(sizes):
        mine = [step for step in steps if step.task == task]
        if mine:
            edge = max(1, len(mine) // 5)
            first = sum(step.loss for step in mine[:edge]) / edge
            last = sum(step.loss for step in mine[-edge:]) / edge
            report.lines.append(
                f"{task}: {sizes[task]:,} rows, {len(mine):,} steps, loss {first:.4f} -> {last:.4f} "
                f"(first and last fifth), pace {mine[-1].pace:.2f}"
            )
    report.lines += [f"left out {count:,} groups of {reason}" for reason, count in sorted(left_out.items())]
    return report


JOB = Job("train", __doc__, check, run)

if __name__ == "__main__":
    main(JOB)
