"""Compare retrievers: their rankings, and what the LLM makes of the passages they find.

    python -m ray_jobs.evaluate --config configs/demo.yaml
    python -m ray_jobs.evaluate --config run.yaml --set evaluate.split=dev --set 'evaluate.retrievers=[bm25, base]'

reads   prepared/, model/                       records.PASSAGE, records.QUERY
writes  vectors/ENCODER/DATASET.SIDE/*.parquet  committed blocks
        evaluation/judged/*.parquet             replies.JUDGED, what the LLM replied, committed unit by unit
        evaluation/SPLIT/report.html            tables with intervals, pictures, examples won and lost
        evaluation/SPLIT/results.json           all numbers and examples of the report
        evaluation/SPLIT/values.parquet         results.VALUES, every value of every query
        evaluation/SPLIT/comparison.png

Each dataset gets the evaluation of its task (`evaluate.evaluations` changes that): docs/evaluation.md. The LLM is asked
about `evaluate.llm_queries` queries of each dataset; without that, rankings alone are compared, and no LLM is needed.
Running the command again encodes and asks only what is missing.
"""

from __future__ import annotations

import time
from functools import partial

import pyarrow as pa
import ray

from embedder.config.run import LlmConfig, RunConfig
from embedder.console import console
from embedder.data.ledger import Ledger
from embedder.data.records import PASSAGE, read_tables, write_table
from embedder.errors import ConfigError
from embedder.evaluation.comparison import summarise
from embedder.evaluation.evaluation_report import results_table, write_report
from embedder.evaluation.evaluations import evaluation_of
from embedder.evaluation.examples import RankedQuery, won_and_lost
from embedder.evaluation.measurements import VALUES, DatasetValues, ask_about, enter_all_replies, value_rows
from embedder.evaluation.questions import Asked, chosen_queries, plan_units
from embedder.evaluation.replies import judge_fingerprint, judged_ledger
from embedder.labelling.prompts import ShotPools
from embedder.mining.ranking import Ranking
from embedder.models.causal_lm import prepare_lm
from embedder.models.locate import count_parameters, locate_model
from embedder.run.cost import Work, forward_flops, tokens_of
from embedder.run.stage_report import StageReport
from ray_jobs.cluster.metrics import track_progress
from ray_jobs.cluster.session import Job, actor_pool, main
from ray_jobs.cluster.tables import corpus_files, datasets, passage_texts, queries, shot_pools
from ray_jobs.retrieval.judges import UNIT, JudgeBlocks
from ray_jobs.retrieval.retrievers import Rankings, all_rankings, check_retrievers

QUESTION_CHARACTERS = 1200
"""Estimated, for the dry run."""


def datasets_of(config: RunConfig) -> list[DatasetValues]:
    """Those that have queries in the split, nothing measured yet.

    Raises:
        ConfigError: none has.
        DataError: `prepare` has not run.
    """
    found = []
    for name in datasets(config):
        rows = queries(config, config.evaluate.split, name)
        if rows:
            evaluation = evaluation_of(rows[0]["task"], name, rows, config.evaluate.evaluations)
            found.append(DatasetValues(name, rows[0]["task"], evaluation, rows))
    if not found:
        hint = "; give prepare.sources a dev_queries, and run prepare again" if config.evaluate.split == "dev" else ""
        raise ConfigError(f"evaluate.split is {config.evaluate.split!r}, of which no dataset has queries{hint}")
    return found


def check(config: RunConfig) -> Work:
    """Prepared tables and all encoders exist; the LLM too where it is asked."""
    known = datasets_of(config)
    unknown = config.evaluate.evaluations.keys() - {one.name for one in known} - config.tasks.keys()
    if unknown:
        raise ConfigError(f"evaluate.evaluations names {sorted(unknown)}, neither a prepared dataset nor a task")
    retrievers = check_retrievers(config)
    lines, total = [], 0
    for one in known:
        chosen = chosen_queries(one.evaluation, one.rows, config.evaluate)
        total += len(chosen)
        lines.append(f"{one.name} ({one.evaluation.name}): {len(one.rows):,} queries, the LLM is asked {len(chosen):,}")
        if chosen and one.evaluation.template(config.tasks[one.task]) is None:
            raise ConfigError(f"tasks.{one.task} has no template, which evaluation {one.evaluation.name!r} needs")
    flops = 0.0
    if total:
        parameters = count_parameters(locate_model(asked_llm(config).model))
        flops = forward_flops(parameters, total * len(retrievers) * tokens_of(QUESTION_CHARACTERS))
    return Work("evaluate", [*lines, *retrievers], flops)


