"""Labelled groups as training rows: one memory-mapped Arrow file that every worker reads by row number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from embedder.config.cutting import PromptedText
from embedder.config.tasks import TaskSpec
from embedder.data.worked_examples import KnownAnswers, spaced
from embedder.errors import DataError
from embedder.hashing import content_id
from embedder.labelling.rewards import is_flat, median_spread
from embedder.storage.arrow_files import open_arrow
from embedder.training.batch_plan import BatchPart

T = TypeVar("T")

TEMPERED = {"graded", "kl", "margin_mse"}
"""Losses that divide rewards by the task's temperature."""

NO_IDENTITY = -1
"""Fills up rows of identities; no hash is negative."""

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


@dataclass(frozen=True)
class Batch:
    """This worker's share of a global batch: B queries with M candidates each (short groups are padded)."""

    tasks: list[str]
    """Name of each query's task."""
    queries: list[str]
    candidates: list[str]
    """B x M texts, group by group; padding repeats the group's last candidate."""
    reward_BM: Tensor
    """0 where the task has none."""
    positive_BM: Tensor
    """True for known positives."""
    valid_BM: Tensor
    identity_BM3: Tensor
    """Hashes of each candidate's text, id and answer, by which equal candidates are found over workers."""
    known_BP: Tensor
    """Hashes of what else is no negative of a query; NO_IDENTITY fills up."""

    def prompted(self, tasks: Mapping[str, TaskSpec]) -> list[PromptedText]:
        """The texts to encode, each after its task's instruction: B queries, then B x M candidates."""
        size = len(self.candidates) // len(self.queries)
        texts = [tasks[name].prompted("query", text) for name, text in zip(self.tasks, self.queries, strict=True)]
        return texts + [
            tasks[self.tasks[k // size]].prompted("passage", text) for k, text in enumerate(self.candidates)
        ]


def training_row(
    group: dict[str, Any],
    task: TaskSpec,
    known: frozenset[int] = frozenset(),
    examples: Sequence[str] = (),
    answers: KnownAnswers | None = None,
) -> dict[str, Any] | str:
    """The training row of a labelled group, or why it cannot be trained on.

    `known`: hashes of the texts and ids of all known positives of the query, wherever they were seen. `examples`: ids
    of passages that are the query itself as a worked example, which are no negatives of it. `answers`: those of the
    dataset's queries where its passages are worked examples: an example that gives the query's own answer is no
    negative of it.
    """
    texts, rewards = group["candidate_texts"], group["rewards"]
    if not texts:
        return "no candidates"
    text_hashes, id_hashes = candidate_hashes(group)
    relevance = [
        int(bool(given) or not known.isdisjoint(hashes))
        for given, *hashes in zip(group["relevance"], text_hashes, id_hashes, strict=True)
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
    own = {_hash("id", group["dataset"], passage_id) for passage_id in examples}
    answer_hashes = text_hashes
    if answers is not None:
        given = [answers.ending(text) for text in texts]
        answer_hashes = [
            text_hash if answer is None else _hash("answer", answer)
            for answer, text_hash in zip(given, text_hashes, strict=True)
        ]
        own.update(_hash("answer", spaced(answer)) for answer in group["answers"])
    known_hashes = sorted({*known, *own}.difference(text_hashes, id_hashes))
    name = f"{group['dataset']}/{group['query_id']}"
    hashes = (text_hashes, id_hashes, answer_hashes, known_hashes)
    values = (group["task"], name, group["query"], texts, relevance, rewards, *hashes)
    return dict(zip(TRAINING_ROW.names, values, strict=True))


def candidate_hashes(group: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Hashes of a group's texts, and of its ids, which are ids of the dataset."""
    texts = [_hash("text", text) for text in group["candidate_texts"]]
    return texts, [_hash("id", group["dataset"], passage_id) for passage_id in group["candidate_ids"]]


def known_positives(
    groups: Iterable[dict[str, Any]], positive_ids: Mapping[tuple[str, str], Sequence[str]]
) -> dict[tuple[str, str], frozenset[int]]:
    """All known positives of each (task, query text), as hashes of their texts and ids.

    Those that any group of the same query text has, and the ids that `positive_ids` names for (dataset, query_id),
    of which a group takes only as many as it has room for.
    """
    found: dict[tuple[str, str], set[int]] = {}
    for group in groups:
        hashes = found.setdefault((group["task"], group["query"]), set())
        for given, *both in zip(group["relevance"], *candidate_hashes(group), strict=True):
            if given:
                hashes.update(both)
        ids = positive_ids.get((group["dataset"], group["query_id"]), ())
        hashes.update(_hash("id", group["dataset"], passage_id) for passage_id in ids)
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


def write_training_rows(
    groups: Sequence[dict[str, Any]],
    tasks: Mapping[str, TaskSpec],
    path: Path,
    positive_ids: Mapping[tuple[str, str], Sequence[str]],
    example_ids: Mapping[tuple[str, str], Sequence[str]] | None = None,
) -> tuple[Counter[str], Counter[str]]:
    """Write the usable groups sorted by task; returns rows by task, and left-out groups by task and reason.

    `positive_ids`: by (dataset, query_id), the ids of known positives, in the group or not; `example_ids`: in the same
    way, those of the query itself as a worked example.
    """
    kept: list[dict[str, Any]] = []
    left_out: Counter[str] = Counter()
    known = known_positives(groups, positive_ids)
    answers = known_answers(groups, tasks)
    for group in groups:
        own = (example_ids or {}).get((group["dataset"], group["query_id"]), ())
        positives, others = known[group["task"], group["query"]], answers.get(group["dataset"])
        row = training_row(group, tasks[group["task"]], positives, own, others)
        if isinstance(row, str):
            left_out[f"{group['task']}: {row}"] += 1
        else:
            kept.append(row)
    # By task, because a row is found by the first row of its task plus its number.
    kept.sort(key=lambda row: str(row["task"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, TRAINING_ROW) as writer:
        writer.write_table(pa.Table.from_pylist(kept, schema=TRAINING_ROW))
    return Counter(row["task"] for row in kept), left_out


class TrainingRows:
    """Rows by task and number; the file stays on disk and only the rows asked for are decoded."""

    def __init__(self, path: Path) -> None:
        try:
            self._table = open_arrow(path, TRAINING_ROW).read_all()
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path}: not readable ({error}); remove it and run `python -m ray_jobs.train`") from error
        tasks: list[str] = self._table["task"].to_pylist()
        self.sizes = Counter(tasks)
        self._first = {task: tasks.index(task) for task in self.sizes}
        self.group_size: int = pc.max(pc.list_value_length(self._table["candidates"])).as_py() or 0
        """M, candidates of the largest group."""

    def with_temperatures(self, tasks: Mapping[str, TaskSpec]) -> dict[str, TaskSpec]:
        """The tasks, with the median spread of its rows' rewards as `reward_temperature` where that is null.

        It stays null in tasks without rows, and where the loss divides no rewards.
        """
        found = dict(tasks)
        for name, task in tasks.items():
            if task.reward_temperature is None and task.loss in TEMPERED and self.sizes[name]:
                found[name] = task.model_copy(update={"reward_temperature": median_spread(self._rewards(name))})
        return found

    def _rewards(self, task: str) -> Iterator[list[float]]:
        """The rewards of each row of a task."""
        column = self._table["rewards"].slice(self._first[task], self.sizes[task])
        for chunk in column.iterchunks():
            yield from chunk.to_pylist()

    def names(self, parts: Sequence[BatchPart]) -> list[str]:
        """What the queries of some rows are called, in their order."""
        names: list[str] = self._table["name"].take(self._positions(parts)).to_pylist()
        return names

    def batch(self, parts: Sequence[BatchPart]) -> Batch:
        """The batch of some rows, in their order, padded to the largest group."""
        taken = self._table.take(self._positions(parts)).to_pylist()
        size = self.group_size
        known = [row["known_hashes"] for row in taken]
        kinds = ("text_hashes", "id_hashes", "answer_hashes")
        hashes = [_padded([row[kind] for row in taken], size, NO_IDENTITY) for kind in kinds]
        return Batch(
            tasks=[row["task"] for row in taken],
            queries=[row["query"] for row in taken],
            candidates=[text for row in taken for text in _filled(row["candidates"], size, row["candidates"][-1])],
            reward_BM=_padded([row["rewards"] or [] for row in taken], size, 0.0),
            positive_BM=_padded([row["relevance"] for row in taken], size, 0).bool(),
            valid_BM=_padded([[1] * len(row["candidates"]) for row in taken], size, 0).bool(),
            identity_BM3=torch.stack(hashes, dim=-1),
            known_BP=_padded(known, max(map(len, known), default=0), NO_IDENTITY),
        )

    def _positions(self, parts: Sequence[BatchPart]) -> pa.Array:
        return pa.array([self._first[part.task] + row for part in parts for row in part.rows])


def _filled(values: Sequence[T], size: int, fill: T) -> list[T]:
    return [*values, *[fill] * (size - len(values))]


def _padded(lists: Sequence[Sequence[float]], size: int, fill: float) -> Tensor:
    """Lists of at most `size` numbers as the rows of one tensor, filled up at their ends."""
    rows = [_filled(values, size, fill) for values in lists]
    # The type is that of the fill, because rows without a number would have none.
    return torch.tensor(rows, dtype=torch.float32 if isinstance(fill, float) else torch.int64)
