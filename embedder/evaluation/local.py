"""Measures encoders on a split in one process and without Ray, as a study of many encoders needs it.

sets = read_sets(config, "dev", queries=200)
for name, encoder in encoders:
    measure_encoder(name, encoder, tasks, sets, settings)      # rankings: seconds
measure_without_encoder("recency", sets, settings, words)       # what needs no model
ask_llm(sets, llm_judge(config, settings), settings, folder)    # likelihoods: equal prompts of encoders once
summarise([dataset.measured for dataset in sets], settings)     # means, intervals, differences
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from embedder.config.evaluate import EvaluateConfig, FolderRetriever
from embedder.config.language import WordsConfig
from embedder.config.run import RunConfig
from embedder.config.tasks import TaskSpec
from embedder.console import console, progress
from embedder.data.records import Split, passage_column
from embedder.evaluation.asked import plan_units
from embedder.evaluation.judge import LlmJudge
from embedder.evaluation.measurements import DatasetValues, ask_about, enter_all_replies, read_datasets
from embedder.evaluation.replies import judge_fingerprint, judged_ledger
from embedder.evaluation.retrieval import own_examples, random_rankings, recency_rankings, without_itself
from embedder.hashing import row_seed
from embedder.labelling.prompts import read_shot_pools
from embedder.mining.bm25 import LexicalIndex
from embedder.mining.passage_search import search_on_device
from embedder.mining.ranking import Ranking
from embedder.models.device import resolve_device
from embedder.models.encoder import TextEncoder, encode
from embedder.models.onnx import load_inference_encoder
from embedder.models.open_llm import open_llm
from embedder.models.st_folder import folder_encoder, read_folder
from embedder.storage.object_store import AnyPath

BASE = "base"
WithoutEncoder = Literal["none", "random", "recency", "bm25"]
"""The retrievers of `evaluate` that need no model; `none` ranks nothing."""
WITHOUT_ENCODER: tuple[WithoutEncoder, ...] = get_args(WithoutEncoder)


@dataclass
class EvaluationSet:
    """One dataset with the passages that its queries search, held in memory."""

    measured: DatasetValues
    texts: dict[str, str]
    """Passages by id."""


def compare_encoders(
    config: RunConfig, settings: EvaluateConfig, models: Sequence[str], queries: int | None
) -> list[DatasetValues]:
    """The split measured with one model for each of the retrievers and, where the settings say so, with the LLM.

    A model is a folder, `base` for the run's own, or the name of a retriever that needs none.
    """
    sets = read_sets(config, settings.split, queries)
    for retriever, model in zip(settings.retrievers, models, strict=True):
        if kind := next((kind for kind in WITHOUT_ENCODER if kind == model), None):
            measure_without_encoder(kind, sets, settings, config.words)
            continue
        if model == BASE:
            encoder, tasks = config.encoder, config.base_tasks
        else:
            pooling = None if read_folder(model).pooling else config.encoder.pooling
            folder = FolderRetriever(name=retriever.name, model=model, pooling=pooling)
            encoder, tasks = folder_encoder(folder, config.encoder, config.tasks)
        loaded = load_inference_encoder(encoder, resolve_device(config.encoder.gpus_per_actor))
        measure_encoder(retriever.name, loaded, tasks, sets, settings)
    if settings.asks:
        ask_llm(sets, llm_judge(config, settings), settings, config.paths.work / "evaluation")
    return [dataset.measured for dataset in sets]


def read_sets(config: RunConfig, split: Split, queries: int | None = None) -> list[EvaluationSet]:
    """The prepared datasets that have queries in a split; a seeded choice of `queries` of each.

    Raises:
        DataError: none has; `prepare` has not run, or its sources have no such split.
    """
    sets = []
    for measured in read_datasets(config, split):
        # In the order of `chosen_queries`, so that a limit keeps the queries that the LLM is asked about first.
        measured.rows.sort(key=lambda row: row_seed(config.evaluate.seed, "judge", row["dataset"], row["query_id"]))
        measured.rows = measured.rows[:queries]
        sets.append(EvaluationSet(measured, passage_column(config.paths.corpus / measured.name, "text")))
    return sets


def rank(encoder: TextEncoder, spec: TaskSpec, dataset: EvaluationSet, depth: int) -> dict[str, Ranking]:
    """The `depth` best passages of each query by inner product, exact, ties by id, no query itself."""
    rows = dataset.measured.rows
    pools = [None if row["pool_ids"] is None else set(row["pool_ids"]) for row in rows]
    # Where every query brings a pool, passages outside of all pools need no vector.
    wanted = set(dataset.texts) if None in pools else set().union(*(pool for pool in pools if pool is not None))
    ids = [passage_id for passage_id in dataset.texts if passage_id in wanted]
    passage_PD = encode(encoder, [dataset.texts[passage_id] for passage_id in ids], spec, "passage")
    query_QD = encode(encoder, [row["query"] for row in rows], spec, "query")
    own = own_examples(rows)
    # So many passages more, because a query may find itself, which does not count.
    deeper = depth + max(map(len, own.values()), default=0)
    rankings = search_on_device(query_QD, pools, ids, passage_PD, deeper, encoder.device)
    return without_itself({row["query_id"]: ranking for row, ranking in zip(rows, rankings, strict=True)}, depth, own)


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
    for dataset in sets:
        rankings = rank(encoder, tasks[dataset.measured.task], dataset, settings.depth)
        dataset.measured.enter_rankings({name: rankings}, settings.cutoffs)


def measure_without_encoder(
    kind: WithoutEncoder, sets: Iterable[EvaluationSet], settings: EvaluateConfig, words: WordsConfig
) -> None:
    """Rank without a model and enter the ranking measures under the name of the kind.

    `none` ranks nothing, and `recency` only where queries bring a history.
    """
    for dataset in sets:
        if kind == "none":
            dataset.measured.rankings[kind] = {}  # asked about without passages, but not measured as a ranking
        elif kind != "recency" or dataset.measured.evaluation.has_history:
            rankings = rank_without_encoder(kind, dataset, settings.depth, settings.seed, words)
            dataset.measured.enter_rankings({kind: rankings}, settings.cutoffs)


def rank_without_encoder(
    kind: Literal["random", "recency", "bm25"], dataset: EvaluationSet, depth: int, seed: int, words: WordsConfig
) -> dict[str, Ranking]:
    """The `depth` first passages of each query as one of the retrievers that need no model orders them."""
    rows = dataset.measured.rows
    own = own_examples(rows)
    deeper = depth + max(map(len, own.values()), default=0)
    if kind == "recency":
        rankings = recency_rankings(rows, deeper)
    elif kind == "random":
        rankings = random_rankings(rows, list(dataset.texts), deeper, seed)
    else:
        index = LexicalIndex(list(dataset.texts), list(dataset.texts.values()), words.stop_words)
        found = index.search([row["query"] for row in rows], [row["pool_ids"] for row in rows], deeper)
        rankings = {row["query_id"]: ranking for row, ranking in zip(rows, found, strict=True)}
    return without_itself(rankings, depth, own)


def ask_llm(sets: Sequence[EvaluationSet], judge: LlmJudge, settings: EvaluateConfig, folder: AnyPath) -> int:
    """Let the LLM score (and answer, if `settings.generate_answers`) with the passages of every encoder so far.

    Replies are kept in `folder`, so that a prompt is computed once whichever encoder or run it comes from. Returns how
    many prompts were computed now.
    """
    fingerprint = judge_fingerprint(judge.llm, judge.tasks, settings, judge.shot_pools)
    measured, texts = [dataset.measured for dataset in sets], {dataset.measured.name: dataset.texts for dataset in sets}
    asked = ask_about(measured, lambda name, _: texts[name], settings, fingerprint)
    ledger = judged_ledger(folder)
    units = plan_units(asked.rows.values(), settings.unit_queries, ledger.done())
    total = sum(map(len, units))
    with progress("LLM", total, console()) as counter:
        for unit in units:
            ledger.commit(judge.judge(unit))
            counter.advance(len(unit))
    enter_all_replies(measured, asked, ledger)
    return total


def llm_judge(config: RunConfig, settings: EvaluateConfig) -> LlmJudge:
    """The run's LLM, loaded, with the worked examples of its training rows.

    Raises:
        ConfigError: the run names no LLM.
    """
    gpus = settings.gpus_per_actor
    lm = open_llm(config.needed_llm, config.paths.cache, gpus)
    return LlmJudge(lm, config.needed_llm, config.tasks, settings, read_shot_pools(config))
