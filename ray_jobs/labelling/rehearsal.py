"""A sample of the labelling on this machine, which tells how long the rest will take."""

from __future__ import annotations

import time
from typing import Any

import torch

from embedder.config.run import LlmConfig, RunConfig
from embedder.labelling.labeller import RewardLabeller
from embedder.labelling.units import unit_tokens
from embedder.models.causal_lm import load_lm
from embedder.models.device import resolve_device
from ray_jobs.labelling.block_plan import Survey, read_row_group
from ray_jobs.labelling.provenance import label_pools


def rehearse_labelling(config: RunConfig, llm: LlmConfig, work: Survey) -> list[str]:
    """Label a few groups of each task that has work ahead; lines on what that took, and on what the rest will take.

    The rest takes as much more than the sample as it has more estimated tokens, so that longer texts, and passages that
    groups of a unit share, count.
    """
    settings = config.label
    ahead = {task: rest for task, rest in work.tasks.items() if rest.pairs}
    if not ahead:
        return ["nothing is left for the LLM"]
    there = torch.cuda.device_count()
    if 0 < there < settings.gpus_per_actor:
        return [f"nothing is tried here: label.gpus_per_actor is {settings.gpus_per_actor:g}, and GPUs here: {there}"]
    # Where this machine has no GPU, the LLM is tried on its CPU, and the last line says so.
    gpus = settings.gpus_per_actor if there else 0
    lm = load_lm(llm, config.paths.cache, resolve_device(gpus), gpus)
    labeller = RewardLabeller(lm, llm, settings, config.tasks, *label_pools(config))
    lines, seconds, whole, flops = [], 0.0, 0.0, 0.0
    for task, groups in sorted(_samples(config, work).items()):
        # The first call of a kind is slow: memory is fetched, kernels are chosen.
        labeller.label(groups[:1], "rehearsal")
        spent = labeller.backend.work
        began, pairs, tokens, operations = time.perf_counter(), labeller.pairs, spent.tokens, spent.flops
        labeller.label(groups, "rehearsal")
        elapsed = max(time.perf_counter() - began, 1e-9)
        pairs, tokens, operations = labeller.pairs - pairs, spent.tokens - tokens, spent.flops - operations
        if pairs:
            rest = ahead[task].tokens / unit_tokens(groups, config.tasks[task], settings.num_rivals, llm)
            seconds, whole, flops = seconds + elapsed * rest, whole + tokens * rest, flops + operations * rest
            lines.append(f"{task}: {pairs} pairs in {elapsed:.1f} s, {pairs / elapsed:,.1f} pairs/s, {tokens:,} tokens")
    hours = seconds / 3600
    lines.append(
        f"at this rate about {whole:,.0f} tokens and {flops / 1e12:,.2g} TFLOP in all; {hours:,.2f} hours of one actor "
        f"like this machine ({lm.device.type}), {hours / settings.num_actors:,.2f} with {settings.num_actors} actors; "
        f"{hours * settings.gpus_per_actor:,.2f} GPU-hours; outputs are scored by: {labeller.backend.how}"
    )
    return lines


def _samples(config: RunConfig, work: Survey) -> dict[str, list[dict[str, Any]]]:
    """The first groups ahead of each task, at most `dry_run_groups` of each."""
    wanted, full = config.label.dry_run_groups, set()
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
