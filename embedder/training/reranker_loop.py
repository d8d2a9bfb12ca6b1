"""The reranker as teacher: a cross-encoder learns the LLM's rewards, then rewards groups in its place.

After `run_ranker.py` of the reference, whose released qa labels came from such a model. Knows torch.distributed, no
Ray. B groups of this worker, M candidates of the largest group.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, parameters_to_vector, vector_to_parameters

from embedder.config.label import RerankerConfig
from embedder.config.tasks import TaskSpec
from embedder.data.records import LABELLED, group_id
from embedder.hashing import row_seed
from embedder.models.encoder import length_batches
from embedder.storage.json_file import write_json
from embedder.training.batch_plan import BatchPart, BatchPlan, TaskMix, share_of_batch
from embedder.training.cross_encoder import CrossEncoder, PairRow, export_cross_encoder, load_cross_encoder
from embedder.training.distributed import mean_over_workers, rank, world_size
from embedder.training.schedule import linear_rate
from embedder.training.training_rows import Batch, TrainingRows, write_training_rows

EXPORT = "model"
"""Folder of the exported cross-encoder inside the last checkpoint."""
WEIGHT_DECAY = 0.01
GRADIENT_CLIP = 1.0
MEASURED_GROUPS = 1000
"""Held-out groups a task on which the agreement is measured: enough for a standard error of about a percent."""
MEASURED_TOGETHER = 64

WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"


class Agreement(NamedTuple):
    """How many pairs of candidates with different rewards the scores order as the rewards do."""

    right: float
    """Pairs of equal score count half."""
    pairs: int

    @property
    def share(self) -> float | None:
        """0.5 is chance, 1 is best; None without pairs."""
        return self.right / self.pairs if self.pairs else None


@dataclass(frozen=True)
class RerankerJob:
    """All a worker needs; every worker gets the same."""

    config: RerankerConfig
    temperatures: dict[str, float]
    """By task: of the softmax over rewards (alpha)."""
    batch_tokens: int
    """Padded tokens that are in memory at once."""
    training: Path
    """The Arrow file of `write_reranker_rows`, as `validation`."""
    validation: Path


@dataclass(frozen=True)
class RerankerStep:
    """What one step reports, the same on every worker."""

    step: int
    task: str
    loss: float
    """Of the global batch."""
    learning_rate: float
    seconds: float


Report = Callable[[RerankerStep, Callable[[Path], None] | None], None]
"""Called after each step; with a function that writes a checkpoint into a folder where one is due. The checkpoint is
the same on every worker: one of them writes it."""


class RowCounts(NamedTuple):
    """Groups by task; `left_out` by task and reason."""

    training: Counter[str]
    validation: Counter[str]
    left_out: Counter[str]


def is_held_out(row_id: str, share: float) -> bool:
    """Whether a group belongs to the validation split: by hash of its id, so that more groups move none of them."""
    return row_seed(0, "validation", row_id) / 2**63 < share


def write_reranker_rows(
    labelled: Iterable[dict[str, Any]], tasks: Mapping[str, TaskSpec], job: RerankerJob
) -> RowCounts:
    """Write the two splits of the labelled groups, whatever their order, to the files of the job.

    Groups without rewards and those whose rewards are all equal teach no order: they are left out and counted.
    """
    graded = {name: spec.model_copy(update={"loss": "graded", "skip_flat": True}) for name, spec in tasks.items()}
    splits: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for row in sorted(labelled, key=lambda row: str(row["row_id"])):
        splits[is_held_out(row["row_id"], job.config.validation_share)].append(row)
    training, left_out = write_training_rows(splits[False], graded, job.training, {})
    validation, also_left_out = write_training_rows(splits[True], graded, job.validation, {})
    return RowCounts(training, validation, left_out + also_left_out)


def listwise_cross_entropy(score_BM: Tensor, reward_BM: Tensor, valid_BM: Tensor, temperature: float) -> Tensor:
    """Cross-entropy from softmax(reward / temperature) to softmax(score) within each group, shape (B,), in nats."""
    target_BM = torch.softmax((reward_BM / temperature).masked_fill(~valid_BM, -1e9), dim=-1)
    log_model_BM = torch.log_softmax(score_BM.masked_fill(~valid_BM, -1e9), dim=-1)
    return -(target_BM * log_model_BM).masked_fill(~valid_BM, 0.0).sum(1)


def ordered_alike(scores: Sequence[float], rewards: Sequence[float]) -> Agreement:
    """Agreement of one group; pairs of equal reward do not count."""
    first, second = np.triu_indices(len(rewards), k=1)
    wanted = np.sign(np.asarray(rewards)[first] - np.asarray(rewards)[second])
    found = np.sign(np.asarray(scores)[first] - np.asarray(scores)[second])
    counts = wanted != 0
    right = (wanted == found)[counts].sum() + 0.5 * (found == 0)[counts].sum()
    return Agreement(float(right), int(counts.sum()))


def measure_agreement(encoder: CrossEncoder, rows: TrainingRows) -> dict[str, Agreement]:
    """By task, over the first groups of each; the workers share the work and all get the result."""
    result = {}
    for task in sorted(rows.sizes):
        total = torch.zeros(2, dtype=torch.float64, device=encoder.device)
        mine = range(rank(), min(rows.sizes[task], MEASURED_GROUPS), world_size())
        for start in range(0, len(mine), MEASURED_TOGETHER):
            batch = rows.batch([BatchPart(task, list(mine[start : start + MEASURED_TOGETHER]))])
            groups = _pairs(batch)
            scores = iter(encoder.score([pair for group in groups for pair in group]))
            for group, reward_M in zip(groups, batch.reward_BM.tolist(), strict=True):
                total += torch.tensor(ordered_alike([next(scores) for _ in group], reward_M[: len(group)])).to(total)
        if world_size() > 1:
            dist.all_reduce(total)
        result[task] = Agreement(float(total[0]), int(total[1]))
    return result


def fit_cross_encoder(job: RerankerJob, resume_from: Path | None, report: Report) -> None:
    """Train to the last step, from a checkpoint if there is one; the last checkpoint holds the exported model.

    The process group must exist where there are several workers. The result does not depend on their number: the
    global batch of a step is a function of (data, seed, step), and the gradients are averaged.
    """
    config = job.config
    torch.manual_seed(config.seed)
    encoder = load_cross_encoder(config.model, config.max_tokens, job.batch_tokens)
    optimizer = _optimizer(encoder, config.learning_rate)
    rows, held_out = TrainingRows(job.training), TrainingRows(job.validation)
    plan = BatchPlan(rows.sizes, TaskMix(), batch_size=config.batch_size, steps=config.steps, seed=config.seed)
    if resume_from is None:
        start, before = 0, measure_agreement(encoder, held_out)
    else:
        start, before = _restore(encoder, optimizer, resume_from)
    for step in range(start, config.steps):
        began = time.monotonic()
        [part] = plan.batch(step)
        task = part.task
        rate = config.learning_rate * linear_rate(step, config.steps, config.warmup_share)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = _step(
            encoder, optimizer, rows.batch(share_of_batch([part], rank(), world_size())), job.temperatures[task]
        )
        after = measure_agreement(encoder, held_out) if step + 1 == config.steps else None
        due = after is not None or (step + 1) % config.save_every == 0
        writer = _checkpoint_writer(encoder, optimizer, step, before, after) if due else None
        report(RerankerStep(step, task, loss, rate, time.monotonic() - began), writer)


def _step(encoder: CrossEncoder, optimizer: torch.optim.Optimizer, batch: Batch, temperature: float) -> float:
    """One update; returns the loss of the global batch.

    A group's loss needs no other group, so each piece of at most `batch_tokens` gives its gradient and is forgotten.
    """
    optimizer.zero_grad()
    rows = [encoder.tokenize(group) for group in _pairs(batch)]
    total = torch.zeros((), device=encoder.device)
    for numbers in length_batches([sum(len(row.ids) for row in group) for group in rows], encoder.batch_tokens):
        reward_BM, valid_BM = batch.reward_BM[numbers].to(total.device), batch.valid_BM[numbers].to(total.device)
        pieces: list[PairRow] = [row for number in numbers for row in rows[number]]
        score_BM = torch.zeros_like(reward_BM).masked_scatter(valid_BM, encoder(pieces))
        loss = listwise_cross_entropy(score_BM, reward_BM, valid_BM, temperature).sum() / len(rows)
        loss.backward()
        total += loss.detach()
    if world_size() > 1:
        gradients = [weight.grad for weight in encoder.parameters() if weight.grad is not None]
        mean = parameters_to_vector(gradients)
        dist.all_reduce(mean)
        vector_to_parameters(mean / world_size(), gradients)
    clip_grad_norm_(encoder.parameters(), GRADIENT_CLIP)
    optimizer.step()
    return mean_over_workers(total)


def _pairs(batch: Batch) -> list[list[tuple[str, str]]]:
    """The (query, candidate) pairs of each group, without padding."""
    size = batch.valid_BM.shape[1]
    counts = batch.valid_BM.sum(1).tolist()
    return [
        [(query, text) for text in batch.candidates[i * size : i * size + count]]
        for i, (query, count) in enumerate(zip(batch.queries, counts, strict=True))
    ]


def _optimizer(encoder: CrossEncoder, learning_rate: float) -> torch.optim.Optimizer:
    """AdamW; weight decay spares biases and normalisation."""
    decayed = [weight for weight in encoder.parameters() if weight.ndim > 1]
    spared = [weight for weight in encoder.parameters() if weight.ndim <= 1]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": spared, "weight_decay": 0.0}], lr=learning_rate
    )


def _checkpoint_writer(
    encoder: CrossEncoder,
    optimizer: torch.optim.Optimizer,
    step: int,
    before: dict[str, Agreement],
    after: dict[str, Agreement] | None,
) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        save_model(encoder.network, str(folder / WEIGHTS))
        state = optimizer.state_dict()["state"]
        save_file({f"{i}.{name}": value for i, one in state.items() for name, value in one.items()}, folder / OPTIMIZER)
        write_json({"next_step": step + 1, "before": before}, folder / STATE)
        if after is not None:
            export_cross_encoder(encoder, folder / EXPORT)
            write_json({"before": before, "after": after}, folder / EXPORT / "agreement.json")

    return write


def _restore(encoder: CrossEncoder, optimizer: torch.optim.Optimizer, folder: Path) -> tuple[int, dict[str, Agreement]]:
    """Undo `_checkpoint_writer`; returns the step to go on with and the agreement before the first one."""
    load_model(encoder.network, folder / WEIGHTS)
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in load_file(folder / OPTIMIZER).items():
        number, name = key.split(".")
        moments.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    return int(state["next_step"]), read_agreement(state["before"])


def read_agreement(values: Mapping[str, Sequence[float]]) -> dict[str, Agreement]:
    """Agreement by task from its JSON form, [right, pairs]."""
    return {task: Agreement(right, int(pairs)) for task, (right, pairs) in values.items()}


def label_groups(
    encoder: CrossEncoder, groups: Sequence[dict[str, Any]], temperatures: Mapping[str, float], fingerprint: str
) -> list[dict[str, Any]]:
    """The groups as rows of records.LABELLED, each candidate's reward being its score times the task's temperature.

    The score estimates reward / temperature up to a constant a group, so this puts it on the scale of the rewards it
    was taught with, and softmax(reward / temperature) is what the cross-encoder predicts.
    """
    pairs = [(group["query"], text) for group in groups for text in group["candidate_texts"]]
    scores = iter(encoder.score(pairs))
    labelled = []
    for group in groups:
        rewards = [next(scores) * temperatures[group["task"]] for _ in group["candidate_texts"]]
        error = None if rewards else "no candidates"
        if not all(math.isfinite(reward) for reward in rewards):
            error = "a score of the reranker is not finite"
        made = {"row_id": group_id(group), "reward": "reranker", "label_fingerprint": fingerprint, "error": error}
        labelled.append({**dict.fromkeys(LABELLED.names), **group, **made, "rewards": None if error else rewards})
    return labelled
