"""A labelled group as a row to train on: what it may learn from, and what is no negative of it. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any, TypeVar

import pyarrow as pa

from embedder.config.tasks import TaskSpec
from embedder.data.worked_examples import KnownAnswers, spaced
from embedder.hashing import content_id
from embedder.labelling.false_negatives import as_good_as_positive
from embedder.labelling.rewards import is_flat
from embedder.run.cost import tokens_of

T = TypeVar("T")

TRAINING_ROW = pa.schema(
    [
        ("task", pa.string()),
        ("name", pa.string()),
        ("query", pa.string()),
        ("candidates", pa.list_(pa.string())),
        ("relevance", pa.list_(pa.int8())),
        ("rewards", pa.list_(pa.float32())),
        ("text_hashes", pa.list_(pa.int64())),
        ("id_hashes", pa.list_(pa.int64())),
        ("answer_hashes", pa.list_(pa.int64())),
        ("known_hashes", pa.list_(pa.int64())),
    ]
)
"""`name`: dataset and id of the query; `relevance`: 1 known positive, 0 not known to be one; `rewards` may be null
where the task's loss needs none; `text_hashes`, `id_hashes`, `answer_hashes`: hashes of the candidates' texts, ids, and
the answers that they give as worked examples (the text's again where there is none); `known_hashes`: those of known
positives of the query that are no candidates of the group, of the query itself where it is a worked example of the
corpus, and of its answers where others are."""


def training_row(
    group: dict[str, Any],
    task: TaskSpec,
    known: frozenset[int] = frozenset(),
    examples: Iterable[int] = (),
    answers: KnownAnswers | None = None,
) -> dict[str, Any] | str:
    """The training row of a labelled group, or why it cannot be trained on.

    `known`: hashes of the texts and ids of all known positives of the query, wherever they were seen. `examples`:
    hashes of the ids of passages that are the query itself as a worked example, which are no negatives of it.
    `answers`: those of the dataset's queries where its passages are worked examples: an example that gives the query's
    own answer is no negative of it.
    """
    texts, rewards = group["candidate_texts"], group["rewards"]
    if not texts:
        return "no candidates"
    hashes_of_texts, hashes_of_ids = candidate_hashes(group)
    relevance = [
        int(bool(given) or not known.isdisjoint(hashes))
        for given, *hashes in zip(group["relevance"], hashes_of_texts, hashes_of_ids, strict=True)
    ]
    if task.loss == "contrastive":
        if not any(relevance):
            return "no known positive for the contrastive loss"
    elif rewards is None:
        return f"no rewards: {group['error'] or 'not labelled'}"
    elif not all(map(isfinite, rewards)):
        return "a reward is not finite"
    elif task.skip_flat and is_flat(rewards):
        return "all rewards are equal"
    own = set(examples)
    as_good = as_good_as_positive(rewards, relevance) if rewards and task.false_negatives != "keep" else []
    if task.false_negatives == "relabel":
        relevance = [int(bool(given) or i in as_good) for i, given in enumerate(relevance)]
    elif as_good:
        # Dropped ones may come back as candidates of other queries of the batch, and are no negatives there either.
        own.update(hashes[i] for hashes in (hashes_of_texts, hashes_of_ids) for i in as_good)
        columns = (texts, rewards, relevance, hashes_of_texts, hashes_of_ids)
        texts, rewards, relevance, hashes_of_texts, hashes_of_ids = (_without(each, as_good) for each in columns)
    answer_hashes = hashes_of_texts
    if answers is not None:
        given = [answers.ending(text) for text in texts]
        answer_hashes = [
            text_hash if answer is None else _hash("answer", answer)
            for answer, text_hash in zip(given, hashes_of_texts, strict=True)
        ]
        own.update(_hash("answer", spaced(answer)) for answer in group["answers"])
    known_hashes = sorted({*known, *own}.difference(hashes_of_texts, hashes_of_ids))
    name = f"{group['dataset']}/{group['query_id']}"
    hashes = (hashes_of_texts, hashes_of_ids, answer_hashes, known_hashes)
    values = (group["task"], name, group["query"], texts, relevance, rewards, *hashes)
    return dict(zip(TRAINING_ROW.names, values, strict=True))


def _without(values: Sequence[T], positions: Sequence[int]) -> list[T]:
    return [value for i, value in enumerate(values) if i not in positions]


def candidate_hashes(group: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Hashes of a group's texts, and of its ids, which are ids of the dataset."""
    texts = [_hash("text", text) for text in group["candidate_texts"]]
    return texts, id_hashes(group["dataset"], group["candidate_ids"])


def id_hashes(dataset: str, ids: Iterable[str]) -> list[int]:
    """Hashes of the ids of a dataset's passages."""
    return [_hash("id", dataset, passage_id) for passage_id in ids]


def own_positives(group: dict[str, Any]) -> set[int]:
    """Hashes of the texts and ids of the known positives among a group's candidates."""
    marked = [number for number, given in enumerate(group["relevance"]) if given]
    texts = {_hash("text", group["candidate_texts"][number]) for number in marked}
    return texts.union(id_hashes(group["dataset"], (group["candidate_ids"][number] for number in marked)))


def known_positives(
    groups: Iterable[dict[str, Any]], positive_ids: Mapping[tuple[str, str], Sequence[str]]
) -> dict[tuple[str, str], frozenset[int]]:
    """All known positives of each (task, query text), as hashes of their texts and ids.

    Those that any group of the same query text has, and the ids that `positive_ids` names for (dataset, query_id),
    of which a group takes only as many as it has room for.
    """
    found: dict[tuple[str, str], set[int]] = {}
    for group in groups:
        ids = positive_ids.get((group["dataset"], group["query_id"]), ())
        known = found.setdefault((group["task"], group["query"]), set())
        known.update(own_positives(group), id_hashes(group["dataset"], ids))
    return {query: frozenset(hashes) for query, hashes in found.items()}


def known_answers(groups: Iterable[dict[str, Any]], tasks: Mapping[str, TaskSpec]) -> dict[str, KnownAnswers]:
    """The answers of all queries of each dataset whose passages are worked examples (`queries_are_examples`)."""
    found: dict[str, set[str]] = {}
    for group in groups:
        if tasks[group["task"]].queries_are_examples:
            found.setdefault(group["dataset"], set()).update(group["answers"])
    return {dataset: KnownAnswers(answers) for dataset, answers in found.items()}


def _hash(*parts: str) -> int:
    """60 bits of a content hash, which fit a signed integer of 64 bits and are never negative."""
    return int(content_id(*parts)[:15], 16)


def row_tokens(row: Mapping[str, Any], task: TaskSpec, most: int) -> float:
    """Estimated tokens of a row, each text with its instruction and cut to `most`."""
    texts = [task.query_instruction + row["query"], *(task.passage_instruction + text for text in row["candidates"])]
    return sum(min(most, tokens_of(len(text))) for text in texts)
