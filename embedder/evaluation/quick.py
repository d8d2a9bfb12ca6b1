"""One encoder on a split, in one process and without Ray: what a study of many encoders needs.

    sets = read_sets(config, "dev", queries=200)
    for name, encoder in encoders:
        measure_encoder(name, encoder, tasks, sets, settings)      # rankings: seconds
    ask_llm(sets, llm_judge(config, settings), settings, folder)    # likelihoods: equal prompts of encoders once
    value_arrays(sets[0], "nDCG@10", "my encoder")                  # (query ids, values, weights)
    summarise([one.measured for one in sets], settings)             # means, intervals, differences

`group_values` is the quickest: it needs labelled groups, and neither the corpus nor the LLM.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from embedder.config import RunConfig
from embedder.encode import encode
from embedder.errors import DataError
from embedder.evaluate_config import EvaluateConfig
from embedder.evaluation.asking import Asked, ask_all, chosen_queries, plan_units
from embedder.evaluation.evaluations import evaluation_of
from embedder.evaluation.interface import Value
from embedder.evaluation.judge import LlmJudge, judge_fingerprint, judged_ledger
from embedder.evaluation.retrieval import without_itself
from embedder.evaluation.statistics import Floats
from embedder.evaluation.values import DatasetValues
from embedder.labelling.labeller import ShotPools
from embedder.labelling.prompts import shot_pool
from embedder.lm import load_lm
from embedder.mining.dense import search_block
from embedder.mining.lexical import Ranking
from embedder.model import TextEncoder
from embedder.progress import progress
from embedder.records import PASSAGE, QUERY, Split, parquet_files, read_tables, row_seed
from embedder.reports import console
from embedder.storage import AnyPath
from embedder.tasks import TaskSpec

GroupValues = dict[str, dict[str, dict[str, Value]]]
"""Dataset -> measure -> query id -> value."""


@dataclass
class EvaluationSet:
    """The queries of one dataset, the passages they search, and what is measured on them."""

    measured: DatasetValues
    texts: dict[str, str]
    """Passages by id."""
    answers: dict[str, str | None]
    """Of worked examples, by passage id."""
    rankings: dict[str, dict[str, Ranking]] = field(default_factory=dict)
    """Encoder -> query id -> ranking."""


def read_sets(config: RunConfig, split: Split, queries: int | None = None) -> list[EvaluationSet]:
    """The prepared datasets that have queries in a split; a seeded choice of `queries` of each.

    Raises:
        DataError: none has; `prepare` has not run, or its sources have no such split.
    """
    sets = []
    for folder in sorted(path for path in config.paths.corpus.glob("*") if path.is_dir()):
        path = config.paths.queries / split / f"{folder.name}.parquet"
        rows = read_tables([path], QUERY).to_pylist() if path.is_file() else []
        rows.sort(key=lambda row: row_seed(config.evaluate.seed, "judge", row["dataset"], row["query_id"]))
        if rows:
            evaluation = evaluation_of(rows[0]["task"], folder.name, rows, config.evaluate.evaluations)
            table = read_tables(parquet_files(folder), PASSAGE, ["id", "text", "answer"])
            ids = table["id"].to_pylist()
            texts = dict(zip(ids, table["text"].to_pylist(), strict=True))
            answers = dict(zip(ids, table["answer"].to_pylist(), strict=True))
            measured = DatasetValues(folder.name, rows[0]["task"], evaluation, rows[:queries])
            sets.append(EvaluationSet(measured, texts, answers))
    if not sets:
        raise DataError(f"{config.paths.queries / split}: no queries; give prepare.sources such rows and run prepare")
    return sets


def rank(encoder: TextEncoder, spec: TaskSpec, one: EvaluationSet, depth: int) -> dict[str, Ranking]:
    """The `depth` best passages of each query by inner product, exact, ties by id, no query itself."""
    rows = one.measured.rows
    pools = [None if row["pool_ids"] is None else set(row["pool_ids"]) for row in rows]
    # Of pools only what stands in one is encoded.
    wanted = set(one.texts) if None in pools else set().union(*(pool for pool in pools if pool is not None))
    ids = [passage_id for passage_id in one.texts if passage_id in wanted]
    passage_PD = encode(encoder, [one.texts[passage_id] for passage_id in ids], spec, "key")
    query_QD = encode(encoder, [row["query"] for row in rows], spec, "query")
    found = search_block(query_QD, pools, ids, passage_PD, depth + 1)
    return without_itself({row["query_id"]: ranking for row, ranking in zip(rows, found, strict=True)}, depth)


def measure_encoder(
    name: str,
    encoder: TextEncoder,
    tasks: Mapping[str, TaskSpec],
    sets: Iterable[EvaluationSet],
    settings: EvaluateConfig,
) -> None:
    """Rank with one encoder and enter its ranking measures under a name.

    `tasks` bring the instructions that this encoder gets.
    """
    for one in sets:
        one.rankings[name] = rank(encoder, tasks[one.measured.task], one, settings.depth)
        one.measured.enter_rankings({name: one.rankings[name]}, one.answers, settings.cutoffs)


def ask_llm(sets: Sequence[EvaluationSet], judge: LlmJudge, settings: EvaluateConfig, folder: AnyPath) -> int:
    """Let the LLM score (and answer, if `settings.writes`) with the passages of every encoder so far.

    Replies are kept in `folder`, so that a prompt is computed once whichever encoder or run it comes from. Returns how
    many prompts were computed now.
    """
    fingerprint = judge_fingerprint(judge.llm, judge.tasks, settings, judge.shot_pools)
    asked = Asked()
    for one in sets:
        evaluation = one.measured.evaluation
        chosen = chosen_queries(evaluation, one.measured.rows, settings)
        limits = (settings.passages.get(evaluation.name, 1), fingerprint)
        ask_all(asked, evaluation, chosen, (one.rankings, one.texts), limits)
    ledger = judged_ledger(folder)
    units = plan_units(asked.rows.values(), settings.unit_queries, ledger.done())
    total = sum(map(len, units))
    with progress("LLM", total, console()) as counter:
        for unit in units:
            ledger.commit(judge.judge(unit))
            counter.advance(len(unit))
    replies = {row["row_id"]: row for row in ledger.read(list(asked.rows)).to_pylist()}
    for one in sets:
        one.measured.enter_replies(asked, replies)
    return total


def value_arrays(one: EvaluationSet, measure: str, name: str) -> tuple[list[str], Floats, Floats]:
    """Query ids in order, their values of one measure for one encoder, and the weights."""
    by_query = one.measured.values.get(measure, {}).get(name, {})
    queries = sorted(by_query)
    pairs = np.array([by_query[query] for query in queries], dtype=np.float64).reshape(-1, 2)
    return queries, pairs[:, 0], pairs[:, 1]


def group_values(
    encoder: TextEncoder, tasks: Mapping[str, TaskSpec], groups: Iterable[Mapping[str, Any]]
) -> GroupValues:
    """How well an encoder orders the candidates of groups (records.LABELLED, or GROUP: then positives alone count).

    reward: of the candidate it puts first; regret: what that lacks to the best one; agreement: share of pairs with
    different rewards that it orders as they do, 0.5 for equal scores; log-likelihood: of the desired output with the
    first candidate (nats a token); RR: reciprocal rank of the first known positive.
    """
    values: GroupValues = {}
    for group in groups:
        if not group["candidate_texts"]:
            continue
        spec = tasks[group["task"]]
        query_D = encode(encoder, [group["query"]], spec, "query")[0]
        score_C = encode(encoder, group["candidate_texts"], spec, "key") @ query_D
        for name, value in _ordered(group, score_C).items():
            values.setdefault(group["dataset"], {}).setdefault(name, {})[group["query_id"]] = (value, 1.0)
    return values


def _ordered(group: Mapping[str, Any], score_C: np.ndarray) -> dict[str, float]:
    order = np.argsort(-score_C, kind="stable")
    found: dict[str, float] = {}
    positives = np.flatnonzero(np.array(group["relevance"])[order])
    if len(positives):
        found["RR"] = 1.0 / (int(positives[0]) + 1)
    rewards = group.get("rewards")
    if rewards is None:
        return found
    reward_C = np.array(rewards, dtype=np.float64)
    first = int(order[0])
    found |= {"reward": float(reward_C[first]), "regret": float(reward_C.max() - reward_C[first])}
    wanted, given = np.sign(reward_C[:, None] - reward_C), np.sign(score_C[:, None] - score_C)
    pairs = wanted > 0
    if pairs.any():
        found["agreement"] = float((given[pairs] + 1).mean() / 2)
    if group.get("scores"):
        found["log-likelihood"] = float(group["scores"][first][0])
    return found


def read_shot_pools(config: RunConfig) -> ShotPools:
    """Worked examples by dataset from the prepared training rows, as the job `evaluate` takes them."""
    pools: ShotPools = {}
    for path in parquet_files(config.paths.queries / "train"):
        rows = read_tables([path], QUERY).to_pylist()
        if rows and config.tasks[rows[0]["task"]].shots:
            pools[path.stem] = shot_pool(rows, config.label.seed)
    return pools


def llm_judge(config: RunConfig, settings: EvaluateConfig) -> LlmJudge:
    """The run's LLM, loaded, with the worked examples of its training rows.

    Raises:
        ConfigError: the run names no LLM.
    """
    lm = load_lm(config.named_llm, config.paths.cache)
    return LlmJudge(lm, config.named_llm, config.tasks, settings, read_shot_pools(config))
