"""The teacher `reranker`: trains a cross-encoder on the LLM's rewards, and lets it reward groups.

reads   rows of records.LABELLED that the LLM made
writes  reranker/RUN/      as training/RUN of `train`: rows, checkpoints, metrics.jsonl (a line a step)
        reranker/model/    the cross-encoder as a Hugging Face folder, with lineage.json

RUN is named by a hash of data and settings: a second call resumes from the last checkpoint, and a finished run is not
trained again. No job of its own: `label` calls it, and it trains as `train` does. Also what runs inside its actors.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pyarrow as pa
import torch

from embedder.config.run import EncoderConfig, RunConfig
from embedder.config.tasks import TaskSpec
from embedder.config.train import NEUTRAL, ValidationConfig
from embedder.data.ledger import Ledger
from embedder.data.records import unrewarded
from embedder.errors import DataError, UnfinishedError
from embedder.hashing import content_id
from embedder.models.device import device_kind, resolve_device
from embedder.models.fingerprint import model_fingerprint
from embedder.models.locate import locate_model
from embedder.models.memory import BatchLimit
from embedder.run.lineage import install_model, read_lineage
from embedder.storage.fetched import whole_copy
from embedder.storage.object_store import AnyPath, reference_of
from embedder.training.cross_encoder import CrossEncoder, bare_query, load_cross_encoder
from embedder.training.job import FORMAT, TrainingJob
from embedder.training.row_files import write_training_rows
from embedder.training.split import split_groups
from ray_jobs.cluster.blocks import Block, actor_pool, cut_blocks, run_blocks
from ray_jobs.labelling.actors import GroupBlocks
from ray_jobs.labelling.block_plan import Survey, survey
from ray_jobs.labelling.provenance import note_device
from ray_jobs.training.worker import run_workers

BLOCK_ROWS = 128
"""Groups that are scored and committed together; a cross-encoder needs seconds for them."""
MAX_FAILURES = 3
"""Worker failures after which the training gives up, where the run file has no `train` section that says."""
MEASURED_GROUPS = 1000
"""Held-out groups a task on which the agreement is measured: enough for a standard error of about a percent."""
TRAINED_ON = [
    *("task", "dataset", "query_id", "query", "answers", "candidate_ids", "candidate_texts", "relevance"),
    *("row_id", "rewards", "reward", "label_fingerprint", "error"),
]
"""Columns of the LLM's rows that the reranker needs; the others may be far larger."""


def train_reranker(config: RunConfig, labelled: pa.Table) -> AnyPath:
    """Train the cross-encoder on the LLM's rewards, or find it trained; returns its folder.

    `labelled` holds rows of records.LABELLED; those of tasks without a reward are passed over.

    Raises:
        DataError: no group has rewards that differ.
    """
    rows = [row for row in labelled.select(TRAINED_ON).to_pylist() if row["reward"] != "none"]
    name = run_name(config, rows)
    model = config.paths.reranker
    # Whole, because a kill may have left the lineage alone.
    with suppress(UnfinishedError):
        if (read_lineage(whole_copy(model)) or {}).get("reranker_run") == name:
            return model
    job, counts = prepare_training(config, rows, model.with_name(name))
    if not job.has_ended:
        run_workers(job, "reranker")
    ended = json.loads(job.outcome.read_text(encoding="utf-8"))
    outcome = ended["validation"]
    history = outcome["history"] if outcome else []
    lineage = {
        "reranker_run": name,
        "base_encoder": config.needed_reranker.model,
        "llm": config.llm and config.llm.model,
        **counts,
        "reward_temperatures": ended["reward_temperatures"],
        "agreement": [history[0]["tasks"], history[outcome["best"]]["tasks"]] if outcome else [{}, {}],
    }
    install_model(job.exported, model, lineage)
    return model


def prepare_training(
    config: RunConfig, rows: Sequence[dict[str, Any]], folder: AnyPath
) -> tuple[TrainingJob, dict[str, Counter[str]]]:
    """Write the two splits of the LLM's rows, whatever their order, into the folder of a new training job.

    Also returns the `groups` trained on and those `held_out`, by task, and those `left_out`, by task and reason.

    Groups without rewards and those whose rewards are all equal teach no order: they are left out and counted.

    Raises:
        DataError: no group has rewards that differ.
    """
    settings = config.needed_reranker
    validation = ValidationConfig(share=settings.validation_share, every=settings.steps)
    graded = {
        name: spec.model_copy(update={"loss": "graded", "skip_flat": True}) for name, spec in config.tasks.items()
    }
    kept, apart = split_groups(sorted(rows, key=lambda row: str(row["row_id"])), validation)
    job = TrainingJob(
        EncoderConfig(
            model=settings.model,
            max_tokens=settings.max_tokens,
            batch_tokens=config.encoder.batch_tokens,
            pooling="cls",
        ),
        graded,
        settings.training(validation, config.train.max_failures if config.train else MAX_FAILURES),
        folder,
        network="cross_encoder",
    )
    training, left_out = write_training_rows(kept, graded, job.rows, {})
    held_out, also_left_out = write_training_rows(_first_of_each_task(apart), graded, job.held_out, {})
    if not training:
        raise DataError(
            f"reranker: none of {len(rows):,} labelled groups can be trained on ({dict(left_out)}); let the LLM label "
            "more groups (reranker.llm_groups)"
        )
    if not held_out:
        job = replace(job, config=job.config.model_copy(update={"validation": None}))
    return job, {"groups": training, "held_out": held_out, "left_out": left_out + also_left_out}


