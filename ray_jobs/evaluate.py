"""Compare retrievers on the test queries: BM25, the base encoder, the trained encoder.

    python -m ray_jobs.evaluate --config configs/demo.yaml

reads   prepared/, model/                              records.PASSAGE, records.QUERY
writes  evaluation/results.json, evaluation/comparison.png
        evaluation/answers.parquet                     what the LLM answered or scored, a row a query and retriever

Rankings: recall@k, NDCG@k and reciprocal rank, where relevant passages are known. For icl a training example with the
same answer counts as relevant. With `evaluate.answer_queries` the LLM answers qa queries with no passage and with each
retriever's; with `evaluate.likelihood_queries` it scores the desired output of every task that has a template.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import ray
from rich.table import Table

from embedder.config import RunConfig
from embedder.cost import Work, forward_flops, tokens_of
from embedder.errors import ConfigError
from embedder.evaluation.answers import contains_answer, exact_match, token_f1
from embedder.evaluation.picture import draw_comparison
from embedder.evaluation.retrieval import mean, measure, paired_difference
from embedder.lm import prepare_lm
from embedder.locate import count_parameters, locate_model
from embedder.mining.lexical import Ranking
from embedder.progress import progress
from embedder.records import PASSAGE, read_tables, row_seed, write_json, write_table
from embedder.reports import StageReport, console
from ray_jobs.judges import JUDGED, JudgeBlocks
from ray_jobs.search import dense_rankings, lexical_rankings
from ray_jobs.session import Job, actor_pool, main
from ray_jobs.tables import corpus_files, datasets, passage_texts, queries, shot_pools
from ray_jobs.vectors import ensure_vectors

Values = dict[str, dict[str, dict[str, dict[str, float]]]]
"""Dataset -> measure -> retriever -> query id -> value."""

LIKELIHOOD = "log-likelihood"
JUDGE_ROWS = 16
"""Queries that an LLM actor takes together."""


def check(config: RunConfig) -> Work:
    """Prepared tables and both encoders exist; the LLM too where it is asked for."""
    names = datasets(config)
    locate_model(config.encoder.model)
    trained = locate_model(str(config.paths.model))
    settings = config.evaluate
    lines = [f"{name}: {len(queries(config, 'test', name)):,} test queries" for name in names]
    flops = 0.0
    if settings.answer_queries or settings.likelihood_queries:
        if config.llm is None:
            raise ConfigError("evaluate.answer_queries and likelihood_queries need an `llm` section in the run file")
        parameters = count_parameters(locate_model(config.llm.model))
        judged = settings.answer_queries + settings.likelihood_queries * len(names)
        flops += forward_flops(parameters, 4 * judged * tokens_of(1200))
        lines.append(f"LLM: up to {judged:,} queries with each of 4 retrievers")
    lines.append(f"retrievers: bm25, base ({config.encoder.model}), trained ({trained})")
    return Work("evaluate", lines, flops)


def run(config: RunConfig) -> StageReport:
    """Rank, measure, ask the LLM, and write results, table and picture."""
    rankings = all_rankings(config)
    values: Values = {}
    count = 0
    for name in datasets(config):
        rows = queries(config, "test", name)
        count += len(rows)
        values[name] = {}
        relevant = relevant_passages(config, name, rows)
        for retriever, by_dataset in rankings.items() if any(relevant.values()) else ():
            measured = measure(by_dataset.get(name, {}), relevant, config.evaluate.cutoffs)
            for title, by_query in measured.items():
                values[name].setdefault(title, {})[retriever] = by_query
    judged = judge(config, rankings)
    for row in judged:
        for title, value in _judged_values(row).items():
            values[row["dataset"]].setdefault(title, {}).setdefault(row["retriever"], {})[row["query_id"]] = value
    results = summarise(values, config.evaluate.seed)
    folder = config.paths.mounted / "evaluation"
    write_json(results, folder / "results.json")
    if judged:
        write_table(judged, JUDGED, folder / "answers.parquet")
    draw_comparison(_panels(config, results), folder / "comparison.png")
    console().print(results_table(results))
    report = StageReport("evaluate", count, "test queries", details={"results": str(folder / "results.json")})
    report.lines = [f"results: {folder / 'results.json'}", f"picture: {folder / 'comparison.png'}"]
    return report


def all_rankings(config: RunConfig) -> dict[str, dict[str, dict[str, Ranking]]]:
    """Rankings by retriever, dataset and query id."""
    depth = config.evaluate.depth
    lexical = {name: lexical_rankings(config, "test", name, depth) for name in datasets(config)}
    found: dict[str, dict[str, dict[str, Ranking]]] = {"bm25": {name: ray.get(task) for name, task in lexical.items()}}
    trained = config.encoder.model_copy(update={"model": str(config.paths.model)})
    for retriever, encoder in (("base", config.encoder), ("trained", trained)):
        store, _ = ensure_vectors(config, encoder, ["test"])
        found[retriever] = dense_rankings(config, store, "test", depth)
    return found


def relevant_passages(config: RunConfig, dataset: str, rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """By query id: its known positives; for icl the training examples that have its answer."""
    if not rows or rows[0]["task"] != "icl":
        return {row["query_id"]: row["positive_ids"] for row in rows if row["positive_ids"]}
    examples = read_tables(corpus_files(config, dataset), PASSAGE, ["id", "answer"])
    by_answer: dict[str, list[str]] = {}
    for passage_id, answer in zip(examples["id"].to_pylist(), examples["answer"].to_pylist(), strict=True):
        if answer is not None:
            by_answer.setdefault(answer, []).append(passage_id)
    relevant = {row["query_id"]: by_answer.get(row["answers"][0], []) for row in rows if row["answers"]}
    return {query_id: passages for query_id, passages in relevant.items() if passages}


def judge(config: RunConfig, rankings: dict[str, dict[str, dict[str, Ranking]]]) -> list[dict[str, Any]]:
    """Let the LLM answer and score seeded samples of the test queries, with each retriever's first passages."""
    rows = judge_rows(config, rankings)
    if not rows or config.llm is None:
        return []
    prepare_lm(config.llm, config.paths.cache)
    blocks = [pa.Table.from_pylist(rows[i : i + JUDGE_ROWS], schema=JUDGED) for i in range(0, len(rows), JUDGE_ROWS)]
    judged = ray.data.from_arrow(blocks).map_batches(
        JudgeBlocks,
        fn_constructor_args=(config, ray.put(shot_pools(config))),
        batch_size=JUDGE_ROWS,
        batch_format="pyarrow",
        **actor_pool(config.label.num_actors, config.label.gpus_per_actor),
    )
    finished: list[dict[str, Any]] = []
    with progress("evaluate: LLM", len(rows), console()) as counter:
        for batch in judged.iter_batches(batch_size=None, batch_format="pyarrow"):
            finished += batch.to_pylist()
            counter.advance(batch.num_rows)
    return finished


