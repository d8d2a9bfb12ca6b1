"""What a training is told and what it reports. Needs no torch, so that a driver starts quickly."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

from embedder.config.run import EncoderConfig
from embedder.config.tasks import TaskSpec
from embedder.config.train import TrainConfig

FORMAT = 3
"""Of checkpoints and of the batch plan; a training of another format is never gone on with."""


@dataclass(frozen=True)
class TrainingJob:
    """All a worker needs; every worker gets the same."""

    encoder: EncoderConfig
    tasks: dict[str, TaskSpec]
    config: TrainConfig
    folder: Path
    """Of the run, on storage that every worker sees."""
    network: Literal["encoder", "cross_encoder"] = "encoder"
    """What is trained; `encoder` says where either starts, and `config` has only meaning for the other where its loss
    has: a cross-encoder knows no tau, no Matryoshka prefixes, adapters or bfloat16."""

    @property
    def rows(self) -> Path:
        """The Arrow file of `write_training_rows`."""
        return self.folder / "rows.arrow"

    @property
    def held_out(self) -> Path:
        """The same for the validation split."""
        return self.folder / "validation.arrow"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.folder / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON line a step."""
        return self.folder / "metrics.jsonl"

    @property
    def outcome(self) -> Path:
        """How the training ended."""
        return self.folder / "outcome.json"

    @property
    def exported(self) -> Path:
        """The trained encoder; this folder appears last."""
        return self.folder / "model"


@dataclass(frozen=True)
class StepMetrics:
    """What one step reports, the same on every worker."""

    step: int
    losses: dict[str, float]
    """Mean loss of each task of the global batch, mostly one."""
    loss: float
    """Mean loss of the global batch."""
    learning_rate: float
    paces: dict[str, float]
    """Self-paced factor of each of these tasks."""
    seconds: float
    workers: int
    validation: dict[str, float] = field(default_factory=dict)
    """NDCG by task, where the step was followed by a measurement."""


class Metrics(Protocol):
    """A dataclass of what a step reports."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def step(self) -> int:
        """Counted from 0."""


M = TypeVar("M", bound=Metrics)


def append_metrics(path: Path, metrics: Metrics) -> None:
    """Add one JSON line; a step that is repeated after a resume stands twice, and the later line counts."""
    with path.open("a+b") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        torn = b"\n" if end and file.read(1) != b"\n" else b""  # a line that a kill cut must not spoil this one
        file.write(torn + json.dumps(asdict(metrics)).encode() + b"\n")


class MetricsReader(Generic[M]):
    """Reads metrics of one type while they are written, each line once."""

    def __init__(self, path: Path, record: type[M]) -> None:
        self._path, self._record, self._read = path, record, 0
        self._by_step: dict[int, M] = {}

    def steps_done(self) -> int:
        """Steps made so far."""
        steps = self.steps()
        return steps[-1].step + 1 if steps else 0

    def steps(self) -> list[M]:
        """The metrics of every step so far, in order."""
        if self._path.is_file():
            with self._path.open("rb") as file:
                file.seek(self._read)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._read += len(line)
                    self._add(line)
        return [self._by_step[step] for step in sorted(self._by_step)]

    def _add(self, line: bytes) -> None:
        try:
            metrics = self._record(**json.loads(line))
        except ValueError:
            return  # cut by a kill; the step is repeated after the resume
        self._by_step[metrics.step] = metrics


NOTED_STEPS = 10
"""Over how many of a task's last steps the live line takes its loss."""


def live_note(steps: Sequence[StepMetrics], batch_size: int) -> str:
    """How the training stands: each task's loss, the learning rate, speed, and the last measurement."""
    if not steps:
        return ""
    losses: dict[str, list[float]] = {}
    for step in steps:
        for task, loss in step.losses.items():
            losses.setdefault(task, []).append(loss)
    recent = [f"{task} {mean(values[-NOTED_STEPS:]):.4f}" for task, values in sorted(losses.items())]
    last = steps[-1]
    speed = batch_size * len(steps[-NOTED_STEPS:]) / sum(step.seconds for step in steps[-NOTED_STEPS:])
    paces = ", ".join(f"{task} {pace:.2f}" for task, pace in sorted(last.paces.items()))
    parts = [f"loss {', '.join(recent)}", f"rate {last.learning_rate:.1e} (pace {paces})"]
    parts.append(f"{speed:,.1f} queries/s on {last.workers} workers")
    measured = [mean(step.validation.values()) for step in steps if step.validation]
    if measured:
        parts.append(f"NDCG {measured[-1]:.4f}, best {max(measured):.4f}")
    return "; ".join(parts)


def report_lines(
    steps: Sequence[StepMetrics], sizes: Mapping[str, int], outcome: Mapping[str, Any], config: TrainConfig
) -> list[str]:
    """What a finished training tells: each task's loss at both ends, and the validation before, at best and last."""
    lines = []
    for task, size in sorted(sizes.items()):
        mine = [step.losses[task] for step in steps if task in step.losses]
        edge = max(1, len(mine) // 5)
        if mine:
            paces = [step.paces[task] for step in steps if task in step.losses]
            lines.append(
                f"{task}: {size:,} rows, {len(mine):,} steps, loss {mean(mine[:edge]):.4f} -> {mean(mine[-edge:]):.4f} "
                f"(first and last fifth), pace {paces[-1]:.2f}"
            )
    if config.validation is not None:
        history, place = outcome["validation"]["history"], outcome["validation"]["best"]
        first, best, last = history[0], history[place], history[-1]
        lines.append(
            f"NDCG@{config.validation.cutoff} on held-out queries: {first['mean']:.4f} before, best {best['mean']:.4f} "
            f"after {best['steps']:,} steps (exported), {last['mean']:.4f} after {last['steps']:,}"
        )
        if not best["steps"]:
            lines.append("no step did better than the encoder it began with, which is what was exported")
        if outcome["steps"] < config.steps:
            lines.append(
                f"stopped {config.steps - outcome['steps']:,} steps early: {config.validation.patience} measurements "
                "brought no new best"
            )
    return lines
