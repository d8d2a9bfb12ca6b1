"""The labelling report: `labelling.json` for programs, `labelling.html` to read, with histograms of the labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter

from embedder.labelling.label_statistics import (
    RANK_STEP,
    Histogram,
    LabelCost,
    TaskStatistics,
    bins_a_bar,
)
from embedder.labelling.rounding import Rounding, rounding_numbers
from embedder.reporting.html import printable, render
from embedder.reporting.plots import PlotColors, light_and_dark, png, style_axes
from embedder.storage.json_file import write_json
from embedder.storage.object_store import AnyPath, replacing

REWARD_UNITS = {
    "rank": "reward: ranks that the desired output gains",
    "likelihood": "reward: log-likelihood of the desired output (nats)",
    "gain": "reward: log-likelihood of the desired output gained (nats)",
    "own_answers": "reward: log-likelihood of the LLM's own answers gained (nats)",
    "judgement": "reward: expected verdict of the LLM (no 0, partly 0.5, yes 1)",
    "rank_then_gain": "reward: ranks that the desired output gains, or its gain of log-likelihood",
}
"""Axis labels by kind of reward; others are on the scale of their teacher."""


def write_report(
    tasks: Mapping[str, TaskStatistics],
    cost: LabelCost | None,
    folder: AnyPath,
    run: str,
    devices: Sequence[str] = (),
    rounding: Rounding | str | None = None,
) -> AnyPath:
    """Write `labelling.json` and `labelling.html` into a folder, each as a whole.

    Args:
        tasks: The statistics of all rows of the run, by task.
        cost: Cost of this run; None where nothing was labelled by it.
        folder: Made where it is missing.
        run: Name in the heading.
        devices: Kinds of device, number format and scorer that made the log-likelihoods.
        rounding: What bfloat16 changed of the rewards, or why that is not known; None where nothing was measured.

    Returns:
        The path of the page.
    """
    # A task's name comes from a table that others may have written: with a lone surrogate it would be no UTF-8.
    numbers = {printable(name): task.numbers() for name, task in sorted(tasks.items())}
    made = {"cost": cost.numbers() if cost else None, "devices": list(devices), "rounding": rounding_numbers(rounding)}
    write_json({**made, "tasks": numbers}, folder / "labelling.json")
    path = folder / "labelling.html"
    with replacing(path) as file:
        file.write(page(tasks, cost, run, devices, rounding).encode())
    return path


def page(
    tasks: Mapping[str, TaskStatistics],
    cost: LabelCost | None,
    run: str,
    devices: Sequence[str] = (),
    rounding: Rounding | str | None = None,
) -> str:
    """The report as one HTML page; all texts are escaped and the page loads nothing."""
    tasks = dict(sorted(tasks.items()))
    pictures = {name: light_and_dark(draw_task, task) for name, task in tasks.items() if task.counts["rewarded"]}
    changed = rounding.line() if isinstance(rounding, Rounding) else rounding
    made = {"cost": cost, "devices": devices, "rounding": changed}
    return render("labelling.html", run=run, **made, tasks=tasks, pictures=pictures)


def draw_task(task: TaskStatistics, colors: PlotColors) -> bytes:
    """A PNG of one task's histograms: a panel for ranks where there are any, one a kind of reward."""
    ranked = bool(task.rank_without.counts)
    panels = ranked + len(task.rewards)
    rows = math.ceil(panels / 2)
    figure = Figure(figsize=(10.4, 3.3 * rows), layout=ConstrainedLayoutEngine(h_pad=0.12))
    axes = figure.subplots(rows, 2, squeeze=False).ravel()
    if ranked:
        _draw_ranks(axes[0], task.rank_without, task.rank_with, colors)
    for axis, (kind, (other, positive)) in zip(axes[int(ranked) :], sorted(task.rewards.items()), strict=False):
        _draw_rewards(axis, kind, other, positive, colors)
    for axis in axes[panels:]:
        axis.set_axis_off()
    for axis in axes[:panels]:
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        axis.yaxis.set_major_locator(MaxNLocator(nbins=5))
        # Between title and bars, because there is no corner that bars never reach.
        position = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "borderaxespad": 0.2}
        axis.legend(frameon=False, fontsize=8.5, labelcolor=colors.text, ncols=2, handlelength=1.2, **position)
    return png(figure, colors)


def _draw_ranks(axis: Axes, without: Histogram, with_candidate: Histogram, colors: PlotColors) -> None:
    # Both histograms get bars of one width, so that their heights can be compared.
    merged = bins_a_bar([without, with_candidate])
    width = without.step * merged * 0.42
    for side, histogram, color, label in (
        (-0.5, without, colors.greys[1], "without a candidate (groups)"),
        (0.5, with_candidate, colors.series[0], "with one (candidates)"),
    ):
        total = histogram.counts.total()
        heights = {middle + side * width: count / total for middle, count in _middles(histogram, merged).items()}
        axis.bar(list(heights), list(heights.values()), width, color=color, label=label)
    last = math.ceil(max(max(_middles(histogram, merged)) for histogram in (without, with_candidate)))
    axis.set_xlim(0.4, max(last, 3) + 0.6)
    axis.set_xticks(range(1, max(last, 3) + 1, 1 + last // 16))
    axis.set_xlabel("rank among the sampled outputs (1 is best)")
    axis.set_ylabel("share of groups or candidates")
    style_axes(axis, "Rank of the desired output", colors, pad=24)


def _draw_rewards(axis: Axes, kind: str, other: Histogram, positive: Histogram, colors: PlotColors) -> None:
    merged = bins_a_bar([other, positive])
    bar = other.step * merged
    total = other.counts.total() + positive.counts.total()
    floor: dict[float, float] = {}
    parts = ((other, colors.series[0], "others"), (positive, colors.series[1], "known positives"))
    for histogram, color, label in parts:
        heights = {middle: count / total for middle, count in _middles(histogram, merged).items()}
        if heights:
            bottoms = [floor.get(middle, 0.0) for middle in heights]
            axis.bar(list(heights), list(heights.values()), bar * 0.84, bottom=bottoms, color=color, label=label)
            floor |= heights
    # A single bar would otherwise fill the whole panel.
    spare = max(1.0, 5 - (max(floor) - min(floor)) / bar / 2) * bar
    axis.set_xlim(min(floor) - spare, max(floor) + spare)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=11, integer=kind == "rank"))
    axis.set_xlabel(REWARD_UNITS.get(kind, "reward: the teacher's own scale"))
    axis.set_ylabel("share of candidates")
    style_axes(axis, f"Rewards: {kind}", colors, pad=24)


def _middles(histogram: Histogram, merged: int) -> dict[float, int]:
    """Counts by the middle of the values that a bar can hold."""
    # A bin of ranks holds a single value, its lower end, so that the last bin of a bar adds no width.
    bins = merged - 1 if histogram.step == RANK_STEP else merged
    return {low + bins * histogram.step / 2: count for low, count in histogram.bars(merged).items()}