def judge_rows(config: RunConfig, rankings: dict[str, dict[str, dict[str, Ranking]]]) -> list[dict[str, Any]]:
    """One row for each query, retriever (and none) and kind of judgement, with the passages it found."""
    settings = config.evaluate
    chosen: list[dict[str, Any]] = []
    for name in datasets(config):
        every = queries(config, "test", name)
        rows = sorted(every, key=lambda row: row_seed(settings.seed, "judge", row["query_id"]))
        texts = passage_texts(config, name)
        for retriever in ("none", *rankings):
            for i, row in enumerate(rows):
                kinds = _kinds(config, row, i)
                ranking = [] if retriever == "none" else rankings[retriever][name].get(row["query_id"], [])
                passages = [texts[passage_id] for passage_id, _ in ranking[: settings.passages]]
                fields = {key: row[key] for key in ("task", "dataset", "query_id", "query", "answers")}
                chosen += [{**fields, "retriever": retriever, "kind": kind, "passages": passages} for kind in kinds]
    return chosen


def _kinds(config: RunConfig, row: dict[str, Any], position: int) -> list[str]:
    """What the LLM is asked about the query at this place of the seeded order."""
    if not row["answers"] or config.tasks[row["task"]].template is None:
        return []
    kinds = ["likelihood"] if position < config.evaluate.likelihood_queries else []
    return [*kinds, "answer"] if row["task"] == "qa" and position < config.evaluate.answer_queries else kinds


def _judged_values(row: dict[str, Any]) -> dict[str, float]:
    """The measures of one judged row by title."""
    if row["kind"] == "likelihood":
        return {LIKELIHOOD: row["likelihood"]}
    answer, accepted = row["answer"], row["answers"]
    return {
        "exact match": exact_match(answer, accepted),
        "contains answer": contains_answer(answer, accepted),
        "F1": token_f1(answer, accepted),
    }


def summarise(values: Values, seed: int) -> dict[str, Any]:
    """Means, numbers of queries, and the difference of trained to base with its interval, by dataset and measure."""
    results: dict[str, Any] = {}
    for dataset, measures in values.items():
        for title, retrievers in measures.items():
            entry: dict[str, Any] = {name: mean(by_query) for name, by_query in retrievers.items()}
            entry["queries"] = max(len(by_query) for by_query in retrievers.values())
            difference = paired_difference(retrievers.get("trained", {}), retrievers.get("base", {}), seed)
            if difference is not None:
                entry["trained_minus_base"] = dict(zip(("mean", "low", "high"), difference, strict=True))
            results.setdefault(dataset, {})[title] = entry
    return results


def results_table(results: dict[str, Any]) -> Table:
    """The results as a console table."""
    table = Table("dataset", "measure", "queries", "none", "bm25", "base", "trained", "trained - base [95 %]")
    for dataset, measures in sorted(results.items()):
        for title, entry in measures.items():
            cells = [
                "-" if entry.get(name) is None else f"{entry[name]:.3f}" for name in ("none", "bm25", "base", "trained")
            ]
            change = entry.get("trained_minus_base")
            shown = f"{change['mean']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]" if change else "-"
            table.add_row(dataset, title, str(entry["queries"]), *cells, shown)
        table.add_section()
    return table


def _panels(config: RunConfig, results: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """What the picture shows: NDCG at the largest cutoff, answers, and the gain in log-likelihood."""
    ndcg = f"nDCG@{max(config.evaluate.cutoffs)}"
    panels: dict[str, dict[str, dict[str, float]]] = {}
    for shown in (ndcg, "exact match", "F1"):
        title = f"{shown} (higher is better)"
        panels[title] = {name: _bars(measures[shown]) for name, measures in results.items() if shown in measures}
    title = "log-likelihood of the desired output given the first passage, gain over no passage (nats a token)"
    panels[title] = {}
    for name, measures in results.items():
        if LIKELIHOOD in measures:
            bars = _bars(measures[LIKELIHOOD])
            panels[title][name] = {key: value - bars["none"] for key, value in bars.items() if key != "none"}
    return panels


def _bars(entry: dict[str, Any]) -> dict[str, float]:
    return {name: entry[name] for name in ("none", "bm25", "base", "trained") if entry.get(name) is not None}


JOB = Job("evaluate", __doc__, check, run)

if __name__ == "__main__":
    main(JOB)
