"""Let the LLM reward the candidates of each training query.

    python -m ray_jobs.label --config configs/demo.yaml

reads   candidates/*.parquet                   records.GROUP
writes  labelled/blocks/*.parquet              records.LABELLED, committed block by block
        labelled/fingerprint.json              what the labels depend on

Groups of tasks without a reward (labels only) pass through. A group that cannot be scored keeps its rewards null and
says why. Running the command again labels only the groups no block holds; labels of another LLM, prompt or seed are
refused. An actor pool of Ray Data loads the LLM once an actor.
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from embedder.config import LlmConfig, RunConfig
from embedder.cost import Work, forward_flops, tokens_of
from embedder.errors import ConfigError, DataError, LabelError
from embedder.fingerprint import label_fingerprint
from embedder.labelling.diagnostics import reward_summary
from embedder.labelling.labeller import ShotPools, unrewarded
from embedder.lm import prepare_lm
from embedder.locate import count_parameters, locate_model
from embedder.progress import progress
from embedder.records import content_id, group_id, write_json
from embedder.reports import StageReport, console
from ray_jobs.actors import LabelBlocks
from ray_jobs.session import Job, actor_pool, main
from ray_jobs.tables import candidate_groups, labelled_ledger, shot_pools

PASSED_ROWS = 4096
"""Groups without a reward that are committed together; they need no LLM."""


def needed_llm(config: RunConfig, tasks: set[str]) -> LlmConfig | None:
    """The run file's `llm` section, which only a run without rewards can do without.

    Raises:
        ConfigError: one of the tasks has a reward, and there is no such section.
    """
    rewarded = sorted(task for task in tasks if config.tasks[task].reward != "none")
    if rewarded and config.llm is None:
        raise ConfigError(f"the run file has no `llm` section, but tasks {rewarded} have a reward; name the LLM")
    return config.llm


def run_fingerprint(config: RunConfig, pools: ShotPools) -> str:
    """What the labels of a run depend on, the worked examples before its prompts included."""
    return content_id(label_fingerprint(config.llm, config.label, config.tasks), pools)[:16]


def check(config: RunConfig) -> Work:
    """Candidates exist, the LLM's folder has weights, every rewarded query has an answer, and labels would not mix."""
    every = candidate_groups(config).to_pylist()
    tasks = {group["task"] for group in every}
    llm = needed_llm(config, tasks)
    parameters = count_parameters(locate_model(llm.model)) if llm else 0
    done = labelled_ledger(config).done()
    lines, tokens = [], 0.0
    for task in sorted(tasks):
        spec = config.tasks[task]
        groups = [group for group in every if group["task"] == task]
        ahead = [group for group in groups if group_id(group) not in done]
        if spec.reward != "none":
            _check_answers(groups, task)
            for group in ahead:
                outputs = (config.label.num_samples if spec.reward == "rank" else 0) + 1
                prefix = tokens_of(
                    sum(map(len, group["candidate_texts"])) + len(group["query"]) * len(group["candidate_ids"])
                )
                tokens += prefix + (len(group["candidate_ids"]) + 2) * outputs * spec.max_output_tokens
        pairs = sum(len(group["candidate_ids"]) for group in ahead)
        lines.append(
            f"{task}: {len(groups):,} groups, {len(ahead):,} still to label ({pairs:,} pairs), reward {spec.reward}"
        )
    _check_fingerprint(config, run_fingerprint(config, shot_pools(config)))
    return Work("label", lines, forward_flops(parameters, tokens))


def _check_answers(groups: list[dict[str, Any]], task: str) -> None:
    for group in groups:
        if not group["answers"]:
            raise DataError(
                f"candidates/{group['dataset']}.parquet: query {group['query_id']!r} has no answer, but "
                f"tasks.{task}.reward needs one; give it an answer, or set reward to none and loss to contrastive"
            )


