"""What the arms of the study gain, from the files of values alone: by task, by data set, and on dev."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import exp
from statistics import fmean
from typing import Literal

import numpy as np

from benchmarks.study_arms import ARMS, FULL, LABELS, SHUFFLED
from benchmarks.study_protocol import Training
from benchmarks.study_statistics import Gain, Gains, gain, holm
from benchmarks.study_values import BASE, MEASURES, UNTRAINED, Measured, name_of
from embedder.data.records import Split
from embedder.evaluation.base import Value

RESAMPLES = 20_000
SURE = 0.05
PERPLEXITY = "perplexity"
"""The measure whose values are negative log-likelihoods of a token, where less is better."""
SHOWN = (BASE, *UNTRAINED[1:], FULL.name, SHUFFLED.name, LABELS.name)
"""What a table has a column for."""
Part = Literal["unseen", "seen"]
"""Whether data sets count that a training did not learn from, or those that it did."""


@dataclass(frozen=True)
class Row:
    """One measure on one data set, or over those of a task."""

    task: str
    measure: str
    datasets: tuple[str, ...]
    levels: dict[str, float]
    """The measure of each retriever, the mean over data sets and trainings; of perplexities the geometric mean."""
    gains: dict[str, Gain] = field(default_factory=dict)
    """What each gains over the base; of perplexity in nats a token. More is better."""
    over: dict[str, Gain] = field(default_factory=dict)
    """What `full` gains over other arms, training by training."""

    @property
    def name(self) -> str:
        """The data set, or the task where there are several."""
        return self.datasets[0] if len(self.datasets) == 1 else self.task


@dataclass(frozen=True)
class Tables:
    """All that the report says."""

    tasks: list[Row]
    """Over the unseen data sets of a task, by its first measure."""
    others: list[Row]
    """The same by further measures."""
    datasets: list[Row]
    """Each unseen data set."""
    seen: list[Row]
    """Each data set where it was trained on."""
    dev: dict[str, list[Row]]
    """Arm -> tasks on dev; `over` says what the arm gains over `full`, under the arm's name."""
    trainings: dict[str, int]
    """How many trainings of each arm are there."""


def tables(found: Mapping[str, Measured], resamples: int = RESAMPLES) -> Tables:
    """Compute everything from the files that are there."""
    reader = Reader(found, resamples)
    names = reader.datasets
    by_task = {
        task: [name for name in names if found[BASE].tasks[name] == task]
        for task in MEASURES
        if task in found[BASE].tasks.values()
    }
    first = [row for task, sets in by_task.items() if (row := reader.row(task, MEASURES[task][0], sets, "unseen"))]
    others = [
        row
        for task, sets in by_task.items()
        for measure in MEASURES[task][1:]
        if (row := reader.row(task, measure, sets, "unseen"))
    ]
    single: dict[Part, list[Row]] = {
        part: [
            row
            for task, sets in by_task.items()
            for name in sets
            for measure in MEASURES[task]
            if (row := reader.row(task, measure, [name], part, pool=sets))
        ]
        for part in ("unseen", "seen")
    }
    dev = {
        arm.name: [
            row for task, sets in by_task.items() if (row := reader.dev_row(task, MEASURES[task][0], sets, arm.name))
        ]
        for arm in ARMS
        if arm.split == "dev"
    }
    counts = {arm.name: len(reader.numbers(arm.name)) for arm in ARMS}
    return Tables(first, others, single["unseen"], single["seen"], {k: v for k, v in dev.items() if v}, counts)


def corrected(rows: Sequence[Row]) -> list[dict[str, float]]:
    """For each row of a table the p-values of its claims, corrected for all claims of the table.

    The claims are what `full` gains over the base and, where that is shown, over shuffled rewards.
    """
    claims = [
        (i, other, each)
        for i, row in enumerate(rows)
        for other, each in ((BASE, row.gains.get(FULL.name)), (SHUFFLED.name, row.over.get(SHUFFLED.name)))
        if each is not None
    ]
    found: list[dict[str, float]] = [{} for _ in rows]
    for (i, other, _), p in zip(claims, holm([each.p for _, _, each in claims]), strict=True):
        found[i][other] = p
    return found