def asked_llm(config: RunConfig) -> LlmConfig:
    """The LLM that is asked.

    Raises:
        ConfigError: the run file has none.
    """
    if config.llm is None:
        raise ConfigError("evaluate.llm_queries needs an `llm` section in the run file; set it to 0 for rankings alone")
    return config.llm


def run(config: RunConfig) -> StageReport:
    """Rank, measure, ask the LLM, and write report, numbers and values."""
    measured = datasets_of(config)
    rankings = all_rankings(config)
    for one in measured:
        if "none" in rankings:
            one.rankings["none"] = {}  # asked about without passages, but not measured as a ranking
        one.enter_rankings(by_dataset(rankings, one.name), example_answers(config, one), config.evaluate.cutoffs)
    pools = shot_pools(config) if config.evaluate.asks else {}
    asked = questions(config, measured, pools)
    lines = answer(config, asked, pools)
    if asked.rows:
        enter_all_replies(measured, asked, evaluation_ledger(config))
    results = summarise(measured, config.evaluate)
    for one in measured:
        found = RankedQuery(one.rankings, passage_texts(config, one.name))
        results["datasets"][one.name]["examples"] = won_and_lost(one, found, config.evaluate)
    folder = config.paths.mounted / "evaluation" / config.evaluate.split
    write_table(value_rows(measured), VALUES, folder / "values.parquet")
    page = write_report(results, folder, config.paths.mounted.name)
    console().print(results_table(results))
    count = sum(len(one.rows) for one in measured)
    report = StageReport("evaluate", count, "queries", details={"results": str(folder / "results.json")})
    failed = [f"{one.name} {query}: {why}" for one in measured for query, why in one.errors.items()]
    if failed:
        lines.append(f"{len(failed):,} queries could not be asked and count for no retriever; first {failed[0]}")
    report.lines = [*lines, f"report: {page}"]
    return report


def by_dataset(rankings: Rankings, name: str) -> dict[str, dict[str, Ranking]]:
    """The rankings of one dataset by retriever, of those that rank it."""
    return {retriever: found[name] for retriever, found in rankings.items() if name in found}


def example_answers(config: RunConfig, one: DatasetValues) -> dict[str, str | None]:
    """The answers of worked examples by passage id, where they decide what is relevant."""
    if one.evaluation.relevance != "same_answer":
        return {}
    table = read_tables(corpus_files(config, one.name), PASSAGE, ["id", "answer"])
    return dict(zip(table["id"].to_pylist(), table["answer"].to_pylist(), strict=True))


def evaluation_ledger(config: RunConfig) -> Ledger:
    """The LLM's replies."""
    return judged_ledger(config.paths.mounted / "evaluation")


def questions(config: RunConfig, known: list[DatasetValues], pools: ShotPools) -> Asked:
    """What the LLM is asked about all datasets."""
    settings = config.evaluate
    if not settings.asks:
        return Asked()
    fingerprint = judge_fingerprint(asked_llm(config), config.tasks, settings, pools)
    return ask_about(known, partial(passage_texts, config), settings, fingerprint)


def answer(config: RunConfig, asked: Asked, pools: ShotPools) -> list[str]:
    """Let the actor pool answer what no block holds yet; lines on what that took."""
    settings = config.evaluate
    done = evaluation_ledger(config).done() if asked.rows else set()
    units = plan_units(asked.rows.values(), settings.unit_queries, done)
    if not asked.rows:
        return []
    before = sum(row_id in done for row_id in asked.rows)
    lines = [f"{len(asked.ids):,} prompts, {len(asked.rows):,} different ones, {before:,} answered before this run"]
    if not units:
        return lines
    prepare_lm(asked_llm(config), config.paths.cache)
    blocks = [pa.Table.from_pylist([{"rows": unit}], schema=UNIT) for unit in units]
    judged = ray.data.from_arrow(blocks).map_batches(
        JudgeBlocks,
        fn_constructor_args=(config, ray.put(pools)),
        batch_size=1,
        batch_format="pyarrow",
        **actor_pool(settings.num_actors, settings.gpus_per_actor, settings.cpus_per_actor),
    )
    tokens, began = 0, time.monotonic()
    with track_progress("evaluate: LLM", sum(map(len, units))) as counter:
        for batch in judged.iter_batches(batch_size=None, batch_format="pyarrow"):
            for unit in batch.to_pylist():
                tokens += unit["tokens"]
                rate = tokens / max(time.monotonic() - began, 1e-9)
                counter.advance(unit["questions"], f"{rate:,.0f} tokens/s")
    return [*lines, f"LLM: {tokens:,} tokens scored in {time.monotonic() - began:,.1f} s"]


JOB = Job("evaluate", __doc__, check, run)

if __name__ == "__main__":
    main(JOB)
