"""Which labelled groups a training takes, and in which order, from some bytes a group: none is held. Needs no torch.

Tasks survey chunks of the labels (`survey_groups`); one puts what they found together (`select`), and with it the
chunks are written as training rows, each apart from the others (`ray_jobs/training/data.py`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedder.config.tasks import TaskSpec
from embedder.config.train import ReplayConfig, ValidationConfig
from embedder.data.row_ids import RowIds, pack_ids
from embedder.data.worked_examples import KnownAnswers
from embedder.errors import LabelError
from embedder.hashing import content_id, row_seed
from embedder.training.group_rows import id_hashes, own_positives
from embedder.training.split import greatest_apart, query_key


class HashPairs:
    """Hashes by key, 16 bytes a pair; arrays that Ray shares between the processes of a node."""

    def __init__(self, keys: NDArray[np.uint64], hashes: NDArray[np.int64]) -> None:
        order = np.lexsort((hashes, keys))
        self._keys, self._hashes = keys[order], hashes[order]

    def of(self, keys: Sequence[int] | NDArray[np.uint64]) -> list[list[int]]:
        """The hashes of each key."""
        wanted = np.asarray(keys, dtype=np.uint64)
        first, last = (np.searchsorted(self._keys, wanted, side) for side in ("left", "right"))
        return [self._hashes[a:b].tolist() for a, b in zip(first.tolist(), last.tolist(), strict=True)]


@dataclass(frozen=True)
class ListedIds:
    """By `listed_key`, the ids that the table of queries names: known positives, and own worked examples."""

    positives: HashPairs
    examples: HashPairs


@dataclass
class GroupSurvey:
    """What is kept of the groups of one chunk, in their order."""

    source: int
    """Number of the run that they are labels of; 0 is the run that trains."""
    row_ids: NDArray[np.bytes_]
    tasks: list[str]
    """Of each group, which costs a pointer: there are few names."""
    query_keys: NDArray[np.uint64]
    replay_keys: NDArray[np.uint64]
    digests: NDArray[np.bytes_]
    """Hash of the group, its label, and what is known to be right or its own."""
    known_rows: NDArray[np.int64]
    known_hashes: NDArray[np.int64]
    """Known positives: the group's number in the chunk, and a hash."""
    answers: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    """By dataset and answer, the groups that have it, where the corpus holds worked examples."""


@dataclass(frozen=True)
class Taken:
    """The size and identity of a selection."""

    identity: str
    """Hash of the groups, their labels, and which candidates are known to be right."""
    groups: int
    apart: int
    """Those of them that are kept out of the training."""
    replayed: dict[str, int]
    """Those of them that are of earlier runs, by task."""
    old: int
    """Groups of earlier runs there are."""
    tasks: list[str]
    """Of all of these, and of the groups of earlier runs that were not chosen."""


@dataclass(frozen=True)
class Selection:
    """The groups that are trained on."""

    taken: Taken
    ranks: list[NDArray[np.int64]]
    """By chunk and group: its place among all, or -1 where it is not taken."""
    apart: dict[str, int]
    """By task: the greatest key of a query that is kept out of the training."""
    known: HashPairs
    """The known positives of queries with several groups, by `query_key`."""
    answers: tuple[dict[str, KnownAnswers], dict[str, KnownAnswers]]
    """By dataset, the answers of all queries that are trained on, and of those kept apart."""


@dataclass(frozen=True)
class Seeds:
    """Of what is chosen by hashes of the groups."""

    split: int
    replay: int


def listed_key(dataset: str, query_id: str) -> int:
    """Key of a query in `ListedIds`."""
    return row_seed(0, "listed", dataset, query_id)