class Reader:
    """Joins the values of retrievers query by query."""

    def __init__(self, found: Mapping[str, Measured], resamples: int) -> None:
        self._found, self._resamples = found, resamples
        self._joined: dict[tuple[str, str, str, str, Split, Part], Gains | None] = {}
        self.datasets = sorted(found[BASE].tasks)

    def numbers(self, arm: str) -> list[int]:
        """The trainings of an arm that are there."""
        return [number for number in range(100) if name_of(arm, number) in self._found]

    def row(self, task: str, measure: str, sets: Sequence[str], part: Part, pool: Sequence[str] = ()) -> Row | None:
        """One measure over some data sets of a task; None if `full` was not measured on any of them.

        `pool`: all data sets of the task, which say how trainings spread where these have too few.
        """
        names = [name for name in sets if self._gains(FULL.name, BASE, name, measure, "test", part)]
        if not names:
            return None
        row = Row(task, measure, tuple(names), {})
        for retriever in SHOWN:
            level = self._level(retriever, names, measure, "test", part)
            if level is not None:
                row.levels[retriever] = level
            gains = [self._gains(retriever, BASE, name, measure, "test", part) for name in names]
            if retriever != BASE and all(gains):
                row.gains[retriever] = self._gain(gains, retriever, BASE, measure, part, pool)
        for other in (SHUFFLED.name, LABELS.name):
            gains = [self._gains(FULL.name, other, name, measure, "test", part) for name in names]
            if all(gains):
                row.over[other] = self._gain(gains, FULL.name, other, measure, part, pool)
        return row

    def dev_row(self, task: str, measure: str, sets: Sequence[str], arm: str) -> Row | None:
        """An arm beside `full` on the dev queries of what both learned from."""
        names = [name for name in sets if self._gains(arm, FULL.name, name, measure, "dev", "seen")]
        if not names:
            return None
        row = Row(task, measure, tuple(names), {})
        for retriever in (BASE, FULL.name, arm):
            level = self._level(retriever, names, measure, "dev", "seen")
            if level is not None:
                row.levels[retriever] = level
        gains = [each for name in names if (each := self._gains(arm, FULL.name, name, measure, "dev", "seen"))]
        row.over[arm] = gain(gains, self._resamples, 0)
        return row

    def _gain(
        self, gains: Sequence[Gains | None], one: str, other: str, measure: str, part: Part, pool: Sequence[str]
    ) -> Gain:
        everywhere = [each for name in pool if (each := self._gains(one, other, name, measure, "test", part))]
        return gain([each for each in gains if each], self._resamples, 0, everywhere or None)

    def _gains(self, one: str, other: str, dataset: str, measure: str, split: Split, part: Part) -> Gains | None:
        """What `one` gains over `other` on a data set, by training and unit; None where either was not measured."""
        key = (one, other, dataset, measure, split, part)
        # Kept, because a data set is asked for by itself, for its task, and for the spread of the others' trainings.
        if key not in self._joined:
            self._joined[key] = self._join(*key)
        return self._joined[key]

    def _join(self, one: str, other: str, dataset: str, measure: str, split: Split, part: Part) -> Gains | None:
        pairs = {
            name: (mine, theirs)
            for name, number in self._runs(one)
            if number is None or self._counts(number, dataset, part)
            if (mine := self._values(name, dataset, measure, split))
            if (theirs := self._values(self._same(other, number), dataset, measure, split))
        }
        if not pairs:
            return None
        queries = sorted(set.intersection(*(set(mine) & set(theirs) for mine, theirs in pairs.values())))
        base = self._values(BASE, dataset, measure, split)
        weight_Q = np.array([base[query][1] for query in queries])
        unit_Q, units = self._units(dataset, queries)
        weight_QU = np.zeros((len(queries), units))
        weight_QU[np.arange(len(queries)), unit_Q] = weight_Q
        sign = -1 if measure == PERPLEXITY else 1
        sums = {
            name: sign * np.array([mine[query][0] - theirs[query][0] for query in queries]) @ weight_QU
            for name, (mine, theirs) in pairs.items()
        }
        return Gains(sums, weight_QU.sum(0))

    def _level(self, retriever: str, names: Sequence[str], measure: str, split: Split, part: Part) -> float | None:
        by_set = [
            [
                sum(value * weight for value, weight in values.values()) / sum(weight for _, weight in values.values())
                for name, number in self._runs(retriever)
                if number is None or self._counts(number, dataset, part)
                if (values := self._values(name, dataset, measure, split))
            ]
            for dataset in names
        ]
        if not all(by_set):
            return None
        mean = fmean(fmean(each) for each in by_set)
        return exp(mean) if measure == PERPLEXITY else mean

    def _runs(self, retriever: str) -> list[tuple[str, int | None]]:
        """The entries of a retriever with their numbers, None for one that is not trained."""
        if retriever in UNTRAINED:
            return [(retriever, None)]
        return [(name_of(retriever, number), number) for number in self.numbers(retriever)]

    def _same(self, retriever: str, number: int | None) -> str:
        return retriever if retriever in UNTRAINED or number is None else name_of(retriever, number)

    def _values(self, name: str, dataset: str, measure: str, split: Split) -> Mapping[str, Value]:
        measured = self._found.get(name)
        values = measured.values.get(split, {}) if measured else {}
        return values.get(dataset, {}).get(measure, {})

    def _counts(self, number: int, dataset: str, part: Part) -> bool:
        return (dataset in Training(number).learned) == (part == "seen")

    def _units(self, dataset: str, queries: Sequence[str]) -> tuple[np.ndarray, int]:
        """The unit of each query, and how many there are."""
        cut = self._found[BASE].origins.get(dataset, {})
        # A document and a query of one name are two things.
        origins = [(query in cut, cut.get(query, query)) for query in queries]
        numbers = {origin: i for i, origin in enumerate(sorted(set(origins)))}
        return np.array([numbers[origin] for origin in origins]), len(numbers)
