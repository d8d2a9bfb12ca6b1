"""Reward the candidates of each training query.

    python -m ray_jobs.label --config configs/demo.yaml

reads   candidates/*.parquet                   records.GROUP
writes  labelled/blocks/*.parquet              records.LABELLED, committed block by block
        labelled/reranked/*.parquet            the same from the teacher `reranker`
        labelled/fingerprint.json              what the labels depend on
        reports/labelling.html, labelling.json how much signal they carry, with groups to read

The teacher (`label.teacher`) is the LLM, a cross-encoder trained on the LLM's rewards, or a file of rewards made
elsewhere. Groups of tasks without a reward (labels only) pass through. A group that cannot be scored keeps its rewards
null and says why. Running the command again labels only the groups no block holds; labels of another LLM, prompt or
seed are refused. An actor pool of Ray Data loads the LLM once per actor. `label.recompute` recomputes the rewards from
the stored log-likelihoods, without the LLM.
"""

from __future__ import annotations

import time
from typing import Any

import ray

from embedder.config.run import LlmConfig, RunConfig
from embedder.data.row_ids import RowIds
from embedder.errors import ConfigError, LabelError
from embedder.hashing import content_id
from embedder.labelling.label_statistics import LabelCost
from embedder.labelling.labeller import RewardLabeller
from embedder.labelling.prompts import ShotPools
from embedder.models.causal_lm import load_lm, prepare_lm
from embedder.models.fingerprint import label_fingerprint
from embedder.models.locate import count_parameters, locate_model
from embedder.run.cost import Work, forward_flops
from embedder.run.stage_report import StageReport
from ray_jobs.cluster.metrics import track_progress
from ray_jobs.cluster.session import Job, actor_pool, main
from ray_jobs.cluster.tables import llm_ledger, shot_pools
from ray_jobs.labelling.actors import LabelBlocks
from ray_jobs.labelling.block_plan import Planner, Survey, in_parts, read_row_group, row_groups, survey
from ray_jobs.labelling.provenance import LabelProvenance, check_provenance, write_provenance
from ray_jobs.labelling.reranker import select_llm_groups
from ray_jobs.labelling.summary import report_labels
from ray_jobs.labelling.teachers import check_import, import_rewards, recompute_rewards, rerank


def needed_llm(config: RunConfig, tasks: set[str]) -> LlmConfig | None:
    """The run file's `llm` section, which only a run without rewards can do without.

    Raises:
        ConfigError: one of the tasks has a reward, and there is no such section.
    """
    rewarded = sorted(task for task in tasks if config.tasks[task].reward != "none")
    if rewarded and config.llm is None:
        raise ConfigError(f"the run file has no `llm` section, but tasks {rewarded} have a reward; name the LLM")
    return config.llm


def provenance(config: RunConfig, pools: ShotPools) -> LabelProvenance:
    """What the labels of a run depend on, the worked examples before its prompts included."""
    fingerprint = content_id(label_fingerprint(config.llm, config.label, config.tasks), pools)[:16]
    return LabelProvenance(fingerprint, {name: spec.reward for name, spec in config.tasks.items()})


def chosen_groups(config: RunConfig) -> RowIds | None:
    """The groups that the LLM labels for a reranker; None: all of them."""
    if config.label.teacher != "reranker" or config.reranker is None or config.reranker.llm_groups is None:
        return None
    groups = (group for path, number in row_groups(config) for group in read_row_group(path, number).groups)
    return select_llm_groups(groups, config.reranker.llm_groups, config.reranker.seed)


def llm_work(config: RunConfig) -> Survey:
    """What the LLM has to label and what of it is done."""
    return survey(config, llm_ledger(config), config.label.block_rows, chosen_groups(config))


def check(config: RunConfig) -> Work:
    """Candidates exist, the LLM's folder has weights, and labels would not mix."""
    if config.label.teacher == "imported":
        return check_import(config)
    check_provenance(config, provenance(config, shot_pools(config)))
    if config.label.recompute:
        return Work("label", ["rewards are recomputed from the stored log-likelihoods"], 0.0)
    work = llm_work(config)
    llm = needed_llm(config, set(work.tasks))
    parameters = count_parameters(locate_model(llm.model)) if llm else 0
    lines = [
        f"{task}: {one.groups:,} groups, {one.ahead:,} still to label ({one.pairs:,} pairs, about {one.tokens:,.0f} "
        f"tokens), reward {config.tasks[task].reward}"
        for task, one in sorted(work.tasks.items())
    ]
    return Work("label", lines, forward_flops(parameters, sum(one.tokens for one in work.tasks.values())))