def _first_of_each_task(groups: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The groups without those of a task beyond its first MEASURED_GROUPS."""
    by_task: dict[str, list[dict[str, Any]]] = {}
    for group in groups:
        by_task.setdefault(group["task"], []).append(group)
    return [group for task in sorted(by_task) for group in by_task[task][:MEASURED_GROUPS]]


def run_name(config: RunConfig, rows: list[dict[str, Any]]) -> str:
    """Identity of a reranker: where it starts, the settings that change the result, and the rewards, in any order."""
    start = config.needed_reranker
    settings = start.model_dump(exclude=NEUTRAL | {"model", "llm_groups"})
    # With the cut, because another end of a long query is another text to learn from.
    read = {task: [spec.reward_temperature, spec.query_cut] for task, spec in config.tasks.items()}
    rewards = sorted((row["row_id"], row["label_fingerprint"], row["rewards"] or []) for row in rows)
    return content_id(FORMAT, model_fingerprint(locate_model(start.model)), settings, read, rewards)[:16]


def reranker_lines(model: AnyPath) -> list[str]:
    """What the folder of a trained reranker says of its data and its agreement with the LLM, a line a task."""
    lineage = read_lineage(model) or {}
    before, after = lineage["agreement"]
    lines = []
    for task, count in lineage["groups"].items():
        line = f"reranker, {task}: trained on {count:,} groups"
        if task in after:
            line += (
                f"; in {lineage['held_out'][task]:,} held-out groups it orders {before[task]:.1%} -> {after[task]:.1%} "
                "of a group's pairs as the LLM's rewards do (equal rewards left out)"
            )
        lines.append(line)
    return lines + [f"reranker: left out {count:,} groups of {reason}" for reason, count in lineage["left_out"].items()]


def taught_tasks(tasks: Mapping[str, TaskSpec], model: AnyPath) -> dict[str, TaskSpec]:
    """The tasks with the reward temperatures of a reranker's training, where the run file gives none."""
    taught = (read_lineage(model) or {}).get("reward_temperatures", {})
    return {
        name: spec.model_copy(update={"reward_temperature": spec.reward_temperature or taught.get(name)})
        for name, spec in tasks.items()
    }


def label_groups(
    encoder: CrossEncoder, groups: Sequence[dict[str, Any]], tasks: Mapping[str, TaskSpec], fingerprint: str
) -> list[dict[str, Any]]:
    """The groups as rows of records.LABELLED, each candidate's reward being its score times the task's temperature.

    The score estimates reward / temperature up to a constant a group, so this puts it on the scale of the rewards it
    was taught with, and softmax(reward / temperature) is what the cross-encoder predicts. A task without a temperature
    was never taught, and keeps the scores.
    """
    pairs = [
        (bare_query(tasks[group["task"]], group["query"]), text)
        for group in groups
        for text in group["candidate_texts"]
    ]
    scores = iter(encoder.score(pairs))
    labelled = []
    for group in groups:
        alpha = tasks[group["task"]].reward_temperature or 1.0
        rewards = [next(scores) * alpha for _ in group["candidate_texts"]]
        error = None if rewards else "no candidates"
        if not all(math.isfinite(reward) for reward in rewards):
            error = "a score of the reranker is not finite"
        row = unrewarded(group, "reranker", fingerprint)
        labelled.append({**row, "error": error, "rewards": None if error else rewards})
    return labelled


class ScoreBlocks(GroupBlocks):
    """Rewards blocks of groups with the cross-encoder."""

    def __init__(self, config: RunConfig, ledger: Ledger, fingerprint: str, model: AnyPath) -> None:
        super().__init__(config, ledger, fingerprint)
        settings = config.needed_reranker
        device = resolve_device(settings.gpus_per_worker)
        self.encoder = load_cross_encoder(reference_of(model), settings.max_tokens, config.encoder.batch_tokens, device)
        self.tasks = taught_tasks(config.tasks, model)
        note_device(config.paths, device_kind(self.encoder.device, torch.float32))

    def limits(self) -> Sequence[BatchLimit]:
        return [self.encoder.memory]

    def label(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return label_groups(self.encoder, groups, self.tasks, self.fingerprint)

    def compute(self, block: Block) -> list[dict[str, Any]]:
        positions = [position for unit in block["units"] for position in unit]
        return [{**row, "reward": "reranker"} for row in self.label_rows(self.read_block(block), positions)]


def score_with_reranker(config: RunConfig, ledger: Ledger, fingerprint: str) -> Survey:
    """Let the trained reranker reward the groups that the ledger does not hold; returns what there was to do.

    The pool has `label.num_actors` actors, each with the GPU share of a training worker (`reranker.gpus_per_worker`).
    Groups of tasks without a reward are left to the caller.
    """
    work = survey(config, ledger, BLOCK_ROWS)
    actors = config.label.num_actors
    run_blocks(
        cut_blocks(work.blocks, actors),
        ScoreBlocks,
        (config, ledger, fingerprint, config.paths.reranker),
        actor_pool(actors, config.needed_reranker.gpus_per_worker),
        "label by reranker",
    )
    return work
