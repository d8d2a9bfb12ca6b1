"""Compare retrievers: their rankings, and what the LLM makes of the passages they find.

    python -m ray_jobs.evaluate --config configs/demo.yaml
    python -m ray_jobs.evaluate --config run.yaml --set evaluate.split=dev --set 'evaluate.retrievers=[bm25, base]'

reads   prepared/, model/                       records.PASSAGE, records.QUERY
writes  vectors/ENCODER/DATASET.SIDE/*.parquet  committed blocks
        rankings/SPLIT/DATASET/*/*.parquet      records.RANKING; a second run ranks only what is missing
        evaluation/judged/*.parquet             replies.JUDGED, what the LLM replied, committed unit by unit
        evaluation/SPLIT/report.html            tables with intervals, plots, examples won and lost
        evaluation/SPLIT/results.json           all numbers and examples of the report
        evaluation/SPLIT/values.parquet         measurements.VALUES, every value of every query
        evaluation/SPLIT/comparison.png
        summary.json                                    what the training gained in each task, a few numbers

Each dataset gets the evaluation of its task (`evaluate.evaluations` changes that): docs/evaluation.md. The LLM is asked
about `evaluate.llm_queries` queries of each dataset; without that, rankings alone are compared, and no LLM is needed.
Running the command again encodes and asks only what is missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from embedder.config.prepare import Source
from embedder.config.run import RunConfig
from embedder.config.tasks import PromptTemplate
from embedder.console import console, show_table
from embedder.data.records import write_table
from embedder.errors import ConfigError
from embedder.labelling.prompts import check_chat
from embedder.models.locate import locate_model
from embedder.run.cost import Work, forward_flops, tokens_of
from embedder.run.stage_report import StageReport
from embedder.storage.json_file import write_json
from ray_jobs.cluster.session import Job, main
from ray_jobs.cluster.tables import datasets

QUESTION_CHARACTERS = 1200
"""Estimated, for the dry run."""
NO_LLM = "evaluate.llm_queries needs an `llm` section in the run file; set it to 0 for rankings alone"


def check(config: RunConfig) -> Work:
    """Prepared tables and all encoders exist; the LLM too where it is asked."""
    from embedder.evaluation.asked import chosen_queries
    from embedder.evaluation.measurements import read_datasets

    names = set(datasets(config.paths))
    measured = read_datasets(config, config.evaluate.split)
    retrievers = check_settings(config, names)
    lines, total = [], 0
    templates: dict[str, PromptTemplate | None] = {}
    for values in measured:
        chosen = len(chosen_queries(values.evaluation, values.rows, config.evaluate))
        total += chosen
        evaluation = values.evaluation.name
        lines.append(f"{values.name} ({evaluation}): {len(values.rows):,} queries, the LLM is asked {chosen:,}")
        if chosen:
            templates[values.task] = values.evaluation.template(config.tasks[values.task])
        if chosen and templates[values.task] is None:
            raise ConfigError(f"tasks.{values.task} has no template, which evaluation {evaluation!r} needs")
    flops = 0.0
    if total:
        if config.llm is None:
            raise ConfigError(NO_LLM)
        from embedder.labelling.compute_cost import memory_line, multiplied_weights
        from embedder.models.open_llm import check_open

        check_open(config.llm, config.evaluate.gpus_per_actor)
        lines += check_chat(config.llm, templates)
        tokens, endpoint = total * len(retrievers) * tokens_of(QUESTION_CHARACTERS), config.llm.endpoint
        if endpoint is not None:
            told = f", money {endpoint.money(tokens):,.2f}" if endpoint.prompt_price else ""
            lines.append(f"the LLM is {endpoint.model} on {endpoint.url}: about {tokens:,.0f} tokens{told}")
        else:
            lines.append(memory_line(config.llm, config.evaluate.gpus_per_actor))
            flops = forward_flops(multiplied_weights(locate_model(config.llm.model)), tokens)
    return Work("evaluate", [*lines, *retrievers], flops)


def check_settings(config: RunConfig, names: set[str]) -> list[str]:
    """What can be known without tables: evaluations are of datasets that there are (`names`) or tasks, and all
    retrievers are there. Returns a line for each retriever.

    Raises:
        ConfigError, ModelError: it is not so.
    """
    from ray_jobs.retrieval.encoders import check_retrievers

    unknown = config.evaluate.evaluations.keys() - names - config.tasks.keys()
    if unknown:
        raise ConfigError(f"evaluate.evaluations names {sorted(unknown)}, neither a dataset of the run nor a task")
    return check_retrievers(config)


def check_asked(config: RunConfig, sources: Iterable[Source]) -> None:
    """Refuse to ask an LLM that is not there, or without a template, about sources that are not prepared yet.

    Raises:
        ConfigError: a source is sure to be asked about.
    """
    if not config.evaluate.asks:
        return
    from embedder.evaluation.evaluations import EVALUATIONS, evaluation_of

    for source in sources:
        evaluation = evaluation_of(source.task, source.dataset, [], config.evaluate.evaluations)
        # A dataset of `qa` whose rows all bring options is multiple choice, and queries of BEIR have no answers.
        named = {source.dataset, source.task} & config.evaluate.evaluations.keys()
        possible = [evaluation] if evaluation.name != "qa" or named else [evaluation, EVALUATIONS["choice"]]
        asks = [each.measures and config.evaluate.llm_queries.get(each.name) for each in possible]
        if source.format == "beir" or not all(asks):
            continue
        if config.llm is None:
            raise ConfigError(NO_LLM)
        if evaluation.template(config.tasks[source.task]) is None:
            raise ConfigError(f"tasks.{source.task} has no template, which evaluation {evaluation.name!r} needs")


def run(config: RunConfig) -> StageReport:
    """Rank, measure, ask the LLM, and write report, numbers and values."""
    from embedder.evaluation.comparison import summarise
    from embedder.evaluation.evaluation_report import results_table, write_report
    from embedder.evaluation.examples import won_and_lost
    from embedder.evaluation.gains import gains
    from embedder.evaluation.measurements import VALUES, read_datasets, value_rows
    from ray_jobs.retrieval.judges import ask_llm
    from ray_jobs.retrieval.passages import named_texts
    from ray_jobs.retrieval.retrievers import all_rankings, enter_rankings

    measured = read_datasets(config, config.evaluate.split)
    rankings, cut_lines = all_rankings(config)
    for values in measured:
        if "none" in rankings:
            values.rankings["none"] = {}  # asked about without passages, but not measured as a ranking
        enter_rankings(config, values, rankings)
    lines = ask_llm(config, measured) if config.evaluate.asks else []
    results = summarise(measured, config.evaluate)
    for values in measured:
        texts_of = partial(named_texts, config.paths, values.name)
        results["datasets"][values.name]["examples"] = won_and_lost(values, texts_of, config.evaluate)
    folder = config.paths.work / "evaluation" / config.evaluate.split
    write_table(value_rows(measured), VALUES, folder / "values.parquet")
    page = write_report(results, folder, config.paths.work.name)
    write_json(gains(results), config.paths.summary)
    show_table(console(), results_table(results))
    count = sum(len(values.rows) for values in measured)
    report = StageReport("evaluate", count, "queries", details={"results": str(folder / "results.json")})
    failed = [f"{values.name} {query}: {why}" for values in measured for query, why in values.errors.items()]
    if failed:
        lines.append(f"{len(failed):,} queries could not be asked and count for no retriever; first {failed[0]}")
    report.lines = [*cut_lines, *lines, f"report: {page}"]
    return report


JOB = Job("evaluate", __doc__, check, run)

if __name__ == "__main__":
    main(JOB)
