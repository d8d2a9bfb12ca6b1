"""From values of queries to the numbers of a report: by dataset and measure, and by task over its datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from embedder.config.evaluate import EvaluateConfig
from embedder.evaluation.evaluations import EVALUATIONS, measure_of
from embedder.evaluation.measurements import DatasetValues
from embedder.evaluation.statistics import Drawn, Table, average, difference, draw, estimate
from embedder.hashing import content_id

INTERVAL = "95 % bootstrap percentiles; queries of one document or conversation are drawn together"
TEST = (
    "two-sided paired randomisation test, values swapped by query, document or conversation; not corrected for the "
    "number of tests"
)


def summarise(datasets: Sequence[DatasetValues], settings: EvaluateConfig) -> dict[str, Any]:
    """All numbers of the report.

    A measure is taken over the queries that all retrievers have a value for; those left out are counted.
    """
    order = [retriever.name for retriever in settings.retrievers]
    places = {name: place for place, name in enumerate(EVALUATIONS)}
    datasets = sorted(datasets, key=lambda one: (places[one.evaluation.name], one.family, one.name))
    drawn: dict[tuple[str, str], dict[str, _Measured]] = {}
    described: dict[str, Any] = {}
    for one in datasets:
        measures = {}
        for name, values in one.values.items():
            measured = _measured(one, name, [each for each in order if each in values], settings)
            if measured is not None:
                drawn.setdefault((one.family, name), {})[one.name] = measured
                measures[name] = measured.entry(settings.baseline)
        described[one.name] = {
            "task": one.task,
            "evaluation": one.evaluation.name,
            "headline": one.headline,
            "own": [*(each.name for each in one.evaluation.measures), *one.evaluation.rankings],
            "queries": len(one.rows),
            "units": len(set(one.origins.values())),
            "errors": len(one.errors),
            "measures": measures,
        }
    tasks = {}
    for family in dict.fromkeys(one.family for one in datasets):
        parts = {name: list(each.values()) for (task, name), each in drawn.items() if task == family}
        entries = {name: _mean(each).entry(settings.baseline) for name, each in parts.items()}
        mine = [one for one in datasets if one.family == family]
        headlines = [name for name in mine[0].evaluation.headline if name in entries]
        tasks[family] = {
            "evaluation": mine[0].evaluation.name,
            "describes": mine[0].evaluation.describes,
            "headline": next(iter([*headlines, *entries]), None),
            "datasets": [one.name for one in mine],
            "measures": entries,
        }
    return {
        "split": settings.split,
        "baseline": settings.baseline,
        "retrievers": order,
        "resamples": settings.resamples,
        "seed": settings.seed,
        "interval": INTERVAL,
        "test": TEST,
        "tasks": tasks,
        "datasets": described,
    }


@dataclass(frozen=True)
class _Measured:
    """A measure of some retrievers over the same queries."""

    kind: str
    names: list[str]
    drawn: Drawn
    queries: int
    units: int
    left_out: int
    datasets: int = 1

    def entry(self, baseline: str) -> dict[str, Any]:
        """As in the results."""
        values = {name: asdict(estimate(self.drawn, i)) for i, name in enumerate(self.names)}
        place = self.names.index(baseline) if baseline in self.names else None
        differences = (
            {}
            if place is None
            else {name: asdict(difference(self.drawn, i, place)) for i, name in enumerate(self.names) if i != place}
        )
        counts = {"queries": self.queries, "units": self.units, "left_out": self.left_out, "datasets": self.datasets}
        return {"kind": self.kind, **counts, "retrievers": values, "differences": differences}


def _measured(one: DatasetValues, name: str, names: list[str], settings: EvaluateConfig) -> _Measured | None:
    values = one.values[name]
    everywhere = set.intersection(*(set(values[each]) for each in names)) if names else set()
    if not everywhere:
        return None
    queries = sorted(everywhere)
    pairs = np.array([[values[each][query] for each in names] for query in queries])
    units = one.units(queries)
    measure = measure_of(one.evaluation, name)
    table = Table(measure, pairs[..., 0], pairs[..., 1], units)
    baseline = names.index(settings.baseline) if settings.baseline in names else 0
    # Every dataset is drawn by a stream of its own, every measure of it in the same resamples where queries agree.
    seed = int(content_id(settings.seed, one.name)[:8], 16)
    drawn = draw(table, baseline, settings.resamples, seed)
    left_out = len(set.union(*(set(values[each]) for each in names))) - len(queries)
    return _Measured(measure.kind, names, drawn, len(queries), len(set(units.tolist())), left_out)


def _mean(parts: Sequence[_Measured]) -> _Measured:
    """Over datasets, of the retrievers that all of them have."""
    names = [name for name in parts[0].names if all(name in part.names for part in parts)]
    picked = []
    for part in parts:
        places = [part.names.index(name) for name in names]
        drawn = part.drawn
        picked.append(Drawn(drawn.point_N[places], drawn.resampled_RN[:, places], drawn.swapped_RN[:, places]))
    return _Measured(
        parts[0].kind,
        names,
        average(picked),
        queries=sum(part.queries for part in parts),
        units=sum(part.units for part in parts),
        left_out=sum(part.left_out for part in parts),
        datasets=len(parts),
    )


def headline_entries(results: Mapping[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    """By task the name and the entry of the measure that stands for it, averaged over its datasets."""
    return {
        task: (one["headline"], one["measures"][one["headline"]])
        for task, one in results["tasks"].items()
        if one["headline"] in one["measures"]
    }
