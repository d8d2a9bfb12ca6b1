"""Measures ranking files in tasks. The driver keeps the values, and of each ranking the head that prompts and examples
show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ray

from embedder.config.evaluate import EvaluateConfig
from embedder.evaluation.examples import PASSAGES
from embedder.evaluation.measurements import DatasetValues
from embedder.evaluation.retrieval import (
    PerQuery,
    Relevant,
    measure,
    measure_names,
    own_examples,
    without_itself,
)
from embedder.mining.ranking import Ranking
from ray_jobs.cluster.task_tree import some_at_a_time
from ray_jobs.retrieval.ranking_files import QueryRows, RankingFiles

Heads = dict[str, Ranking]
"""The first passages of each query's ranking."""


def measure_files(values: DatasetValues, retriever: str, files: RankingFiles, settings: EvaluateConfig) -> None:
    """Enter what the rankings of one retriever are worth, in which no query finds itself, and their heads."""
    own, head = own_examples(values.rows), max(PASSAGES, settings.passages.get(values.evaluation.name, 1))
    names = measure_names(values.evaluation, settings.cutoffs)

    def start(rows: QueryRows) -> ray.ObjectRef:
        asked = [row["query_id"] for row in values.rows[rows.first : rows.last]]
        of_pass = [{each: known[each] for each in asked if each in known} for known in (own, values.relevant)]
        return measure_pass.remote(files, rows, *of_pass, names, (settings.depth, head))

    most = 2 * int(ray.cluster_resources().get("CPU", 1))
    ended = {rows.first: found for rows, found in some_at_a_time(start, files.passes(), most)}
    heads: Heads = {}
    measured: PerQuery = {}
    # In the order of the queries, whichever task ended first.
    for _, (head_of, values_of) in sorted(ended.items()):
        heads |= head_of
        for name, by_query in values_of.items():
            measured.setdefault(name, {}).update(by_query)
    values.enter_measured(retriever, heads, measured)


@ray.remote(num_cpus=1)
def measure_pass(
    files: RankingFiles,
    rows: QueryRows,
    own: Mapping[str, set[str]],
    relevant: Relevant,
    names: Sequence[str],
    lengths: tuple[int, int],
) -> tuple[Heads, PerQuery]:
    """Ray task: the heads and the values of some queries' rankings; `lengths` are those of a ranking and of a head."""
    depth, head = lengths
    rankings = without_itself(dict(files.named(rows)), depth, own)
    values = measure(rankings, relevant, names) if relevant else {}
    return {query: ranking[:head] for query, ranking in rankings.items()}, values
