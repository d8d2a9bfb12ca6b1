"""The teacher `reranker`: trains a cross-encoder on the LLM's rewards, and lets it reward groups.

reads   rows of records.LABELLED that the LLM made
writes  reranker/RUN/      rows, checkpoints, metrics.jsonl (a line a step)
        reranker/model/    the cross-encoder as a Hugging Face folder, with lineage.json

RUN is named by a hash of data and settings: a second call resumes from the last checkpoint, and a finished run is not
trained again. No job of its own: `label` calls it. Also what runs inside its workers and actors.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.train
from ray.train import CheckpointConfig, FailureConfig, Result
from ray.train import RunConfig as RayRunConfig

from embedder.config.run import RunConfig
from embedder.config.train import NEUTRAL
from embedder.data.ledger import Ledger
from embedder.data.row_ids import RowIds
from embedder.errors import DataError
from embedder.hashing import content_id
from embedder.models.locate import locate_model, model_fingerprint
from embedder.run.lineage import install_model, read_lineage
from embedder.training.cross_encoder import load_cross_encoder
from embedder.training.job import MetricsReader, append_metrics
from embedder.training.reranker_loop import (
    EXPORT,
    MEASURED_GROUPS,
    RerankerJob,
    RerankerStep,
    fit_cross_encoder,
    label_groups,
    read_agreement,
    write_reranker_rows,
)
from ray_jobs.cluster.blocks import Block, BlockActor, actor_pool, cut_blocks, run_blocks
from ray_jobs.cluster.trainer import fit_with_progress, make_trainer
from ray_jobs.labelling.block_plan import Planner, survey

BLOCK_ROWS = 128
"""Groups that are scored and committed together; a cross-encoder needs seconds for them."""
MAX_FAILURES = 3
"""Worker failures after which the training gives up, where the run file has no `train` section that says."""
TRAINED_ON = [
    *("task", "dataset", "query_id", "query", "candidate_ids", "candidate_texts", "relevance"),
    *("row_id", "rewards", "reward", "label_fingerprint", "error"),
]
"""Columns of the LLM's rows that the reranker needs; the others may be far larger."""


def train_reranker(config: RunConfig, labelled: pa.Table) -> Path:
    """Train the cross-encoder on the LLM's rewards, or find it trained; returns its folder.

    `labelled` holds rows of records.LABELLED; those of tasks without a reward are passed over.

    Raises:
        DataError: no group has rewards that differ.
    """
    settings = config.needed_reranker
    rows = [row for row in labelled.select(TRAINED_ON).to_pylist() if row["reward"] != "none"]
    name = run_name(config, rows)
    storage = config.paths.mounted / "reranker"
    model = storage / "model"
    if (read_lineage(model) or {}).get("reranker_run") == name:
        return model
    folder = storage / name
    temperatures = {task: spec.reward_temperature for task, spec in config.tasks.items()}
    job = RerankerJob(
        settings, temperatures, config.encoder.batch_tokens, folder / "rows.arrow", folder / "validation.arrow"
    )
    counts = write_reranker_rows(rows, config.tasks, job)
    if not counts.training:
        raise DataError(
            f"reranker: none of {len(rows):,} labelled groups can be trained on ({dict(counts.left_out)}); let the LLM "
            "label more groups (reranker.llm_groups)"
        )
    result = _fit(config, WorkerJob(job, folder / "metrics.jsonl"), storage, name)
    if result.checkpoint is None:
        raise DataError(f"training of the reranker {name} ended without a checkpoint; see {folder}")
    with result.checkpoint.as_directory() as checkpoint:
        exported = Path(checkpoint) / EXPORT
        lineage = {
            "reranker_run": name,
            "base_encoder": config.needed_reranker.model,
            "llm": config.llm and config.llm.model,
            "groups": counts.training,
            "held_out": counts.validation,
            "left_out": counts.left_out,
            "agreement": json.loads((exported / "agreement.json").read_text(encoding="utf-8")),
        }
        install_model(exported, model, lineage)
    return model


def run_name(config: RunConfig, rows: list[dict[str, Any]]) -> str:
    """Identity of a reranker: where it starts, the settings that change the result, and the rewards, in any order."""
    start = config.needed_reranker
    settings = start.model_dump(exclude=NEUTRAL | {"model", "llm_groups"})
    temperatures = {task: spec.reward_temperature for task, spec in config.tasks.items()}
    rewards = sorted((row["row_id"], row["label_fingerprint"], row["rewards"] or []) for row in rows)
    return content_id(model_fingerprint(locate_model(start.model)), settings, temperatures, rewards)[:16]


