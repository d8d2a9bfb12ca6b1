"""The evaluation report: `results.json`, `report.html`, `comparison.png`, and the table on the console."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from rich import box
from rich.table import Table

from embedder.evaluation.comparison import headline_entries
from embedder.reporting.html import render
from embedder.reporting.plots import PAPER, PlotColors, light_and_dark, png, style_axes
from embedder.storage.json_file import write_json
from embedder.storage.object_store import AnyPath, replacing

PANELS_A_ROW = 3
SHOWN_RETRIEVERS = 3
"""More than so many do not fit the console's table."""

Measured = tuple[str, Mapping[str, Any]]
"""A measure's name and its entry in the results."""


def write_report(results: Mapping[str, Any], folder: AnyPath, run: str) -> AnyPath:
    """Write all three files, each as a whole; returns the path of the page.

    Args:
        results: Result of `comparison.summarise`, with the examples of each dataset.
        folder: Made where it is missing.
        run: Name in the heading.
    """
    write_json(results, folder / "results.json")
    with replacing(folder / "comparison.png") as file:
        file.write(draw_headlines(results, PAPER))
    path = folder / "report.html"
    with replacing(path) as file:
        file.write(page(results, run).encode())
    return path


def page(results: Mapping[str, Any], run: str) -> str:
    """The report as one HTML page; all texts are escaped and the page loads nothing."""
    return render(
        "evaluation.html",
        run=run,
        results=results,
        headlines=[(f"{task}: {measure}", entry) for task, (measure, entry) in headline_entries(results).items()],
        comparison=light_and_dark(draw_headlines, results),
        columns=columns,
        headline_first=headline_first,
    )


def columns(results: Mapping[str, Any], rows: Sequence[Measured], part: str) -> list[str]:
    """The retrievers that any of the rows has a value for in this part of its entry."""
    return [name for name in results["retrievers"] if any(name in entry[part] for _, entry in rows)]


def headline_first(dataset: Mapping[str, Any]) -> list[Measured]:
    """The measures of a dataset, the one that stands for it first."""
    return sorted(dataset["measures"].items(), key=lambda measured: measured[0] != dataset["headline"])


def results_table(results: Mapping[str, Any]) -> Table:
    """The measures of each dataset's evaluation, the one that stands for it first; the report has the others too.

    The difference is that of the retriever compared, or of the last one, to the baseline. Of more than three retrievers
    only these two are shown, so that the table fits a log file.
    """
    names, baseline = results["retrievers"], results["baseline"]
    last = "trained" if "trained" in names and baseline != "trained" else names[-1]
    if len(names) > SHOWN_RETRIEVERS:
        names = list(dict.fromkeys([baseline, last]))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for column in ("dataset", "measure", "n", *names, f"{last} - {baseline} [95 %]", "p"):
        table.add_column(column, overflow="fold")
    for name, dataset in results["datasets"].items():
        own = [measure for measure in dataset["own"] if measure in dataset["measures"]]
        for measure in sorted(own, key=lambda measure: measure != dataset["headline"]):
            entry = dataset["measures"][measure]
            values = [entry["retrievers"].get(retriever) for retriever in names]
            cells = ["-" if value is None else f"{value['value']:.3f}" for value in values]
            change = entry["differences"].get(last)
            shown = f"{change['value']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]" if change else "-"
            p = f"{change['p']:.4f}" if change else "-"
            table.add_row(name, measure, str(entry["queries"]), *cells, shown, p)
        table.add_section()
    return table


def retriever_colors(names: Sequence[str], colors: PlotColors) -> dict[str, str]:
    """A colour for each retriever; those that are built in keep theirs whatever they are compared with."""
    blue, purple, green, yellow, *others = colors.series
    built_in = {"base": blue, "trained": purple, "bm25": yellow}
    built_in |= zip(("none", "random", "recency"), colors.greys, strict=True)
    free = [green, *others]
    own = [name for name in names if name not in built_in]
    return built_in | {name: free[i % len(free)] for i, name in enumerate(own)}


def draw_headlines(results: Mapping[str, Any], colors: PlotColors) -> bytes:
    """A PNG with a panel a task: the measure that stands for it, averaged over its datasets; empty without any."""
    entries = headline_entries(results)
    rows = max(1, math.ceil(len(entries) / PANELS_A_ROW))
    bars = max((len(entry["retrievers"]) for _, entry in entries.values()), default=1)
    figure = Figure(figsize=(11, (0.75 + 0.27 * bars) * rows), layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1))
    axes = figure.subplots(rows, PANELS_A_ROW, squeeze=False).ravel()
    palette = retriever_colors(results["retrievers"], colors)
    for axis, (task, (measure, entry)) in zip(axes, entries.items(), strict=False):
        _draw_task(axis, entry, palette, colors)
        lower = " (lower is better)" if entry["kind"] == "perplexity" else ""
        style_axes(axis, f"{task}: {measure}{lower}", colors, pad=6)
    for axis in axes[len(entries) :]:
        axis.set_axis_off()
    return png(figure, colors)


def _draw_task(axis: Axes, entry: Mapping[str, Any], palette: Mapping[str, str], colors: PlotColors) -> None:
    retrievers = entry["retrievers"]
    # A bar must begin at 0, but only differences of perplexities mean anything: those are points on a shorter axis.
    from_zero = entry["kind"] == "mean" and min(measured["value"] for measured in retrievers.values()) >= 0
    last = max(measured["high"] for measured in retrievers.values()) or 1.0
    first = 0.0 if from_zero else min(measured["low"] for measured in retrievers.values())
    extent = last - first or 1.0
    for row, (name, measured) in enumerate(retrievers.items()):
        value, high, color = measured["value"], measured["high"], palette[name]
        spread = [[value - measured["low"]], [high - value]]
        if from_zero:
            axis.barh(row, value, 0.72, color=color)
            axis.errorbar([value], [row], xerr=spread, fmt="none", ecolor=colors.text, elinewidth=1, capsize=2)
        else:
            axis.errorbar([value], [row], xerr=spread, fmt="o", color=color, elinewidth=1.6, capsize=3, markersize=6)
        text = f"{value:.{3 if last < 10 else 2}f}"
        axis.text(high + 0.02 * extent, row, text, va="center", ha="left", fontsize=8, color=colors.text)
    # The room on the right is for the number behind the longest bar.
    axis.set_xlim(first if from_zero else first - 0.06 * extent, last + 0.24 * extent)
    axis.set_yticks(range(len(retrievers)), list(retrievers))
    # Upside down, because the first retriever belongs at the top.
    axis.set_ylim(len(retrievers) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=4))