def pairs_of(rows: Iterable[dict[str, Any]], column: str, prefix: str) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Keys and hashes of the ids that a column of the table of queries names; datasets are called with a prefix."""
    keys, hashes = list[int](), list[int]()
    for row in rows:
        found = id_hashes(prefix + row["dataset"], row[column] or ())
        keys += [listed_key(prefix + row["dataset"], row["query_id"])] * len(found)
        hashes += found
    return np.array(keys, dtype=np.uint64), np.array(hashes, dtype=np.int64)


def survey_groups(
    source: int,
    pieces: Iterable[list[dict[str, Any]]],
    listed: ListedIds,
    tasks: Mapping[str, TaskSpec],
    seeds: Seeds,
) -> GroupSurvey:
    """Survey the groups of a chunk, a piece at a time; of LABELLED the columns up to the rewards are enough."""
    ids, names, digests = list[str](), list[str](), list[str]()
    query_keys, replay_keys, known = list[int](), list[int](), list[list[int]]()
    answers: dict[tuple[str, str], list[int]] = {}
    for groups in pieces:
        keys = [listed_key(group["dataset"], group["query_id"]) for group in groups]
        for group, *parts in zip(groups, listed.positives.of(keys), listed.examples.of(keys), strict=True):
            ids.append(group["row_id"])
            names.append(group["task"])
            query_keys.append(query_key(seeds.split, group["task"], group["query"]))
            replay_keys.append(row_seed(seeds.replay, "replay", group["row_id"]) if source else 0)
            digests.append(content_id(group["row_id"], group["label_fingerprint"], *parts))
            known.append(sorted(own_positives(group).union(parts[0])))
            if group["task"] in tasks and tasks[group["task"]].queries_are_examples:
                for answer in group["answers"]:
                    answers.setdefault((group["dataset"], answer), []).append(len(ids) - 1)
    return GroupSurvey(
        source,
        pack_ids(ids),
        names,
        np.array(query_keys, dtype=np.uint64),
        np.array(replay_keys, dtype=np.uint64),
        pack_ids(digests),
        np.repeat(np.arange(len(ids)), [len(each) for each in known]),
        np.array([value for each in known for value in each], dtype=np.int64),
        answers,
    )


def select(
    wanted: Sequence[RowIds | None],
    places: Sequence[str],
    validation: ValidationConfig | None,
    replay: ReplayConfig | None,
    *chunks: GroupSurvey,
) -> Selection:
    """Choose the groups of all chunks that are trained on, each once, the run's own before the replayed ones.

    Args:
        wanted: By source, the ids of the current groups; None: all there are.
        places: By source, where its labels are.
        validation: The split.
        replay: How many groups of the later sources are taken.
        chunks: Together the labels of all sources.

    Raises:
        LabelError: a group has no label.
        ConfigError: the split leaves nothing to train on.
    """
    ids = np.concatenate([np.empty(0, dtype="S16"), *(chunk.row_ids for chunk in chunks)])
    sources = np.repeat([chunk.source for chunk in chunks], [len(chunk.row_ids) for chunk in chunks])
    names = sorted({task for chunk in chunks for task in chunk.tasks})
    numbers = {name: number for number, name in enumerate(names)}
    task = np.array([numbers[task] for chunk in chunks for task in chunk.tasks], dtype=np.int64)
    firsts = []
    for source, own_wanted in enumerate(wanted):
        rows = np.flatnonzero(sources == source)
        if own_wanted is not None:
            _refuse_missing(own_wanted, ids[rows], places[source])
            rows = rows[own_wanted.contains(ids[rows])]
        # Two blocks may hold a row, after a retried actor; blocks are read by name, so that the same one counts.
        firsts.append(rows[np.unique(ids[rows], return_index=True)[1]])
    own, later = firsts[0], np.concatenate([np.empty(0, dtype=np.int64), *firsts[1:]])
    # What is in several runs is taken once, as that of the run itself or else of the first that is replayed.
    later = later[np.sort(np.unique(ids[later], return_index=True)[1])]
    later = later[~np.isin(ids[later], ids[own])]
    replay_keys = np.concatenate([np.empty(0, dtype=np.uint64), *(chunk.replay_keys for chunk in chunks)])
    chosen = later[replayed(task[later], replay_keys[later], ids[later], len(own), replay)]
    taken = np.concatenate([own, chosen])
    ranks = np.full(len(ids), -1, dtype=np.int64)
    ranks[taken] = np.arange(len(taken))
    query_keys = np.concatenate([np.empty(0, dtype=np.uint64), *(chunk.query_keys for chunk in chunks)])
    digests = np.concatenate([np.empty(0, dtype="S16"), *(chunk.digests for chunk in chunks)])
    by_task = {name: taken[task[taken] == number] for name, number in numbers.items()}
    apart = {name: greatest_apart(name, query_keys[rows], validation) for name, rows in by_task.items() if len(rows)}
    found = Taken(
        hashlib.sha256(digests[taken].tobytes()).hexdigest()[:32],
        len(taken),
        sum(int(np.count_nonzero(query_keys[by_task[name]] <= most)) for name, most in apart.items() if most >= 0),
        {name: int(count) for name in names if (count := np.count_nonzero(task[chosen] == numbers[name]))},
        len(later),
        [names[number] for number in np.unique(task[np.concatenate([own, later])]).tolist()],
    )
    parts = np.split(ranks, np.cumsum([len(chunk.row_ids) for chunk in chunks])[:-1])
    known = _known_of_repeated(chunks, query_keys, ranks)
    return Selection(found, parts, apart, known, _answers(chunks, parts, apart))


def replayed(
    task: NDArray[np.int64],
    keys: NDArray[np.uint64],
    ids: NDArray[np.bytes_],
    new: int,
    replay: ReplayConfig | None,
) -> NDArray[np.int64]:
    """Positions of so many old groups that they are `replay.share` of all, those with the least seeded hash (`keys`).

    All if they are fewer. A task keeps its share of the old groups as nearly as whole groups allow.
    """
    if replay is None:
        return np.empty(0, dtype=np.int64)
    count = min(len(task), math.ceil(new * replay.share / (1 - replay.share)))
    order = np.lexsort((ids, keys, task))
    sizes = np.bincount(task)
    number = np.concatenate([np.empty(0, dtype=np.int64), *(np.arange(size) for size in sizes)])
    # Groups of all tasks in the order of the share of their own task that stands before them: however many are taken
    # from the front, each task gives the same share of its groups.
    share = (number + 0.5) / sizes[task[order]] if len(task) else number
    return order[np.lexsort((number, task[order], share))[:count]]


def _refuse_missing(wanted: RowIds, found: NDArray[np.bytes_], place: str) -> None:
    count, first = wanted.missing_from(RowIds([found]))
    if count:
        raise LabelError(f"{place}: {count} of {len(wanted)} rows missing, first {first}; run the job again")


def _answers(
    chunks: Sequence[GroupSurvey], ranks: Sequence[NDArray[np.int64]], apart: Mapping[str, int]
) -> tuple[dict[str, KnownAnswers], dict[str, KnownAnswers]]:
    found: tuple[dict[str, set[str]], dict[str, set[str]]] = ({}, {})
    for chunk, rank in zip(chunks, ranks, strict=True):
        for (dataset, answer), rows in chunk.answers.items():
            for row in rows:
                if rank[row] >= 0:
                    is_apart = int(chunk.query_keys[row]) <= apart[chunk.tasks[row]]
                    found[is_apart].setdefault(dataset, set()).add(answer)
    trained, held = ({name: KnownAnswers(own) for name, own in part.items()} for part in found)
    return trained, held


def _known_of_repeated(
    chunks: Sequence[GroupSurvey], query_keys: NDArray[np.uint64], ranks: NDArray[np.int64]
) -> HashPairs:
    """The known positives of queries with more than one taken group; any other group finds its own in itself."""
    keys, counts = np.unique(query_keys[ranks >= 0], return_counts=True)
    repeated = keys[counts > 1]
    found_keys, hashes = [np.empty(0, dtype=np.uint64)], [np.empty(0, dtype=np.int64)]
    first = 0
    for chunk in chunks:
        rows = first + chunk.known_rows
        kept = (ranks[rows] >= 0) & np.isin(query_keys[rows], repeated)
        found_keys.append(query_keys[rows[kept]])
        hashes.append(chunk.known_hashes[kept])
        first += len(chunk.row_ids)
    return HashPairs(np.concatenate(found_keys), np.concatenate(hashes))
