"""What a training is told and what it reports. Needs no torch, so that a driver starts quickly."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from statistics import mean
from typing import Literal

from embedder.config.run import EncoderConfig
from embedder.config.tasks import TaskSpec
from embedder.config.train import TrainConfig
from embedder.storage.folders import is_whole
from embedder.storage.line_log import LineReader, LineWriter
from embedder.storage.object_store import AnyPath

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
    folder: AnyPath
    """Of the run, on storage that every worker sees."""
    network: Literal["encoder", "cross_encoder"] = "encoder"
    """What is trained; `encoder` says where either starts, and `config` has only meaning for the other where its loss
    has: a cross-encoder knows no tau, no Matryoshka prefixes, adapters or bfloat16."""

    data: AnyPath | None = None
    """Where its rows are; None: in its own folder."""

    @property
    def rows(self) -> AnyPath:
        """The rows to train on, a folder as `embedder.training.row_files` has it."""
        return (self.data or self.folder) / "rows"

    @property
    def held_out(self) -> AnyPath:
        """The same for the validation split."""
        return (self.data or self.folder) / "held_out"

    @property
    def checkpoints(self) -> AnyPath:
        """Folder of checkpoints."""
        return self.folder / "checkpoints"

    @property
    def kept_step(self) -> int:
        """The step at which the newest checkpoint goes on, so far as its name tells; 0: there is none."""
        names = (path.name.removeprefix(CHECKPOINT) for path in self.checkpoints.glob(f"{CHECKPOINT}*"))
        return max(map(int, names), default=0)

    @property
    def metrics(self) -> AnyPath:
        """One JSON line a step."""
        return self.folder / "metrics.jsonl"

    @property
    def outcome(self) -> AnyPath:
        """How the training ended."""
        return self.folder / "outcome.json"

    @property
    def stopped(self) -> AnyPath:
        """Why the training stopped where trying again would end alike; absent else."""
        return self.folder / "stopped.txt"

    @property
    def short_memory(self) -> AnyPath:
        """The number of tokens to try at once, because memory was short for more; absent else."""
        return self.folder / "short_memory.txt"

    @property
    def exported(self) -> AnyPath:
        """The trained encoder; this folder appears last."""
        return self.folder / "model"

    @property
    def has_ended(self) -> bool:
        """Tells whether the trained encoder is there."""
        return is_whole(self.exported)


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


class MetricsWriter:
    """Keeps the metrics of steps; a step that is repeated after a resume stands twice, and the later line counts."""

    def __init__(self, path: AnyPath) -> None:
        self._lines = LineWriter(path)

    def add(self, metrics: StepMetrics) -> None:
        """Keep a step; in a store at intervals."""
        # A step whose numbers are not finite is never reported; JSON has no way to write one.
        self._lines.add(json.dumps(asdict(metrics), allow_nan=False).encode())

    def put(self) -> None:
        """Keep what waits, now."""
        self._lines.put()


def append_metrics(path: AnyPath, metrics: StepMetrics) -> None:
    """Keep one step, now."""
    writer = MetricsWriter(path)
    writer.add(metrics)
    writer.put()


class MetricsReader:
    """Reads metrics while they are written, each line once."""

    def __init__(self, path: AnyPath) -> None:
        self._lines = LineReader(path)
        self._by_step: dict[int, StepMetrics] = {}

    def steps(self) -> list[StepMetrics]:
        """The metrics of every step so far, in order."""
        for line in self._lines.new():
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
