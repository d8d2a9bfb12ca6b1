"""One encoder on a split, in one process and without Ray: what a study of many encoders needs.

sets = read_sets(config, "dev", queries=200)
for name, encoder in encoders:
    measure_encoder(name, encoder, tasks, sets, settings)      # rankings: seconds
ask_llm(sets, llm_judge(config, settings), settings, folder)    # likelihoods: equal prompts of encoders once
summarise([one.measured for one in sets], settings)             # means, intervals, differences
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from embedder.config.evaluate import EvaluateConfig
from embedder.config.run import RunConfig
from embedder.config.tasks import TaskSpec
from embedder.console import console, progress
from embedder.data.records import PASSAGE, QUERY, Split, parquet_files, read_tables
from embedder.errors import DataError
from embedder.evaluation.evaluations import evaluation_of
from embedder.evaluation.judge import LlmJudge, judge_fingerprint, judged_ledger
from embedder.evaluation.measurements import DatasetValues
from embedder.evaluation.questions import Asked, ask_all, chosen_queries, plan_units
from embedder.evaluation.retrieval import without_itself
from embedder.hashing import row_seed
from embedder.labelling.prompts import ShotPools, shot_pool
from embedder.mining.dense import search_block
from embedder.mining.lexical import Ranking
from embedder.models.causal_lm import load_lm
from embedder.models.encode import encode
from embedder.models.encoder import TextEncoder
from embedder.storage.object_store import AnyPath


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
    passage_PD = encode(encoder, [one.texts[passage_id] for passage_id in ids], spec, "passage")
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
    """Let the LLM score (and answer, if `settings.generate_answers`) with the passages of every encoder so far.

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
    lm = load_lm(config.needed_llm, config.paths.cache)
    return LlmJudge(lm, config.needed_llm, config.tasks, settings, read_shot_pools(config))