def rehearse(config: RunConfig) -> list[str]:
    """Label a few groups of each task on this machine, and tell from it how long the rest will take."""
    settings = config.label
    if settings.teacher == "imported" or settings.recompute or not settings.dry_run_groups or config.llm is None:
        return []
    work = llm_work(config)
    ahead = {task: one for task, one in work.tasks.items() if one.pairs}
    if not ahead:
        return ["nothing is left for the LLM"]
    lm = load_lm(config.llm, config.paths.cache)
    labeller = RewardLabeller(lm, config.llm, settings, config.tasks, shot_pools(config))
    lines, seconds = [], 0.0
    for task, groups in sorted(_samples(config, set(ahead)).items()):
        labeller.label(groups[:1], "rehearsal")  # the first one warms up
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
    for path, number in row_groups(config):
        rows = read_row_group(path, number)
        for position, group in enumerate(rows.groups):
            if group["task"] in tasks and position not in rows.unreadable:
                chosen = samples.setdefault(group["task"], [])
                if len(chosen) < config.label.dry_run_groups:
                    chosen.append(group)
        if all(len(samples.get(task, [])) == config.label.dry_run_groups for task in tasks):
            break
    return samples


def run(config: RunConfig) -> StageReport:
    """Label what is not labelled; the summary counts rows and says how much signal the rewards carry."""
    if config.label.teacher == "imported":
        summary = import_rewards(config)
        return report_labels(config, llm_ledger(config).row_ids(), summary.imported_before, None, summary.lines)
    pools = shot_pools(config)
    agreed = provenance(config, pools)
    if config.label.recompute:
        rows = recompute_rewards(config, agreed)
        return report_labels(config, llm_ledger(config).row_ids(), rows, None, ["rewards recomputed, without the LLM"])
    write_provenance(config, agreed)
    work = llm_work(config)
    _commit_plain(config, work, agreed.fingerprint)
    cost = None
    if work.blocks.num_rows and config.llm is not None:
        prepare_lm(config.llm, config.paths.cache)
        cost = _label(config, work, pools, agreed.fingerprint)
    missing, first = work.expected.missing_from(llm_ledger(config).row_ids())
    if missing:
        raise LabelError(f"{missing:,} of {len(work.expected):,} groups are in no block, first {first}; run it again")
    if config.label.teacher == "reranker":
        expected, lines = rerank(config, agreed.fingerprint)
        return report_labels(config, expected, work.before, cost, lines)
    return report_labels(config, work.expected, work.before, cost, [])


def _commit_plain(config: RunConfig, work: Survey, fingerprint: str) -> None:
    """Groups of tasks without a reward need no LLM: the driver commits them, a row group at a time."""
    ledger, planner = llm_ledger(config), Planner(config, None)
    done = ledger.row_ids()
    for path, number in work.plain:
        planned = planner.read(path, number)
        is_done = done.contains(planned.ids)
        plain = [
            position
            for position, group in enumerate(planned.rows.groups)
            if config.tasks[group["task"]].reward == "none" and not is_done[position]
        ]
        ledger.commit([planned.rows.without_rewards(position, config, fingerprint) for position in plain])


def _label(config: RunConfig, work: Survey, pools: ShotPools, fingerprint: str) -> LabelCost:
    """Send blocks through the actor pool, which reads and commits them; the driver sees counts only."""
    settings = config.label
    labelled = ray.data.from_arrow(in_parts(work.blocks, settings.num_actors)).map_batches(
        LabelBlocks,
        fn_constructor_args=(config, ray.put(pools), ray.put(work.selected), fingerprint),
        batch_size=1,
        batch_format="pyarrow",
        **actor_pool(settings.num_actors, settings.gpus_per_actor, settings.cpus_per_actor, settings.min_actors),
    )
    total = sum(work.blocks["rows"].to_pylist())
    pairs = tokens = 0
    flops = busy = capacity = 0.0
    began = time.monotonic()
    with track_progress("label", total) as counter:
        for batch in labelled.iter_batches(batch_size=None, batch_format="pyarrow"):
            for block in batch.to_pylist():
                pairs, tokens, flops = pairs + block["pairs"], tokens + block["tokens"], flops + block["flops"]
                busy, capacity = busy + block["seconds"], capacity + block["seconds"] * block["peak_flops"]
                elapsed = max(time.monotonic() - began, 1e-9)
                share = f", {flops / capacity:.0%} of peak" if capacity else ""
                counter.advance(
                    block["rows"], f"{pairs / elapsed:,.1f} pairs/s, {tokens / elapsed:,.0f} tokens/s{share}"
                )
    peak = capacity / busy if busy else None
    return LabelCost(time.monotonic() - began, pairs, tokens, flops, peak, settings.num_actors)


def streams_objects(config: RunConfig) -> bool:
    """Training a reranker needs a folder; the other teachers do not."""
    return config.label.teacher != "reranker"


JOB = Job("label", __doc__, check, run, rehearse, streams_objects)

if __name__ == "__main__":
    main(JOB)
