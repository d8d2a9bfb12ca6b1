"""Training rows in a folder: Arrow files to memory-map, and the order in which they are numbered. Needs no torch.

    part-00000.arrow ...   rows of TRAINING_ROW as they came, in record batches of BATCH_ROWS
    order.npy              int64: the places of all rows (parts one after another), task by task in their order
    rows.json              RowFiles; it comes last

Parts are written apart from one another, so that nobody ever holds all rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedder.config.tasks import TaskSpec
from embedder.labelling.rewards import is_flat, spread
from embedder.storage.json_file import write_json
from embedder.storage.object_store import AnyPath, replacing
from embedder.training.group_rows import (
    TRAINING_ROW,
    id_hashes,
    known_answers,
    known_positives,
    row_tokens,
    training_row,
)

BATCH_ROWS = 256
"""Rows of a record batch, which is what is read of the file for a row of it."""
ORDER = "order.npy"
MANIFEST = "rows.json"


@dataclass(frozen=True)
class RowFiles:
    """The description of a folder of training rows."""

    sizes: dict[str, int]
    """Rows by task, sorted by name."""
    group_size: int
    """Candidates of the largest group."""
    spreads: dict[str, float]
    """By task, the median spread of the rewards of its rows that are not flat; 1 without any."""
    tokens: float
    """Of all rows, as estimated."""
    parts: list[dict[str, Any]]
    """`name`, `rows` and `bytes` of each file."""


@dataclass(frozen=True)
class Part:
    """One file of rows, as its writer tells of it; arrays have a number a row."""

    name: str
    bytes: int
    tasks: list[str]
    task: NDArray[np.int64]
    """Position of the row's task in `tasks`."""
    rank: NDArray[np.int64]
    """Where the row stands among all rows of its task, and maybe of others."""
    spreads: dict[str, NDArray[np.float64]]
    """By task, of the rows whose rewards are not flat."""
    left_out: Counter[str]
    """Groups without a row, by task and reason."""
    group_size: int
    tokens: float


class PartWriter:
    """Writes a part, or only counts, holding BATCH_ROWS rows at a time."""

    def __init__(self, folder: AnyPath | None, name: str, tasks: Mapping[str, TaskSpec], most_tokens: int) -> None:
        """`folder`: None writes no file; `most_tokens`: of a text, for the estimate."""
        self._path = None if folder is None else folder / name
        self._name, self._specs, self._most_tokens = name, tasks, most_tokens
        self._tasks, self._task, self._rank = list[str](), list[int](), list[int]()
        self._spreads: dict[str, list[float]] = {}
        self._left_out: Counter[str] = Counter()
        self._group_size, self._tokens, self._bytes = 0, 0.0, 0
        self._rows: list[dict[str, Any]] = []
        self._stack = ExitStack()

    def __enter__(self) -> PartWriter:
        if self._path is not None:
            self._file = self._stack.enter_context(replacing(self._path))
            self._writer = pa.ipc.new_file(self._file, TRAINING_ROW)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            # Tells the file that it is not to appear.
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            self._flush()
            if self._path is not None:
                self._writer.close()
                self._bytes = self._file.tell()

    def add(self, task: str, row: dict[str, Any] | str, rank: int) -> None:
        """Write a row of `training_row`, or count why there is none."""
        if isinstance(row, str):
            self._left_out[f"{task}: {row}"] += 1
            return
        if task not in self._tasks:
            self._tasks.append(task)
        self._task.append(self._tasks.index(task))
        self._rank.append(rank)
        self._group_size = max(self._group_size, len(row["candidates"]))
        self._tokens += row_tokens(row, self._specs[task], self._most_tokens)
        self._rows.append(row)
        if len(self._rows) == BATCH_ROWS:
            self._flush()

    def part(self) -> Part:
        """The part that was written; only after the end."""
        return Part(
            self._name,
            self._bytes,
            self._tasks,
            np.array(self._task, dtype=np.int64),
            np.array(self._rank, dtype=np.int64),
            {task: np.array(values) for task, values in self._spreads.items()},
            self._left_out,
            self._group_size,
            self._tokens,
        )

    def _flush(self) -> None:
        if not self._rows:
            return
        table = pa.Table.from_pylist(self._rows, schema=TRAINING_ROW)
        # As they will be read, because rewards may come in more digits than are kept.
        for row, rewards in zip(self._rows, table["rewards"].to_pylist(), strict=True):
            if rewards and not is_flat(rewards):
                self._spreads.setdefault(row["task"], []).append(spread(rewards))
        if self._path is not None:
            self._writer.write_table(table)
        self._rows = []


def describe(parts: Sequence[Part]) -> tuple[RowFiles, NDArray[np.int64]]:
    """What parts hold together, and the places of their rows in order: by task and rank."""
    names = sorted({task for part in parts for task in part.tasks})
    empty = np.empty(0, dtype=np.int64)
    numbers = [np.array([names.index(task) for task in part.tasks], dtype=np.int64) for part in parts]
    task = np.concatenate([empty, *(own[part.task] for own, part in zip(numbers, parts, strict=True))])
    rank = np.concatenate([empty, *(part.rank for part in parts)])
    counts = np.bincount(task, minlength=len(names)).tolist()
    spreads = {name: [part.spreads[name] for part in parts if name in part.spreads] for name in names}
    found = RowFiles(
        dict(zip(names, counts, strict=True)),
        max((part.group_size for part in parts), default=0),
        {name: float(np.median(np.concatenate(own))) if own else 1.0 for name, own in spreads.items()},
        sum(part.tokens for part in parts),
        [{"name": part.name, "rows": len(part.rank), "bytes": part.bytes} for part in parts],
    )
    return found, np.lexsort((rank, task))


def finish_rows(folder: AnyPath, parts: Sequence[Part]) -> RowFiles:
    """Write the order of the rows, and then the description of the folder."""
    found, order = describe(parts)
    with replacing(folder / ORDER) as file:
        np.save(file, order)
    write_json(asdict(found), folder / MANIFEST)
    return found


def write_training_rows(
    groups: Sequence[dict[str, Any]],
    tasks: Mapping[str, TaskSpec],
    folder: AnyPath,
    positive_ids: Mapping[tuple[str, str], Sequence[str]],
    example_ids: Mapping[tuple[str, str], Sequence[str]] | None = None,
) -> tuple[Counter[str], Counter[str]]:
    """Write the usable groups of a list as one part; returns rows by task, and left-out groups by task and reason.

    `positive_ids`: by (dataset, query_id), the ids of known positives, in the group or not; `example_ids`: in the same
    way, those of the query itself as a worked example.
    """
    known = known_positives(groups, positive_ids)
    answers = known_answers(groups, tasks)
    with PartWriter(folder, part_name(0), tasks, most_tokens=0) as writer:
        for rank, group in enumerate(groups):
            own = (example_ids or {}).get((group["dataset"], group["query_id"]), ())
            positives, others = known[group["task"], group["query"]], answers.get(group["dataset"])
            spec, examples = tasks[group["task"]], id_hashes(group["dataset"], own)
            writer.add(group["task"], training_row(group, spec, positives, examples, others), rank)
    part = writer.part()
    return Counter(finish_rows(folder, [part]).sizes), part.left_out


def part_name(number: int) -> str:
    """The file of a part."""
    return f"part-{number:05d}.arrow"
