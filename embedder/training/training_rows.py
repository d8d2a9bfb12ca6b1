"""Training rows as batches, from the memory-mapped files that every worker reads by row number."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from embedder.config.cutting import PromptedText
from embedder.config.tasks import TaskSpec
from embedder.errors import DataError
from embedder.storage.arrow_files import open_arrow
from embedder.training.batch_plan import BatchPart
from embedder.training.group_rows import TRAINING_ROW
from embedder.training.row_files import BATCH_ROWS, MANIFEST, ORDER, RowFiles

T = TypeVar("T")

TEMPERED = {"graded", "kl", "margin_mse"}
"""Losses that divide rewards by the task's temperature."""
NO_IDENTITY = -1
"""Fills up rows of identities; no hash is negative."""


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


class TrainingRows:
    """Rows by task and number; the files stay on disk and only the rows asked for are decoded."""

    def __init__(self, folder: Path) -> None:
        """Map what `finish_rows` has described.

        Raises:
            DataError: a file is missing, damaged, or not as it was written.
        """
        try:
            self._files = RowFiles(**json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
            # Never unpickles: an array of objects is refused.
            self._order = np.lib.format.open_memmap(folder / ORDER, mode="r")
            self._parts = [_open_part(folder, **part) for part in self._files.parts]
        except (OSError, ValueError, TypeError, pa.ArrowException) as error:
            raise DataError(
                f"{folder}: not readable ({error}); remove it and run `python -m ray_jobs.train`"
            ) from error
        self.sizes = Counter(self._files.sizes)
        counts = list(self._files.sizes.values())
        self._first = dict(zip(self._files.sizes, np.cumsum([0, *counts]).tolist(), strict=False))
        self._ends = np.cumsum([part["rows"] for part in self._files.parts])
        self.group_size = self._files.group_size
        """M, candidates of the largest group."""

    def with_temperatures(self, tasks: Mapping[str, TaskSpec]) -> dict[str, TaskSpec]:
        """The tasks, with the median spread of its rows' rewards as `reward_temperature` where that is null.

        It stays null in tasks without rows, and where the loss divides no rewards.
        """
        found = dict(tasks)
        for name, task in tasks.items():
            if task.reward_temperature is None and task.loss in TEMPERED and self.sizes[name]:
                found[name] = task.model_copy(update={"reward_temperature": self._files.spreads[name]})
        return found

    def rows(self, parts: Sequence[BatchPart]) -> list[dict[str, Any]]:
        """Some rows of TRAINING_ROW, in their order."""
        found = []
        for task, numbers in parts:
            for place in self._order[self._first[task] + np.asarray(numbers, dtype=np.int64)].tolist():
                part = int(np.searchsorted(self._ends, place, side="right"))
                batch, row = divmod(place - int(self._ends[part]) + self._files.parts[part]["rows"], BATCH_ROWS)
                # One batch is looked at for each row: `take` of a table would first join the texts of all files.
                found += self._parts[part].get_batch(batch).slice(row, 1).to_pylist()
        return found

    def names(self, parts: Sequence[BatchPart]) -> list[str]:
        """What the queries of some rows are called, in their order."""
        return [row["name"] for row in self.rows(parts)]

    def batch(self, parts: Sequence[BatchPart]) -> Batch:
        """The batch of some rows, in their order, padded to the largest group."""
        taken = self.rows(parts)
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


def _open_part(folder: Path, name: str, rows: int, bytes: int) -> pa.RecordBatchFileReader:
    """Map a part of that many rows and bytes.

    Raises:
        OSError, pa.ArrowInvalid: it is another file.
    """
    path = folder / name
    if path.stat().st_size != bytes:
        raise pa.ArrowInvalid(f"{name} has {path.stat().st_size} bytes, not {bytes}")
    reader = open_arrow(path, TRAINING_ROW)
    if reader.num_record_batches != -(-rows // BATCH_ROWS):
        raise pa.ArrowInvalid(f"{name} has {reader.num_record_batches} record batches for {rows} rows")
    return reader


def _filled(values: Sequence[T], size: int, fill: T) -> list[T]:
    return [*values, *[fill] * (size - len(values))]


def _padded(lists: Sequence[Sequence[float]], size: int, fill: float) -> Tensor:
    """Lists of at most `size` numbers as the rows of one tensor, filled up at their ends."""
    rows = [_filled(values, size, fill) for values in lists]
    # The type is that of the fill, because rows without a number would have none.
    return torch.tensor(rows, dtype=torch.float32 if isinstance(fill, float) else torch.int64)