def reranker_lines(model: Path) -> list[str]:
    """What the folder of a trained reranker says of its data and its agreement with the LLM, a line a task."""
    lineage = read_lineage(model) or {}
    before, after = (read_agreement(lineage["agreement"][when]) for when in ("before", "after"))
    lines = []
    for task, count in lineage["groups"].items():
        line = f"reranker, {task}: trained on {count:,} groups"
        if task in after and after[task].share is not None:
            measured = min(lineage["held_out"][task], MEASURED_GROUPS)
            line += (
                f"; in {measured:,} held-out groups it orders {before[task].share:.1%} -> {after[task].share:.1%} of "
                f"{after[task].pairs:,} pairs as the LLM's rewards do (equal rewards left out)"
            )
        lines.append(line)
    return lines + [f"reranker: left out {count:,} groups of {reason}" for reason, count in lineage["left_out"].items()]


@dataclass(frozen=True)
class WorkerJob:
    """The training job and where rank 0 keeps the metrics of every step."""

    training: RerankerJob
    metrics: Path


def _fit(config: RunConfig, job: WorkerJob, storage: Path, name: str) -> Result:
    settings = config.needed_reranker
    failures = config.train.max_failures if config.train else MAX_FAILURES
    run = RayRunConfig(
        name=name,
        storage_path=str(storage),
        failure_config=FailureConfig(max_failures=failures),
        checkpoint_config=CheckpointConfig(num_to_keep=2),
    )
    trainer = make_trainer(train_worker, job, run, workers=settings.num_workers, gpus=settings.gpus_per_worker)
    reader = MetricsReader(job.metrics, RerankerStep)
    return fit_with_progress(trainer, "reranker: steps", settings.steps, reader, lambda: "")


def train_worker(settings: dict[str, WorkerJob]) -> None:
    """What each Ray Train worker runs: resume if there is a checkpoint, train, hand rank 0's checkpoints to Ray.

    `ray.train.report` is a barrier: it is called only where a checkpoint is due, which is so on all workers at once.
    """
    job = settings["job"]
    is_first = ray.train.get_context().get_world_rank() == 0

    def report(step: RerankerStep, write_checkpoint: Callable[[Path], None] | None) -> None:
        if is_first:
            append_metrics(job.metrics, step)
        if write_checkpoint is None:
            return
        if not is_first:
            ray.train.report(asdict(step))
            return
        folder = Path(tempfile.mkdtemp(prefix="reranker-"))
        try:
            write_checkpoint(folder)
            ray.train.report(asdict(step), checkpoint=ray.train.Checkpoint.from_directory(folder))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        fit_cross_encoder(job.training, None, report)
        return
    with checkpoint.as_directory() as folder:
        if not (Path(folder) / EXPORT).is_dir():
            fit_cross_encoder(job.training, Path(folder), report)


class ScoreBlocks(BlockActor):
    """Rewards blocks of groups with the cross-encoder."""

    result = "labels of the reranker"

    def __init__(self, model: Path, config: RunConfig, ledger: Ledger, fingerprint: str) -> None:
        self.encoder = load_cross_encoder(str(model), config.needed_reranker.max_tokens, config.encoder.batch_tokens)
        self.temperatures = {task: spec.reward_temperature for task, spec in config.tasks.items()}
        self.config, self.ledger, self.fingerprint = config, ledger, fingerprint
        self.planner = Planner(config, None)

    def row_ids(self, block: Block) -> list[str]:
        return self.planner.read_block(block).ids_of(block["units"])

    def compute(self, block: Block) -> list[dict[str, Any]]:
        planned = self.planner.read_block(block)
        rows = planned.rows.labelled(
            planned.positions(block["units"]),
            lambda groups: label_groups(self.encoder, groups, self.temperatures, self.fingerprint),
            self.config.tasks,
            self.fingerprint,
        )
        return [{**row, "reward": "reranker"} for row in rows]


def score_with_reranker(config: RunConfig, ledger: Ledger, fingerprint: str) -> RowIds:
    """Let the trained reranker reward the groups that the ledger does not hold; returns the ids of all groups.

    The pool has `label.num_actors` actors, each with the GPU share of a training worker (`reranker.gpus_per_worker`).
    Groups of tasks without a reward are left to the caller.
    """
    work = survey(config, ledger, BLOCK_ROWS)
    actors = config.label.num_actors
    run_blocks(
        cut_blocks(work.blocks, actors),
        ScoreBlocks,
        (config.paths.mounted / "reranker" / "model", config, ledger, fingerprint),
        actor_pool(actors, config.needed_reranker.gpus_per_worker),
        "label by reranker",
    )
    return work.expected
