"""A sample of the labelling on this machine, which tells how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from operator import add
from typing import Any

import torch

from embedder.config.run import LlmConfig, RunConfig
from embedder.config.tasks import OWN_REWARDS
from embedder.labelling.label_report import write_report
from embedder.labelling.label_statistics import TaskStatistics, statistics_of
from embedder.labelling.label_trust import trust_lines
from embedder.labelling.labeller import RewardLabeller
from embedder.labelling.rewards import task_rewards
from embedder.labelling.units import unit_tokens
from embedder.models.open_llm import open_llm
from ray_jobs.labelling.block_plan import Survey, read_row_group
from ray_jobs.labelling.provenance import label_pools

SAMPLE = "sample"
"""Folder below the reports for those of a sample."""


def rehearse_labelling(config: RunConfig, llm: LlmConfig, work: Survey, count: int | None = None) -> list[str]:
    """Label a few groups of each task that has work ahead; lines on what that took, and on what the rest will take.

    The rest takes as much more than the sample as it has more estimated tokens, so that longer texts, and passages that
    groups of a unit share, count. With `count` so many groups of a task are labelled, once more with another seed, and
    a report tells whether the rewards can be trusted.
    """
    settings = config.label
    ahead = {task: rest for task, rest in work.tasks.items() if rest.pairs}
    if not ahead:
        return ["nothing is left for the LLM"]
    there = torch.cuda.device_count() if llm.endpoint is None else 0
    if 0 < there < settings.gpus_per_actor:
        return [f"nothing is tried here: label.gpus_per_actor is {settings.gpus_per_actor:g}, and GPUs here: {there}"]
    # Where this machine has no GPU, the LLM is tried on its CPU, and the last line says so.
    gpus = settings.gpus_per_actor if there else 0
    lm = open_llm(llm, config.paths.cache, gpus)
    labeller = RewardLabeller(lm, llm, settings, config.tasks, *label_pools(config))
    lines: list[str] = []
    rows: list[dict[str, Any]] = []
    whole = Spent()
    for task, groups in sorted(_samples(config, work, count or settings.dry_run_groups).items()):
        if llm.endpoint is None:
            # The first call of a kind is slow: memory is fetched, kernels are chosen.
            labeller.label(groups[:1], "rehearsal")
        before = Spent.of(labeller)
        rows += labeller.label(groups, "rehearsal")
        spent = Spent.of(labeller) - before
        if spent.pairs:
            whole += spent * (ahead[task].tokens / unit_tokens(groups, config.tasks[task], settings.num_rivals, llm))
            lines.append(
                f"{task}: {spent.pairs:.0f} pairs in {spent.seconds:.1f} s, {spent.pairs / spent.seconds:,.1f} "
                f"pairs/s, {spent.tokens:,.0f} tokens"
            )
    lines.append(_whole_line(config, whole, labeller))
    return lines if count is None else [*lines, *_report(config, llm, labeller, rows)]


def _report(config: RunConfig, llm: LlmConfig, labeller: RewardLabeller, rows: list[dict[str, Any]]) -> list[str]:
    """Lines on whether the rewards of a sample can be trusted; they and the groups stand in a report of their own."""
    other = config.label.model_copy(update={"seed": config.label.seed + 1})
    again = RewardLabeller(labeller.lm, llm, other, config.tasks, *label_pools(config)).label(rows, "rehearsal")
    tasks: dict[str, TaskStatistics] = {}
    for row, repeated in zip(rows, again, strict=True):
        if row["task"] not in tasks:
            tasks[row["task"]] = statistics_of(config.label, config.tasks.get(row["task"]))
        tasks[row["task"]].add(row)
        tasks[row["task"]].trust.add_repeated(row, repeated)
    for row, kind, rewards in _from_answers(config, llm, labeller, rows):
        tasks[row["task"]].trust.add_with_answers(row, kind, rewards)
    how = [f"{labeller.lm.device_kind}, {labeller.backend.how}"]
    page = write_report(tasks, None, config.paths.reports / SAMPLE, config.paths.work.name, how)
    errors = [f"{row['query_id']!r}: {row['error']}" for row in rows if row["error"]]
    told = [f"{len(errors)} of {len(rows)} groups could not be scored, first {errors[0]}"] if errors else []
    return [
        *told,
        *trust_lines({task: measured.trust for task, measured in tasks.items()}),
        f"report on {len(rows)} groups: {page}",
    ]


def _from_answers(
    config: RunConfig, llm: LlmConfig, labeller: RewardLabeller, rows: list[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], str, list[float]]]:
    """What rewards from answers would be, by kind, of rows that have answers and were rewarded without them."""
    own = {name: spec for name, spec in config.tasks.items() if spec.reward in OWN_REWARDS}
    answered = [row for row in rows if row["answers"] and row["task"] in own]
    is_chat = llm.endpoint is not None and llm.endpoint.interface == "chat"
    if not answered or is_chat:  # a chat tells nothing of the answers that rows have
        return
    ranked = {name: spec.model_copy(update={"reward": "rank"}) for name, spec in own.items()}
    labelled = RewardLabeller(labeller.lm, llm, config.label, ranked, labeller.shot_pools).label(answered, "rehearsal")
    for row, other in zip(answered, labelled, strict=True):
        for kind in ("rank", "likelihood") if other["rewards"] else ():
            spec = own[row["task"]].model_copy(update={"reward": kind})
            yield row, kind, task_rewards(spec, other["base_scores"], other["scores"], other["output_tokens"])


@dataclass(frozen=True)
class Spent:
    """Time, work and money that labelling took."""

    seconds: float = 0.0
    pairs: float = 0.0
    tokens: float = 0.0
    flops: float = 0.0
    money: float = 0.0

    @classmethod
    def of(cls, labeller: RewardLabeller) -> Spent:
        """All until now, by the clock."""
        work = labeller.backend.work
        return cls(time.perf_counter(), labeller.pairs, work.tokens, work.flops, work.money)

    def __add__(self, other: Spent) -> Spent:
        return Spent(*map(add, astuple(self), astuple(other)))

    def __sub__(self, other: Spent) -> Spent:
        return self + other * -1

    def __mul__(self, times: float) -> Spent:
        return Spent(*(times * value for value in astuple(self)))


def _whole_line(config: RunConfig, whole: Spent, labeller: RewardLabeller) -> str:
    settings, hours, llm = config.label, whole.seconds / 3600, config.needed_llm
    how = f"outputs are scored by: {labeller.backend.how}"
    if llm.endpoint is not None:
        price = (
            f", money {whole.money:,.2f}" if llm.endpoint.prompt_price else "; give prompt_price to be told the money"
        )
        return f"at this rate about {whole.tokens:,.0f} tokens in all{price}; {hours:,.2f} hours of one actor; {how}"
    return (
        f"at this rate about {whole.tokens:,.0f} tokens and {whole.flops / 1e12:,.2g} TFLOP in all; {hours:,.2f} hours "
        f"of one actor like this machine ({labeller.lm.device_kind}), {hours / settings.num_actors:,.2f} with "
        f"{settings.num_actors} actors; {hours * settings.gpus_per_actor:,.2f} GPU-hours; {how}"
    )


def _samples(config: RunConfig, work: Survey, wanted: int) -> dict[str, list[dict[str, Any]]]:
    """The first groups ahead of each task, at most `wanted` of each."""
    full: set[str] = set()
    samples: dict[str, list[dict[str, Any]]] = {}
    for block in (block for batch in work.blocks.to_batches() for block in batch.to_pylist()):
        # A file holds one dataset, which has one task: what it has to give is taken from its first blocks.
        if block["file"] in full:
            continue
        rows = read_row_group(config.paths.candidates / block["file"], block["row_group"])
        for unit in block["units"]:
            chosen = samples.setdefault(rows.task_of(unit), [])
            readable = [rows.groups[position] for position in unit if position not in rows.unreadable]
            chosen += readable[: wanted - len(chosen)]
            if len(chosen) == wanted:
                full.add(block["file"])
    return samples
