"""The tables of the study: means and spreads over seeds, and paired differences over queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any

import numpy as np

from benchmarks.study_arms import FULL, Arm
from benchmarks.study_units import BASE
from embedder.evaluation.base import Measure
from embedder.evaluation.evaluations import measure_of
from embedder.evaluation.local import EvaluationSet
from embedder.evaluation.statistics import Difference, Floats, Table, difference, draw

ROUNDS = 10_000
MEASURES = {
    "qa": ("nDCG@10", "log-likelihood", "exact match"),
    "tool": ("nDCG@5",),
    "chat": ("perplexity", "nDCG@10"),
    "convsearch": ("nDCG@3",),
    "icl": ("nDCG@10", "log-likelihood"),
    "lrlm": ("perplexity",),
}
"""What is reported of a task, where it was measured; the first stands for it."""
SMALLER_IS_BETTER = {"perplexity"}


@dataclass(frozen=True)
class Cell:
    """One arm on one measure."""

    seeds: list[float]
    """The mean over queries with each seed."""
    against_base: Difference | None
    against_full: Difference | None

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return mean(self.seeds)

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds; 0 for one."""
        return stdev(self.seeds) if len(self.seeds) > 1 else 0.0


Cells = dict[str, dict[str, Cell]]
"""Task and measure -> arm -> cell."""


def cells(sets: Sequence[EvaluationSet], arms: Sequence[Arm], seeds: int) -> Cells:
    """Every measure of every arm; differences are those of a query's mean over the seeds."""
    found: Cells = {}
    for one in sets:
        task = one.measured.task
        for name in MEASURES[task]:
            if one.measured.values.get(name):
                found[f"{task} {name}"] = _row(one, name, [arm.name for arm in arms if arm.task in (None, task)], seeds)
    return found


def _row(one: EvaluationSet, name: str, arms: Sequence[str], seeds: int) -> dict[str, Cell]:
    measure, values = measure_of(one.measured.evaluation, name), one.measured.values[name]
    runs = {BASE: [BASE], **{arm: [f"{arm}.{seed}" for seed in range(seeds)] for arm in arms}}
    queries = sorted(set.intersection(*(set(values[run]) for its in runs.values() for run in its)))
    value_SQ2 = {arm: np.array([[values[run][query] for query in queries] for run in its]) for arm, its in runs.items()}
    weights_Q = value_SQ2[BASE][0, :, 1]
    means_AQ = np.stack([each[..., 0].mean(0) for each in value_SQ2.values()], axis=1)
    table = Table(
        measure, means_AQ, np.repeat(weights_Q[:, None], means_AQ.shape[1], axis=1), one.measured.units(queries)
    )
    order = list(runs)
    others = [other for other in (BASE, FULL.name) if other in runs]
    compared = {other: draw(table, order.index(other), ROUNDS, 0) for other in others}
    return {
        arm: Cell(
            [weighted_mean(measure, each[:, 0], each[:, 1]) for each in value_SQ2[arm]],
            *(
                None
                if arm == other or other not in compared
                else difference(compared[other], place, order.index(other))
                for other in (BASE, FULL.name)
            ),
        )
        for place, arm in enumerate(order)
    }


def weighted_mean(measure: Measure, values_Q: Floats, weights_Q: Floats) -> float:
    """Of a measure's values of queries: their weighted mean, of a perplexity its exponential."""
    value = float(np.average(values_Q, weights=weights_Q))
    return float(np.exp(value)) if measure.kind == "perplexity" else value


def aim(found: Cells, arm: Arm) -> dict[str, Any]:
    """How many tasks an arm betters by their first measures, how many of them surely, and what qa's answers gain."""
    better, significant = [], []
    for task, measures in MEASURES.items():
        cell = found.get(f"{task} {measures[0]}", {}).get(arm.name)
        if cell is None or cell.against_base is None:
            continue
        one, sign = cell.against_base, -1 if measures[0] in SMALLER_IS_BETTER else 1
        if sign * one.value > 0:
            better.append(task)
            if one.low * one.high > 0:
                significant.append(task)
    em = found.get("qa exact match", {}).get(arm.name)
    gain = em.against_base.value if em and em.against_base else None
    counts = {"tasks_better": len(better), "tasks_significant": len(significant)}
    return {**counts, "qa_em_gain": gain, "better": better, "significant": significant}


def as_records(found: Cells) -> dict[str, Any]:
    """For the JSON file."""
    return {
        measure: {arm: {"mean": cell.mean, "spread": cell.spread, **asdict(cell)} for arm, cell in row.items()}
        for measure, row in found.items()
    }


def markdown(found: Cells, arms: Sequence[Arm]) -> str:
    """A table a part of the method: mean over seeds, spread, and what it is to the reference arm."""
    parts: dict[str, list[str]] = {}
    if FULL not in arms:
        return _table("Against the base", [BASE, *(arm.name for arm in arms)], found, "against_base") + "\n"
    for arm in arms:
        if arm is not FULL:
            parts.setdefault(arm.part, []).append(arm.name)
    tables = [_table("The method against its base", [BASE, FULL.name], found, "against_base")]
    for part, names in parts.items():
        rows = [FULL.name, *names] if part != "one task" else [FULL.name, "only"]
        tables.append(_table(part, rows, _singles(found) if part == "one task" else found, "against_full"))
    return "\n\n".join(tables) + "\n"


def _singles(found: Cells) -> Cells:
    """The cells of the arms of one task under one name."""
    names = {measure: f"only-{measure.split()[0]}" for measure in found}
    return {
        measure: {FULL.name: row[FULL.name], "only": row[names[measure]]}
        for measure, row in found.items()
        if names[measure] in row
    }


def _table(title: str, rows: Sequence[str], found: Cells, compared: str) -> str:
    lines = [f"### {title[0].upper()}{title[1:]}", "", "| arm | " + " | ".join(found) + " |"]
    lines.append("|---|" + "---:|" * len(found))
    for arm in rows:
        shown = [_shown(measure, row[arm], getattr(row[arm], compared)) for measure, row in found.items()]
        lines.append(f"| {arm} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _shown(measure: str, cell: Cell, difference: Difference | None) -> str:
    digits = 2 if measure.split()[-1] in SMALLER_IS_BETTER else 3
    text = f"{cell.mean:.{digits}f}" + (f" ± {cell.spread:.{digits}f}" if len(cell.seeds) > 1 else "")
    if difference is None:
        return text
    mark = "**" if difference.p < 0.05 else ""
    p = "< 0.001" if difference.p < 0.001 else f"{difference.p:.3f}"
    return f"{text} ({mark}{difference.value:+.{digits}f}{mark}, p {p})"
