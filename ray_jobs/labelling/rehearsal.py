"""A sample of the labelling on this machine, which tells how long the rest will take."""

from __future__ import annotations

import time
from typing import Any

from embedder.config.run import LlmConfig, RunConfig
from embedder.labelling.labeller import RewardLabeller
from embedder.models.causal_lm import load_lm
from ray_jobs.cluster.tables import shot_pools
from ray_jobs.labelling.block_plan import Survey, read_row_group, row_groups


def rehearse_labelling(config: RunConfig, llm: LlmConfig, work: Survey) -> list[str]:
    """Label a few groups of each task that has work ahead; lines on what that took, and on what the rest will take."""
    settings = config.label
    ahead = {task: rest for task, rest in work.tasks.items() if rest.pairs}
    if not ahead:
        return ["nothing is left for the LLM"]
    lm = load_lm(llm, config.paths.cache)
    labeller = RewardLabeller(lm, llm, settings, config.tasks, shot_pools(config))
    lines, seconds = [], 0.0
    for task, groups in sorted(_samples(config, set(ahead)).items()):
        # The first call of a kind is slow: memory is fetched, kernels are chosen.
        labeller.label(groups[:1], "rehearsal")
        began, pairs, tokens = time.perf_counter(), labeller.pairs, labeller.backend.work.tokens
        labeller.label(groups, "rehearsal")
        elapsed = max(time.perf_counter() - began, 1e-9)
        pairs, tokens = labeller.pairs - pairs, labeller.backend.work.tokens - tokens
        if pairs:
            seconds += elapsed * ahead[task].pairs / pairs
            lines.append(f"{task}: {pairs} pairs in {elapsed:.1f} s, {pairs / elapsed:,.1f} pairs/s, {tokens:,} tokens")
    hours = seconds / 3600
    lines.append(
        f"at this rate {hours:,.2f} hours of one actor like this machine ({lm.device.type}), "
        f"{hours / settings.num_actors:,.2f} with {settings.num_actors} actors; "
        f"{hours * settings.gpus_per_actor:,.2f} GPU-hours"
    )
    return lines


def _samples(config: RunConfig, tasks: set[str]) -> dict[str, list[dict[str, Any]]]:
    """The first groups of each task, at most `dry_run_groups` of each."""
    samples: dict[str, list[dict[str, Any]]] = {}
    for path, number in row_groups(config.paths):
        rows = read_row_group(path, number)
        for position, group in enumerate(rows.groups):
            if group["task"] in tasks and position not in rows.unreadable:
                chosen = samples.setdefault(group["task"], [])
                if len(chosen) < config.label.dry_run_groups:
                    chosen.append(group)
        if all(len(samples.get(task, [])) == config.label.dry_run_groups for task in tasks):
            break
    return samples
