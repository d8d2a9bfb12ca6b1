"""Trains and measures one entry of the study, in this process and without Ray."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from benchmarks.study_arms import FEW, FULL
from benchmarks.study_labels import example_ids, labelled_groups, positive_ids
from benchmarks.study_values import BASE, MEASURES, Entry, Measured, Results, Values
from embedder.config.evaluate import EvaluateConfig
from embedder.config.run import RunConfig
from embedder.config.tasks import TaskSpec
from embedder.console import console, progress
from embedder.data.records import Split, passage_column
from embedder.errors import DataError
from embedder.evaluation.judge import LlmJudge
from embedder.evaluation.local import EvaluationSet, ask_llm, llm_judge, rank, rank_without_encoder, read_sets
from embedder.hashing import content_id
from embedder.mining.ranking import Ranking
from embedder.models.device import resolve_device
from embedder.models.onnx import load_inference_encoder
from embedder.storage.durable import locked
from embedder.storage.fetched import local_copy
from embedder.storage.folders import remove_folder
from embedder.training.job import StepMetrics, TrainingJob, append_metrics
from embedder.training.loop import train
from embedder.training.row_files import write_training_rows
from embedder.training.split import split_groups
from ray_jobs.cluster.tables import labelled_ledger

DEPTH = 20
"""Passages of a ranking that are kept."""
SEEN = 4
"""So many trainings of the method are also measured on the test queries of what they learned from, two a direction."""


@dataclass(frozen=True)
class Trained:
    """An encoder that can be measured."""

    model: str
    tasks: dict[str, TaskSpec]
    """With the instructions that this encoder gets."""
    told: dict[str, Any]
    """Of its training, for the file of values."""


class Study:
    """The labels of a run, the queries that it is measured on, and the folder `study/` where it works."""

    def __init__(self, config: RunConfig, results: Results) -> None:
        self.config, self.results, self.settings = config, results, config.needed_train
        self.folder = local_copy(config.paths.work) / "study"
        self.groups = labelled_groups(config.paths, labelled_ledger(config))
        self.positives, self.examples = positive_ids(config.paths), example_ids(config.paths)
        names = sorted({group["dataset"] for group in self.groups})
        self.answers = {name: passage_column(config.paths.corpus / name, "answer") for name in names}
        self.sets: dict[Split, list[EvaluationSet]] = {
            "test": read_sets(config, "test"),
            "dev": read_sets(config, "dev"),
        }
        self.taught = self._taught()
        self.identity = self._identity()

    def run(self, entry: Entry) -> None:
        """Train and measure, unless that was done before or another process is at it.

        Raises:
            DataError: its file is there, but of other data, labels or settings.
        """
        with locked(self.folder / f"{entry.name}.lock", wait=False) as is_mine:
            if not is_mine:
                return
            if self.results.path(entry.name).is_file():
                self._check(entry)
                return
            began = time.monotonic()
            trained = self._trained(entry)
            middle = time.monotonic()
            values = {split: self._measure(entry, trained, sets) for split, sets in self._wanted(entry).items()}
            seconds = {"train": round(middle - began), "measure": round(time.monotonic() - middle)}
            self.results.write(
                Measured(
                    name=entry.name,
                    study=self.identity,
                    arm=entry.record,
                    values=values,
                    tasks={one.measured.name: one.measured.task for sets in self.sets.values() for one in sets},
                    origins=self._origins() if entry.name == BASE else {},
                    training={**trained.told, "seconds": seconds},
                )
            )

    @cached_property
    def _judge(self) -> LlmJudge:
        return llm_judge(self.config, self._evaluate)

    @cached_property
    def _evaluate(self) -> EvaluateConfig:
        # Answers that are written cost more than likelihoods, and tell less by the few queries there are.
        return self.config.evaluate.model_copy(update={"generate_answers": False})

    def _taught(self) -> str:
        """Hash of all that a training depends on besides its arm and number."""
        labels = [(group["row_id"], group["label_fingerprint"]) for group in self.groups]
        # Defaults left out, a setting that is added later leaves valid what was trained without it.
        settings = [one.model_dump(mode="json", exclude_defaults=True) for one in (self.config.encoder, self.settings)]
        tasks = {name: spec.model_dump(mode="json", exclude_defaults=True) for name, spec in self.config.tasks.items()}
        return content_id(labels, settings, tasks)

    def _identity(self) -> str:
        """Hash of all that values depend on besides the retriever."""
        queries = [(split, one.measured.rows) for split, sets in self.sets.items() for one in sets]
        passages = [(one.measured.name, one.texts) for one in self.sets["test"]]
        asked = [
            one and one.model_dump(mode="json", exclude_defaults=True)
            for one in (self.config.llm, self.config.evaluate)
        ]
        return content_id(self.taught, queries, passages, asked)[:16]

    def _check(self, entry: Entry) -> None:
        found = self.results.read(entry.name)
        if found.study != self.identity or found.arm != entry.record:
            raise DataError(
                f"{self.results.path(entry.name)}: of other data, labels or settings than these; remove it to train "
                "anew, or give another --results"
            )

    def _wanted(self, entry: Entry) -> dict[Split, list[EvaluationSet]]:
        """The sets that an entry is measured on: untrained ones on all, a training on what its arm is judged by."""
        if entry.arm is None or entry.training is None:
            return self.sets
        seen = set(entry.training.seen(one.measured.name for one in self.sets["test"]))
        of_seen = {split: [one for one in sets if one.measured.name in seen] for split, sets in self.sets.items()}
        if entry.arm.split == "dev":
            return {"dev": of_seen["dev"]}
        unseen = [one for one in self.sets["test"] if one.measured.name not in seen]
        if entry.arm is not FULL or entry.training.number >= SEEN:
            return {"test": unseen}
        # Some trainings of the method are also judged on what they learned from, and on dev beside the other arms.
        return {"test": self.sets["test"], "dev": of_seen["dev"] if entry.training.number < FEW else []}

    def _trained(self, entry: Entry) -> Trained:
        if entry.arm is None or entry.training is None:
            return Trained(self.config.encoder.model, self.config.base_tasks, {})
        tasks = entry.arm.specs(self.config.tasks)
        name = content_id(self.taught, entry.record, entry.training.number)[:12]
        job = TrainingJob(self.config.encoder, tasks, self.settings, self.folder / f"{entry.name}-{name}")
        groups = entry.arm.groups(self.groups, entry.training, self.answers)
        kept, apart = split_groups(groups, entry.arm.validation(self.settings, entry.training))
        sizes, left_out = write_training_rows(kept, tasks, job.rows, self.positives, self.examples)
        write_training_rows(apart, tasks, job.held_out, self.positives, self.examples)
        job = replace(job, config=entry.arm.settings(self.settings, entry.training, list(sizes)))
        # A model that is there was trained before; its values were removed to measure it again.
        if not job.exported.is_dir():
            _train(entry.name, job)
        outcome = json.loads(job.outcome.read_text(encoding="utf-8"))
        return Trained(
            str(job.exported), tasks, {"groups": dict(sizes), "left_out": dict(left_out), "outcome": outcome}
        )

    def _measure(self, entry: Entry, trained: Trained, sets: Sequence[EvaluationSet]) -> Values:
        """Every measure of every query of some sets, with the LLM's part."""
        if not sets:
            return {}
        # Copies, because the rows and texts serve all entries, and rankings and values this one alone.
        own = [
            replace(one, measured=replace(one.measured, rankings={}, values={}, replies={}, errors={})) for one in sets
        ]
        rankings = self._rankings(entry, trained, own)
        own = [one for one in own if one.measured.name in rankings]
        for one in own:
            one.measured.enter_rankings({entry.name: rankings[one.measured.name]}, self._evaluate.cutoffs)
        if self.config.llm is not None and self._evaluate.asks:
            ask_llm(own, self._judge, self._evaluate, self.folder)
        return {
            one.measured.name: {
                measure: one.measured.values[measure][entry.name]
                for measure in MEASURES[one.measured.task]
                if one.measured.values.get(measure)
            }
            for one in own
        }

    def _rankings(
        self, entry: Entry, trained: Trained, sets: Sequence[EvaluationSet]
    ) -> dict[str, Mapping[str, Ranking]]:
        """The rankings of each data set that this retriever can rank."""
        words = self.config.words
        if entry.name == "recency":
            ordered = [one for one in sets if one.measured.evaluation.has_history]
            return {one.measured.name: rank_without_encoder("recency", one, DEPTH, 0, words) for one in ordered}
        if entry.name == "bm25":
            return {one.measured.name: rank_without_encoder("bm25", one, DEPTH, 0, words) for one in sets}
        given = self.config.encoder.model_copy(update={"model": trained.model})
        encoder = load_inference_encoder(given, resolve_device(given.gpus_per_actor))
        return {one.measured.name: rank(encoder, trained.tasks[one.measured.task], one, DEPTH) for one in sets}

    def _origins(self) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = {}
        for one in (each.measured for sets in self.sets.values() for each in sets):
            cut = {row["query_id"] for row in one.rows if row["origin"] is not None}
            found.setdefault(one.name, {}).update(
                {query: origin for query, origin in one.origins.items() if query in cut}
            )
        return found


def _train(name: str, job: TrainingJob) -> None:
    """Train to the end, from the last checkpoint if there is one; checkpoints are not needed afterwards."""
    with progress(name, job.config.steps, console()) as counter:

        def report(step: StepMetrics) -> None:
            append_metrics(job.metrics, step)
            counter.advance(1)

        train(job, report)
    remove_folder(job.checkpoints)
