"""What a training is told and what it reports. Needs no torch, so that a driver starts quickly."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from pathlib import Path
from statistics import mean
from typing import Literal

from embedder.config.run import EncoderConfig
from embedder.config.tasks import TaskSpec
from embedder.config.train import TrainConfig

FORMAT = 3
"""Of checkpoints and of the batch plan; a training of another format is never gone on with."""
CHECKPOINT = "step-"
"""Before the number of the next step in the name of a checkpoint."""


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

    data: Path | None = None
    """Where its rows are; None: in its own folder."""

    @property
    def rows(self) -> Path:
        """The rows to train on, a folder as `embedder.training.row_files` has it."""
        return (self.data or self.folder) / "rows"

    @property
    def held_out(self) -> Path:
        """The same for the validation split."""
        return (self.data or self.folder) / "held_out"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.folder / "checkpoints"

    @property
    def kept_step(self) -> int:
        """The step at which the newest checkpoint goes on, so far as its name tells; 0: there is none."""
        names = (path.name.removeprefix(CHECKPOINT) for path in self.checkpoints.glob(f"{CHECKPOINT}*"))
        return max(map(int, names), default=0)

    @property
    def metrics(self) -> Path:
        """One JSON line a step."""
        return self.folder / "metrics.jsonl"

    @property
    def outcome(self) -> Path:
        """How the training ended."""
        return self.folder / "outcome.json"

    @property
    def stopped(self) -> Path:
        """Why the training stopped where trying again would end alike; absent else."""
        return self.folder / "stopped.txt"

    @property
    def short_memory(self) -> Path:
        """The number of tokens to try at once, because memory was short for more; absent else."""
        return self.folder / "short_memory.txt"

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


def append_metrics(path: Path, metrics: StepMetrics) -> None:
    """Add one JSON line; a step that is repeated after a resume stands twice, and the later line counts."""
    with path.open("a+b") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        torn = b"\n" if end and file.read(1) != b"\n" else b""  # a line that a kill cut must not spoil this one
        # A step whose numbers are not finite is never reported; JSON has no way to write one.
        file.write(torn + json.dumps(asdict(metrics), allow_nan=False).encode() + b"\n")


class MetricsReader:
    """Reads metrics while they are written, each line once."""

    def __init__(self, path: Path) -> None:
        self._path, self._read = path, 0
        self._by_step: dict[int, StepMetrics] = {}

    def steps(self) -> list[StepMetrics]:
        """The metrics of every step so far, in order."""
        if self._path.is_file():
            with self._path.open("rb") as file:
                file.seek(self._read)
                # A line without its end is still being written: it is read by the next call.
                for line in takewhile(lambda line: line.endswith(b"\n"), file):
                    self._read += len(line)
                    # A line that a kill cut is no JSON; its step is repeated after the resume.
                    with suppress(ValueError):
                        metrics = StepMetrics(**json.loads(line))
                        self._by_step[metrics.step] = metrics
        return [self._by_step[step] for step in sorted(self._by_step)]


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
