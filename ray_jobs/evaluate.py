"""Compare retrievers: their rankings, and what the LLM makes of the passages they find.

    python -m ray_jobs.evaluate --config configs/demo.yaml
    python -m ray_jobs.evaluate --config run.yaml --set evaluate.split=dev --set 'evaluate.retrievers=[bm25, base]'

reads   prepared/, model/                       records.PASSAGE, records.QUERY
writes  vectors/ENCODER/DATASET.SIDE/*.parquet  committed blocks
        evaluation/judged/*.parquet             replies.JUDGED, what the LLM replied, committed unit by unit
        evaluation/SPLIT/report.html            tables with intervals, plots, examples won and lost
        evaluation/SPLIT/results.json           all numbers and examples of the report
        evaluation/SPLIT/values.parquet         measurements.VALUES, every value of every query
        evaluation/SPLIT/comparison.png

Each dataset gets the evaluation of its task (`evaluate.evaluations` changes that): docs/evaluation.md. The LLM is asked
about `evaluate.llm_queries` queries of each dataset; without that, rankings alone are compared, and no LLM is needed.
Running the command again encodes and asks only what is missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedder.config.run import LlmConfig, RunConfig
from embedder.console import console
from embedder.data.records import PASSAGE, read_tables, write_table
from embedder.errors import ConfigError
from embedder.models.locate import count_parameters, locate_model
from embedder.run.cost import Work, forward_flops, tokens_of
from embedder.run.stage_report import StageReport
from ray_jobs.cluster.session import Job, main
from ray_jobs.cluster.tables import corpus_files, datasets, passage_texts, queries, shot_pools

if TYPE_CHECKING:
    from embedder.evaluation.measurements import DatasetValues

QUESTION_CHARACTERS = 1200
"""Estimated, for the dry run."""


def check(config: RunConfig) -> Work:
    """Prepared tables and all encoders exist; the LLM too where it is asked."""
    from embedder.evaluation.questions import chosen_queries
    from ray_jobs.retrieval.encoders import check_retrievers

    measured = unmeasured(config)
    unknown = config.evaluate.evaluations.keys() - {values.name for values in measured} - config.tasks.keys()
    if unknown:
        raise ConfigError(f"evaluate.evaluations names {sorted(unknown)}, neither a prepared dataset nor a task")
    retrievers = check_retrievers(config)
    lines, total = [], 0
    for values in measured:
        chosen = len(chosen_queries(values.evaluation, values.rows, config.evaluate))
        total += chosen
        evaluation = values.evaluation.name
        lines.append(f"{values.name} ({evaluation}): {len(values.rows):,} queries, the LLM is asked {chosen:,}")
        if chosen and values.evaluation.template(config.tasks[values.task]) is None:
            raise ConfigError(f"tasks.{values.task} has no template, which evaluation {evaluation!r} needs")
    flops = 0.0
    if total:
        parameters = count_parameters(locate_model(asked_llm(config).model))
        flops = forward_flops(parameters, total * len(retrievers) * tokens_of(QUESTION_CHARACTERS))
    return Work("evaluate", [*lines, *retrievers], flops)


def run(config: RunConfig) -> StageReport:
    """Rank, measure, ask the LLM, and write report, numbers and values."""
    from embedder.evaluation.comparison import summarise
    from embedder.evaluation.evaluation_report import results_table, write_report
    from embedder.evaluation.examples import RankedQuery, won_and_lost
    from embedder.evaluation.measurements import VALUES, enter_all_replies, value_rows
    from ray_jobs.retrieval.judges import ask_llm, questions_of, reply_ledger
    from ray_jobs.retrieval.retrievers import all_rankings, by_dataset

    measured = unmeasured(config)
    rankings = all_rankings(config)
    for values in measured:
        if "none" in rankings:
            values.rankings["none"] = {}  # asked about without passages, but not measured as a ranking
        ranked = by_dataset(rankings, values.name)
        values.enter_rankings(ranked, example_answers(config, values), config.evaluate.cutoffs)
    lines = []
    if config.evaluate.asks:
        pools = shot_pools(config)
        asked = questions_of(config, asked_llm(config), measured, pools)
        lines = ask_llm(config, asked, pools)
        enter_all_replies(measured, asked, reply_ledger(config))
    results = summarise(measured, config.evaluate)
    for values in measured:
        query = RankedQuery(values.rankings, passage_texts(config.paths, values.name))
        results["datasets"][values.name]["examples"] = won_and_lost(values, query, config.evaluate)
    folder = config.paths.mounted / "evaluation" / config.evaluate.split
    write_table(value_rows(measured), VALUES, folder / "values.parquet")
    page = write_report(results, folder, config.paths.mounted.name)
    console().print(results_table(results))
    count = sum(len(values.rows) for values in measured)
    report = StageReport("evaluate", count, "queries", details={"results": str(folder / "results.json")})
    failed = [f"{values.name} {query}: {why}" for values in measured for query, why in values.errors.items()]
    if failed:
        lines.append(f"{len(failed):,} queries could not be asked and count for no retriever; first {failed[0]}")
    report.lines = [*lines, f"report: {page}"]
    return report


def unmeasured(config: RunConfig) -> list[DatasetValues]:
    """The datasets that have queries in the split, nothing measured yet.

    Raises:
        ConfigError: none has.
        DataError: `prepare` has not run.
    """
    from embedder.evaluation.evaluations import evaluation_of
    from embedder.evaluation.measurements import DatasetValues

    values = []
    for name in datasets(config.paths):
        rows = queries(config.paths, config.evaluate.split, name)
        if rows:
            evaluation = evaluation_of(rows[0]["task"], name, rows, config.evaluate.evaluations)
            values.append(DatasetValues(name, rows[0]["task"], evaluation, rows))
    if not values:
        hint = "; give prepare.sources a dev_queries, and run prepare again" if config.evaluate.split == "dev" else ""
        raise ConfigError(f"evaluate.split is {config.evaluate.split!r}, of which no dataset has queries{hint}")
    return values


def asked_llm(config: RunConfig) -> LlmConfig:
    """The LLM that is asked.

    Raises:
        ConfigError: the run file has none.
    """
    if config.llm is None:
        raise ConfigError("evaluate.llm_queries needs an `llm` section in the run file; set it to 0 for rankings alone")
    return config.llm


def example_answers(config: RunConfig, values: DatasetValues) -> dict[str, str | None]:
    """The answers of worked examples by passage id, where they decide what is relevant."""
    if values.evaluation.relevance != "same_answer":
        return {}
    table = read_tables(corpus_files(config.paths, values.name), PASSAGE, ["id", "answer"])
    return dict(zip(table["id"].to_pylist(), table["answer"].to_pylist(), strict=True))


JOB = Job("evaluate", __doc__, check, run)

if __name__ == "__main__":
    main(JOB)