def _check_fingerprint(config: RunConfig, fingerprint: str) -> None:
    """Refuse to add labels to those of another LLM, prompt or seed."""
    path = config.paths.labelled / "fingerprint.json"
    if path.is_file():
        known = json.loads(path.read_text(encoding="utf-8"))["fingerprint"]
        if known != fingerprint:
            raise ConfigError(
                f"{config.paths.labelled}: holds labels {known}, this run file would make {fingerprint} (another LLM, "
                "prompt, sampling or seed); remove that folder or choose another paths.work"
            )


def run(config: RunConfig) -> StageReport:
    """Label what is not labelled; the summary counts rows and says how much signal the rewards carry."""
    ledger, pools = labelled_ledger(config), shot_pools(config)
    fingerprint = run_fingerprint(config, pools)
    write_json({"fingerprint": fingerprint}, config.paths.labelled / "fingerprint.json")
    groups = candidate_groups(config)
    ids = [group_id(group) for group in groups.to_pylist()]
    done = ledger.done()
    ahead = groups.filter(pa.array([row_id not in done for row_id in ids]))
    plain = pa.array([config.tasks[task].reward == "none" for task in ahead["task"].to_pylist()], pa.bool_())
    for group in ahead.filter(plain).to_batches(max_chunksize=PASSED_ROWS):
        rows = [unrewarded(row, config.tasks[row["task"]], fingerprint) for row in group.to_pylist()]
        ledger.commit(rows)
    rewarded = ahead.filter(pc.invert(plain))
    if rewarded.num_rows and config.llm is not None:
        prepare_lm(config.llm, config.paths.cache)
        _label(config, rewarded, pools, fingerprint)
    table = ledger.read(ids)
    errors = [row for row in table.select(["error", "query_id"]).to_pylist() if row["error"]]
    if len(errors) > config.label.max_error_share * max(1, len(ids)):
        raise LabelError(
            f"{len(errors)} of {len(ids)} groups could not be scored, more than label.max_error_share allows; first "
            f"{errors[0]['query_id']!r}: {errors[0]['error']}"
        )
    return _report(table, ids, before=len(ids) - ahead.num_rows, duplicates=ledger.count_duplicates())


def _label(config: RunConfig, ahead: pa.Table, pools: ShotPools, fingerprint: str) -> None:
    """Send groups through the actor pool; each actor commits its own blocks."""
    size = config.label.block_rows
    blocks = [ahead.slice(i, size) for i in range(0, ahead.num_rows, size)]
    labelled = ray.data.from_arrow(blocks).map_batches(
        LabelBlocks,
        fn_constructor_args=(config, ray.put(pools), fingerprint),
        batch_size=size,
        batch_format="pyarrow",
        **actor_pool(config.label.num_actors, config.label.gpus_per_actor),
    )
    with progress("label", ahead.num_rows, console()) as counter:
        for batch in labelled.iter_batches(batch_size=None, batch_format="pyarrow"):
            counter.advance(sum(batch["rows"].to_pylist()))


def _report(table: pa.Table, ids: list[str], before: int, duplicates: int) -> StageReport:
    summary = reward_summary(table.to_pylist())
    report = StageReport("label", table.num_rows, "groups", details={"tasks": summary, "labelled_before": before})
    report.lines.append(
        f"{len(ids):,} groups in = {table.num_rows:,} out; {before:,} were labelled before this run; "
        f"{duplicates:,} repeated in blocks and counted once"
    )
    for task, values in summary.items():
        shares = ", ".join(
            f"{name} {value:.0%}" for name, value in values.items() if name not in {"groups", "rewarded", "errors"}
        )
        report.lines.append(
            f"{task}: {values['groups']:,.0f} groups, {values['rewarded']:,.0f} rewarded, "
            f"{values['errors']:,.0f} errors" + (f"; {shares}" if shares else "")
        )
    return report


JOB = Job("label", __doc__, check, run)

if __name__ == "__main__":
    main(JOB)
