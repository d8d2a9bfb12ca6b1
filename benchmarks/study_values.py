"""The values of one retriever of the study: a small JSON file without any text, from which alone the report is made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.study_arms import Arm
from benchmarks.study_protocol import Training
from embedder.data.records import Split
from embedder.errors import DataError
from embedder.evaluation.base import Value
from embedder.storage.durable import write_durably

FORMAT = 1
UNTRAINED = ("base", "bm25", "recency")
"""Retrievers that nothing trains: the encoder as it was, words, and the latest of a history."""
BASE = "base"
MEASURES = {
    "tool": ("nDCG@5",),
    "convsearch": ("nDCG@3",),
    "icl": ("nDCG@10", "log-likelihood"),
    "chat": ("perplexity", "nDCG@10"),
    "lrlm": ("perplexity",),
    "qa": ("log-likelihood", "nDCG@10"),
}
"""What is measured of a task, where it can be; the first stands for it."""

Values = Mapping[str, Mapping[str, Mapping[str, Value]]]
"""Dataset -> measure -> query -> value and weight."""


@dataclass(frozen=True)
class Entry:
    """One place in the grid: a training of an arm, or a retriever that is not trained."""

    arm: Arm | None
    training: Training | None
    untrained: str = ""

    @property
    def name(self) -> str:
        """The name of its file."""
        if self.arm is None or self.training is None:
            return self.untrained
        return name_of(self.arm.name, self.training.number)

    @property
    def record(self) -> dict[str, Any] | None:
        """What sets its arm apart; None where nothing is trained."""
        return None if self.arm is None else self.arm.record()


def name_of(arm: str, number: int) -> str:
    """The name of a training's file."""
    return f"{arm}-{number:02d}"


def grid(arms: Sequence[Arm], most: int) -> list[Entry]:
    """All entries in the order in which they are worked off: every arm once before any arm again."""
    trained = [
        Entry(arm, Training(number))
        for number in range(max(arm.trainings for arm in arms))
        for arm in arms
        if number < min(arm.trainings, most)
    ]
    return [*(Entry(None, None, name) for name in UNTRAINED), *trained]


@dataclass(frozen=True)
class Measured:
    """What is known of one entry."""

    name: str
    study: str
    """Hash of the data, the labels and the settings that all entries share."""
    arm: dict[str, Any] | None
    """What sets the arm apart (`Arm.record`); null: nothing was trained."""
    values: dict[Split, Values]
    tasks: dict[str, str]
    """The task of each data set."""
    origins: dict[str, dict[str, str]] = field(default_factory=dict)
    """Dataset -> query -> the document or conversation that it was cut from; kept with the base alone."""
    training: dict[str, Any] = field(default_factory=dict)
    """Groups by task, how the training ended, and the seconds of its parts."""


class Results:
    """The folder of the files, `benchmarks/study/`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """The file of an entry."""
        return self.folder / f"{name}.json"

    def write(self, found: Measured) -> None:
        """Write the values of an entry, rounded to six digits."""
        kept = {"format": FORMAT, **asdict(found)}
        kept["values"] = {split: _rounded(values) for split, values in found.values.items()}
        content = json.dumps(kept, separators=(",", ":"), allow_nan=False, sort_keys=True)
        write_durably(self.path(found.name), (content + "\n").encode())

    def read(self, name: str) -> Measured:
        """The values of an entry.

        Raises:
            DataError: it was not measured, or by another version.
        """
        path = self.path(name)
        if not path.is_file():
            raise DataError(f"{path}: not there yet; run `python -m benchmarks.study` without --report first")
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept.pop("format", None) != FORMAT:
            raise DataError(f"{path}: of another format than {FORMAT}; remove it and run `python -m benchmarks.study`")
        return Measured(**kept)

    def read_all(self, names: Iterable[str]) -> dict[str, Measured]:
        """The values of those entries that are there, by name.

        Raises:
            DataError: the base is not there, or two files come from other data, labels or settings.
        """
        found = {name: self.read(name) for name in names if self.path(name).is_file() or name == BASE}
        for each in found.values():
            if each.study != found[BASE].study:
                raise DataError(
                    f"{self.path(each.name)}: of other data, labels or settings than {self.path(BASE)}; remove the "
                    "older one and run `python -m benchmarks.study`"
                )
        return found


def _rounded(values: Values) -> dict[str, Any]:
    return {
        dataset: {
            measure: {query: [float(f"{value:.6g}"), weight] for query, (value, weight) in by_query.items()}
            for measure, by_query in measures.items()
        }
        for dataset, measures in values.items()
    }
