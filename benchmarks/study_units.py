"""One encoder of the study: trained on one arm with one seed, and the rankings it makes of a split's queries."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks.study_arms import Arm
from embedder.config.run import RunConfig
from embedder.config.tasks import TaskSpec
from embedder.console import console, progress
from embedder.data.records import Split
from embedder.errors import ConfigError, DataError
from embedder.evaluation.local import EvaluationSet, rank
from embedder.hashing import content_id
from embedder.mining.ranking import Ranking
from embedder.models.onnx import load_inference_encoder
from embedder.storage.durable import locked, write_durably
from embedder.training.job import MetricsReader, StepMetrics, TrainingJob, append_metrics
from embedder.training.loop import train
from embedder.training.training_rows import write_training_rows
from ray_jobs.cluster.tables import example_ids, labelled_ledger, positive_ids
from ray_jobs.training.groups import labelled_groups

FORMAT = 1
DEPTH = 20
"""Passages of a ranking that are kept."""
DEFAULTS = {field.name: field.default for field in fields(Arm)}
BASE = "base"
"""The encoder as it was."""


@dataclass(frozen=True)
class Unit:
    """One encoder."""

    arm: Arm | None
    """null: the base."""
    seed: int

    @property
    def name(self) -> str:
        """As in the tables."""
        return BASE if self.arm is None else f"{self.arm.name}.{self.seed}"


def all_units(arms: Sequence[Arm], seeds: int) -> list[Unit]:
    """The grid: the base, then every arm with the first seed, and so on."""
    return [Unit(None, 0), *(Unit(arm, seed) for seed in range(seeds) for arm in arms)]


class Study:
    """The labels of a run, and the folder `study/` in which results are kept."""

    def __init__(self, config: RunConfig, split: Split) -> None:
        """`split`: whose queries are ranked."""
        if config.train is None:
            raise ConfigError("the run file has no `train` section; give it train.steps")
        self.config, self.settings, self.split = config, config.train, split
        self.folder = config.paths.mounted / "study"
        self.groups = labelled_groups(config.paths, labelled_ledger(config))
        self.positives, self.examples = positive_ids(config.paths), example_ids(config.paths)
        self._data = content_id([(group["row_id"], group["label_fingerprint"]) for group in self.groups])

    def file(self, unit: Unit) -> Path:
        """Where the rankings of an encoder are, named by all that they depend on."""
        # Defaults left out, a setting that is added later leaves what was trained without it valid.
        arm = unit.arm and {name: value for name, value in asdict(unit.arm).items() if value != DEFAULTS.get(name)}
        tasks = {name: spec.model_dump(exclude_defaults=True) for name, spec in self.config.tasks.items()}
        encoder, settings = (
            one.model_dump(mode="json", exclude_defaults=True) for one in (self.config.encoder, self.settings)
        )
        split = [] if self.split == "dev" else [self.split]
        name = content_id(FORMAT, self._data, arm, unit.seed, tasks, encoder, settings, *split)[:12]
        return self.folder / f"{unit.name}-{name}.json"

    def rankings(self, unit: Unit) -> dict[str, dict[str, Ranking]]:
        """By dataset and query id.

        Raises:
            DataError: the unit has not run.
        """
        path = self.file(unit)
        if not path.is_file():
            raise DataError(f"{path}: not there yet; run `python -m benchmarks.study` without --report first")
        kept: dict[str, dict[str, list[list[Any]]]] = json.loads(path.read_text(encoding="utf-8"))["rankings"]
        return {
            dataset: {query: [(str(one), float(score)) for one, score in ranking] for query, ranking in found.items()}
            for dataset, found in kept.items()
        }

    def run(self, unit: Unit, sets: Sequence[EvaluationSet]) -> None:
        """Train and rank, unless that was done before or another process is at it."""
        path = self.file(unit)
        with locked(path.with_suffix(".lock"), wait=False) as is_mine:
            if not is_mine or path.is_file():
                return
            tasks, model, losses = self._trained(unit)
            encoder = load_inference_encoder(self.config.encoder.model_copy(update={"model": model}))
            rankings = {
                one.measured.name: rank(encoder, tasks[one.measured.task], one, DEPTH)
                for one in sets
                if unit.arm is None or unit.arm.task in (None, one.measured.task)
            }
            write_durably(path, json.dumps({"losses": losses, "rankings": rankings}).encode())
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)

    def _trained(self, unit: Unit) -> tuple[dict[str, TaskSpec], str, list[float]]:
        """The tasks with the encoder's instructions, its folder, and the loss of each step."""
        if unit.arm is None:
            return self.config.base_tasks, self.config.encoder.model, []
        tasks = unit.arm.specs(self.config.tasks)
        settings = unit.arm.settings(self.settings, unit.seed)
        job = TrainingJob(self.config.encoder, tasks, settings, self.file(unit).with_suffix(""))
        groups = unit.arm.groups(self.groups)
        sizes, left_out = write_training_rows(groups, tasks, job.rows, self.positives, self.examples)
        console().print(f"{unit.name}: groups {dict(sizes)}, left out {dict(left_out)}", markup=False)
        with progress(unit.name, settings.steps, console()) as counter:

            def report(step: StepMetrics) -> None:
                append_metrics(job.metrics, step)
                counter.advance(1)

            train(job, report)
        return tasks, str(job.exported), [step.loss for step in MetricsReader(job.metrics).steps()]
