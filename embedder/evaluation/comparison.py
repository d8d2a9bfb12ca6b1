"""Makes the numbers of a report from the values of queries: by dataset and measure, and by task over its datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from embedder.config.evaluate import EvaluateConfig
from embedder.evaluation.evaluations import EVALUATIONS, measure_of
from embedder.evaluation.measurements import DatasetValues
from embedder.evaluation.statistics import Drawn, Table, average, difference, distance, draw, estimate
from embedder.hashing import content_id

INTERVAL = "95 % bootstrap percentiles; queries of one document or conversation are drawn together"
TRAINED, CONTROL = "trained", "control"
"""What the trained encoder gains beyond the control, which learned from shuffled rewards, is the LLM's share."""
TEST = (
    "two-sided paired randomisation test, values swapped by query, document or conversation; not corrected for the "
    "number of tests"
)


def summarise(datasets: Sequence[DatasetValues], settings: EvaluateConfig) -> dict[str, Any]:
    """All numbers of the report.

    A measure is taken over the queries that all retrievers have a value for; those left out are counted.
    """
    order = [retriever.name for retriever in settings.retrievers]
    ranks = {name: rank for rank, name in enumerate(EVALUATIONS)}
    datasets = sorted(datasets, key=lambda dataset: (ranks[dataset.evaluation.name], dataset.family, dataset.name))
    drawn: dict[tuple[str, str], dict[str, _Measured]] = {}
    described: dict[str, Any] = {}
    for dataset in datasets:
        measures = {}
        for name, values in dataset.values.items():
            measured = _measured(dataset, name, [each for each in order if each in values], settings)
            if measured is not None:
                drawn.setdefault((dataset.family, name), {})[dataset.name] = measured
                measures[name] = measured.entry(settings.baseline)
        described[dataset.name] = {
            "task": dataset.task,
            "evaluation": dataset.evaluation.name,
            "headline": dataset.headline,
            "own": [*(measure.name for measure in dataset.evaluation.measures), *dataset.evaluation.rankings],
            "queries": len(dataset.rows),
            "units": len(set(dataset.origins.values())),
            "errors": len(dataset.errors),
            "measures": measures,
        }
    tasks = {}
    for family in dict.fromkeys(dataset.family for dataset in datasets):
        parts = {name: list(each.values()) for (task, name), each in drawn.items() if task == family}
        entries = {name: _mean(each).entry(settings.baseline) for name, each in parts.items()}
        members = [dataset for dataset in datasets if dataset.family == family]
        headlines = [name for name in members[0].evaluation.headline if name in entries]
        tasks[family] = {
            "evaluation": members[0].evaluation.name,
            "describes": members[0].evaluation.describes,
            "headline": next(iter([*headlines, *entries]), None),
            "datasets": [dataset.name for dataset in members],
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
    counts: dict[str, int]
    """How many queries, units, queries left out and datasets it is taken over."""

    def entry(self, baseline: str) -> dict[str, Any]:
        values = {name: asdict(estimate(self.drawn, i)) for i, name in enumerate(self.names)}
        differences = {}
        if baseline in self.names:
            base = self.names.index(baseline)
            others = [(i, name) for i, name in enumerate(self.names) if i != base]
            differences = {name: asdict(difference(self.drawn, i, base)) for i, name in others}
        entry = {"kind": self.kind, **self.counts, "retrievers": values, "differences": differences}
        if {TRAINED, CONTROL} <= set(self.names):
            trained, control = self.names.index(TRAINED), self.names.index(CONTROL)
            entry["llm_share"] = asdict(distance(self.drawn, trained, control))
        return entry


def _measured(dataset: DatasetValues, name: str, names: list[str], settings: EvaluateConfig) -> _Measured | None:
    values = dataset.values[name]
    everywhere = set.intersection(*(set(values[each]) for each in names)) if names else set()
    if not everywhere:
        return None
    # Sorted, because the order of the queries decides which of them a resample draws.
    queries = sorted(everywhere)
    pairs = np.array([[values[each][query] for each in names] for query in queries])
    units = dataset.units(queries)
    measure = measure_of(dataset.evaluation, name)
    table = Table(measure, pairs[..., 0], pairs[..., 1], units)
    baseline = names.index(settings.baseline) if settings.baseline in names else 0
    # Every dataset is drawn by a stream of its own, so that one more dataset changes no number of the others. Measures
    # of a dataset share the stream, and with it the resamples where their queries agree.
    seed = int(content_id(settings.seed, dataset.name)[:8], 16)
    drawn = draw(table, baseline, settings.resamples, seed)
    left_out = len(set.union(*(set(values[each]) for each in names))) - len(queries)
    counts = {"queries": len(queries), "units": len(set(units.tolist())), "left_out": left_out, "datasets": 1}
    return _Measured(measure.kind, names, drawn, counts)


def _mean(parts: Sequence[_Measured]) -> _Measured:
    """The mean over datasets, with the retrievers that all of them have."""
    names = [name for name in parts[0].names if all(name in part.names for part in parts)]
    picked = []
    for part in parts:
        columns = [part.names.index(name) for name in names]
        drawn = part.drawn
        picked.append(Drawn(drawn.point_N[columns], drawn.resampled_RN[:, columns], drawn.swapped_RN[:, columns]))
    counts = {name: sum(part.counts[name] for part in parts) for name in parts[0].counts}
    return _Measured(parts[0].kind, names, average(picked), counts)


def headline_entries(results: Mapping[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    """The name and the entry of the measure that stands for each task, averaged over its datasets."""
    return {
        task: (entry["headline"], entry["measures"][entry["headline"]])
        for task, entry in results["tasks"].items()
        if entry["headline"] in entry["measures"]
    }
