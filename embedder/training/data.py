"""Labelled groups as training rows: one memory-mapped Arrow file that every worker reads by row number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from embedder.records import content_id
from embedder.tasks import TaskSpec

TRAINING_ROW = pa.schema(
    [
        ("task", pa.string()),
        ("query", pa.string()),
        ("candidates", pa.list_(pa.string())),
        ("rewards", pa.list_(pa.float32())),
    ]
)
"""`rewards`: the LLM's rewards, or for the contrastive loss 1 for a known positive and 0 for the others."""


@dataclass(frozen=True)
class Batch:
    """This worker's share of a global batch: B queries with M candidates each (short groups are padded)."""

    queries: list[str]
    candidates: list[str]
    """B x M texts, group by group; padding repeats the group's last candidate."""
    reward_BM: Tensor
    valid_BM: Tensor
    key_BM: Tensor
    """Hash of each candidate's text, by which equal candidates are found over workers."""


def training_row(group: dict[str, Any], task: TaskSpec) -> dict[str, Any] | str:
    """The training row of a labelled group, or why it cannot be trained on."""
    if not group["candidate_texts"]:
        return "no candidates"
    if task.loss == "contrastive":
        rewards = [float(known) for known in group["relevance"]]
        if not any(rewards):
            return "no known positive for the contrastive loss"
    elif group["rewards"] is None:
        return f"no rewards: {group['error'] or 'not labelled'}"
    else:
        rewards = list(group["rewards"])
        if task.skip_flat and max(rewards) == min(rewards):
            return "all rewards are equal"
    return {"task": group["task"], "query": group["query"], "candidates": group["candidate_texts"], "rewards": rewards}


def write_training_rows(
    groups: Iterable[dict[str, Any]], tasks: dict[str, TaskSpec], path: Path
) -> tuple[Counter[str], Counter[str]]:
    """Write the usable groups sorted by task; returns rows by task, and left-out groups by task and reason."""
    kept: list[dict[str, Any]] = []
    left_out: Counter[str] = Counter()
    for group in groups:
        row = training_row(group, tasks[group["task"]])
        if isinstance(row, str):
            left_out[f"{group['task']}: {row}"] += 1
        else:
            kept.append(row)
    kept.sort(key=lambda row: row["task"])
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, TRAINING_ROW) as writer:
        writer.write_table(pa.Table.from_pylist(kept, schema=TRAINING_ROW))
    return Counter(row["task"] for row in kept), left_out


class TrainingRows:
    """Rows by task and number; the file stays on disk and only the rows asked for are decoded."""

    def __init__(self, path: Path) -> None:
        self._table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        self.sizes: dict[str, int] = {}
        self._first: dict[str, int] = {}
        for position, task in enumerate(self._table["task"].to_pylist()):
            self._first.setdefault(task, position)
            self.sizes[task] = self.sizes.get(task, 0) + 1
        self.group_size: int = pc.max(pc.list_value_length(self._table["candidates"])).as_py() or 0
        """M, candidates of the largest group."""

    def batch(self, task: str, rows: list[int]) -> Batch:
        """The batch of some rows of one task, padded to the largest group."""
        group_size = self.group_size
        taken = self._table.take(pa.array([self._first[task] + row for row in rows])).to_pylist()
        reward_BM = torch.zeros(len(taken), group_size)
        valid_BM = torch.zeros(len(taken), group_size, dtype=torch.bool)
        candidates: list[str] = []
        for i, row in enumerate(taken):
            count = len(row["candidates"])
            reward_BM[i, :count] = torch.tensor(row["rewards"])
            valid_BM[i, :count] = True
            candidates += row["candidates"] + [row["candidates"][-1]] * (group_size - count)
        keys = [int(content_id(text)[:15], 16) for text in candidates]
        key_BM = torch.tensor(keys, dtype=torch.long).view(len(taken), group_size)
        return Batch([row["query"] for row in taken], candidates, reward_BM, valid_BM, key_BM)
