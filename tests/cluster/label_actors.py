"""Actors of `label` that tell what they do. Apart from the driver, whose imports would double their start."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import ray

from embedder.config.run import RunConfig
from embedder.labelling.labeller import RewardLabeller
from embedder.labelling.rewards import group_rewards
from embedder.models.memory import BatchLimit
from ray_jobs.cluster.tables import llm_ledger
from ray_jobs.labelling.actors import GroupBlocks, LabelBlocks
from ray_jobs.labelling.block_plan import GroupRows

BEGUN = "begun.jsonl"
"""In `paths.cache`: a line for every unit that an actor begins, with its process and the queries of its groups."""
PAUSE = "pause"
"""In `paths.cache`: seconds that an actor takes over a unit besides the work; no such file: none."""
PEAK = "peak"
"""In `paths.cache`: the most bytes that the actor without an LLM has held."""


def dwell(seconds: float) -> None:
    """Let time pass, where a moment and no condition is what a test is about."""
    time.sleep(seconds)  # a kill at a random moment is tested, so nothing tells when the moment has come


def pause_s(config: RunConfig) -> float:
    """How long an actor dwells on a unit."""
    path = config.paths.cache / PAUSE
    return float(path.read_text()) if path.is_file() else 0.0


class WatchedBlocks(LabelBlocks):
    """Labels as `LabelBlocks` does; says what it begins, and may take its time over it."""

    def label_rows(self, rows: GroupRows, positions: list[int]) -> list[dict[str, Any]]:
        line = {"pid": os.getpid(), "queries": [rows.groups[position]["query_id"] for position in positions]}
        with (self.config.paths.cache / BEGUN).open("a") as file:
            file.write(json.dumps(line) + "\n")
        pause = pause_s(self.config) / 2
        dwell(pause)
        labelled = super().label_rows(rows, positions)
        dwell(pause)
        return labelled


@dataclass
class Idle:
    """Stands for the labeller, its backend and their work where no LLM is asked."""

    pairs: int = 0
    tokens: int = 0
    flops: float = 0.0
    limits: Sequence[BatchLimit] = ()

    @property
    def backend(self) -> Idle:
        return self

    @property
    def work(self) -> Idle:
        return self


class RewardedBlocks(LabelBlocks):
    """Reads and commits as `LabelBlocks` does, but makes the scores up; says how much memory it took at most."""

    def __init__(self, config: RunConfig, shot_pools: ray.ObjectRef, fingerprint: str) -> None:
        ray.get(shot_pools)
        GroupBlocks.__init__(self, config, llm_ledger(config.paths), fingerprint)
        self.peak_flops = 1.0
        self.labeller = cast(RewardLabeller, Idle())

    def __call__(self, batch: pa.Table) -> pa.Table:
        costs = super().__call__(batch)
        (self.config.paths.cache / PEAK).write_text(str(peak_memory(os.getpid())))
        return costs

    def label_rows(self, rows: GroupRows, positions: list[int]) -> list[dict[str, Any]]:
        return [
            self._labelled(rows.without_rewards(position, self.config.tasks, self.fingerprint))
            for position in positions
        ]

    def _labelled(self, row: dict[str, Any]) -> dict[str, Any]:
        scores = [[-1.0 - i, -1.5, -2.5] for i in range(len(row["candidate_texts"]))]
        outputs, base = [row["answers"][0], "one", "two"], [-2.0, -1.5, -2.5]
        rewards = group_rewards(row["reward"], base, scores)
        return {**row, "outputs": outputs, "base_scores": base, "scores": scores, "rewards": rewards, "truncated": 0}


def peak_memory(pid: int) -> int:
    """The most memory that a process has held so far, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
