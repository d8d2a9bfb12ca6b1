"""Encoders measured on the same queries, with intervals and what each gains over the first one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from embedder.config.evaluate import EvaluateConfig, FolderRetriever
from embedder.config.run import EncoderConfig
from embedder.config.tasks import TaskSpec
from embedder.data.records import QUERY
from embedder.errors import ConfigError, DataError, shown
from embedder.evaluation.comparison import summarise
from embedder.evaluation.evaluations import EVALUATIONS
from embedder.evaluation.local import EvaluationSet, rank
from embedder.evaluation.measurements import DatasetValues
from embedder.hashing import content_id
from embedder.mining.ranking import Ranking
from embedder.models.device import resolve_device
from embedder.models.onnx import load_inference_encoder
from embedder.notebook.encoding import Encoder, task_named
from embedder.notebook.workers import Workers, refuse_single_text


@dataclass(frozen=True)
class EncoderMeasure:
    """One measure of one encoder, with its 95 % interval."""

    measure: str
    encoder: str
    value: float
    low: float
    high: float
    gain: float | None
    """The value less that of the first encoder; None for the first one."""
    p: float | None
    """P-value of the gain: a two-sided paired randomisation test."""


def evaluate(
    encoders: Mapping[str, Encoder],
    passages: Mapping[str, str],
    queries: Mapping[str, Sequence[str]],
    task: str = "qa",
    settings: EvaluateConfig | None = None,
    workers: Workers | None = None,
) -> list[EncoderMeasure]:
    """Rank all passages for each query with each encoder, and measure the rankings.

    Args:
        encoders: By a name of your choice. The first one is what the others are compared with.
        passages: Texts by id.
        queries: For each query text the ids of the passages that are right.
        task: Name of a task, whose instructions each encoder takes.
        settings: `cutoffs`, `depth`, `resamples` and `seed`, as in the section `evaluate`; the rest is not used.
        workers: None: this process.

    Raises:
        ConfigError: there is no encoder, or the task is not known.
        DataError: a query names a passage that is not there, or none.
    """
    if not encoders:
        raise ConfigError("encoders is empty; give at least one by name")
    names = list(encoders)
    retrievers = [FolderRetriever(name=name, model=encoders[name].settings.model) for name in names]
    used = (settings or EvaluateConfig()).model_copy(update={"retrievers": retrievers, "baseline": names[0]})
    dataset = _evaluation_set(passages, queries, task)
    parts = [_Contender(encoder.settings, task_named(encoder.tasks, task)) for encoder in encoders.values()]
    if workers is None:
        rankings = [
            rank(encoders[name].loaded, part.spec, dataset, used.depth) for name, part in zip(names, parts, strict=True)
        ]
    else:
        gpus = max(part.settings.gpus_per_actor for part in parts)
        rankings = workers.map(partial(_ranking, dataset, used.depth), parts, gpus)
    dataset.measured.enter_rankings(dict(zip(names, rankings, strict=True)), used.cutoffs)
    measures = summarise([dataset.measured], used)["tasks"][task]["measures"]
    return [
        EncoderMeasure(
            measure,
            name,
            **entry["retrievers"][name],
            gain=entry["differences"].get(name, {}).get("value"),
            p=entry["differences"].get(name, {}).get("p"),
        )
        for measure, entry in measures.items()
        for name in names
    ]


@dataclass(frozen=True)
class _Contender:
    """One encoder with the instructions that it is given."""

    settings: EncoderConfig
    spec: TaskSpec


def _ranking(dataset: EvaluationSet, depth: int, gpus: float) -> Callable[[_Contender], dict[str, Ranking]]:
    """What a worker ranks with: an encoder after another."""

    def ranked(part: _Contender) -> dict[str, Ranking]:
        return rank(load_inference_encoder(part.settings, resolve_device(gpus)), part.spec, dataset, depth)

    return ranked


def _evaluation_set(passages: Mapping[str, str], queries: Mapping[str, Sequence[str]], task: str) -> EvaluationSet:
    if not passages or not queries:
        raise DataError(f"there are {len(passages)} passages and {len(queries)} queries; give some of both")
    for text in (*passages.values(), *queries):
        if not isinstance(text, str) or text.encode("utf-8", "replace").decode() != text:
            raise DataError(f"{shown(text)} is no text; passages and queries are Unicode texts")
    # In place of ids that may be anything: those of the measures go through C.
    numbers = {name: f"{number:09d}" for number, name in enumerate(passages)}
    rows = []
    for query, wanted in queries.items():
        refuse_single_text(wanted, f"the passages of query {query[:40]!r}")
        missing = [each for each in wanted if each not in passages]
        if missing or not wanted:
            named = f"passage {missing[0]!r}, which is not among the passages" if missing else "no passage"
            raise DataError(f"query {query[:40]!r} names {named}")
        own = {"task": task, "dataset": "notebook", "query": query, "query_id": content_id(task, query)[:16]}
        positives = [numbers[each] for each in wanted]
        rows.append({**dict.fromkeys(QUERY.names), **own, "answers": [], "positive_ids": positives})
    # Rankings alone, whatever the task: an LLM that could be asked is not here.
    texts = {numbers[name]: text for name, text in passages.items()}
    return EvaluationSet(DatasetValues("notebook", task, EVALUATIONS["tool"], rows), texts)
