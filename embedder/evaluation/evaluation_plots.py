"""One picture that compares retrievers: a panel a task, a bar a retriever with its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from embedder.evaluation.comparison import headline_entries
from embedder.reporting.plots import ON_DARK, ON_LIGHT, ON_PAPER, PlotColors, png, style_axes

COLUMNS = 3


@dataclass(frozen=True)
class Theme:
    """Colours of a picture for one background."""

    ink: PlotColors
    known: Mapping[str, str]
    """Colours of the built-in retrievers."""
    others: tuple[str, ...]
    """Of all others, in turn."""


LIGHT = Theme(
    ON_LIGHT,
    known={
        "none": "#c9ced5",
        "random": "#a5adb7",
        "recency": "#7f8a96",
        "bm25": "#d9a321",
        "base": "#4477aa",
        "trained": "#aa3377",
    },
    others=("#228833", "#ee6677", "#66ccee", "#8866cc", "#775533"),
)
DARK = Theme(
    ON_DARK,
    known={
        "none": "#4b545f",
        "random": "#66707c",
        "recency": "#8792a0",
        "bm25": "#e0b84f",
        "base": "#6fa8dc",
        "trained": "#ee88bb",
    },
    others=("#5fc06f", "#ff8f9c", "#8fdcf5", "#b59be8", "#c2a27f"),
)
PAPER = Theme(ON_PAPER, LIGHT.known, LIGHT.others)


def colours(names: list[str], theme: Theme) -> dict[str, str]:
    """A colour for each retriever."""
    own = [name for name in names if name not in theme.known]
    return {**theme.known, **{name: theme.others[i % len(theme.others)] for i, name in enumerate(own)}}


def draw_headlines(results: Mapping[str, Any], theme: Theme) -> bytes:
    """A PNG with the measure that stands for each task, averaged over the task's datasets; empty without any."""
    entries = headline_entries(results)
    rows = max(1, math.ceil(len(entries) / COLUMNS))
    bars = max((len(entry["retrievers"]) for _, entry in entries.values()), default=1)
    figure = Figure(figsize=(11, (0.75 + 0.27 * bars) * rows), layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1))
    axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    palette = colours(list(results["retrievers"]), theme)
    for axis, (task, (measure, entry)) in zip(axes, entries.items(), strict=False):
        _draw(axis, entry, palette, theme)
        lower = " (lower is better)" if entry["kind"] == "perplexity" else ""
        _dress(axis, f"{task}: {measure}{lower}", theme.ink)
    for axis in axes[len(entries) :]:
        axis.set_axis_off()
    return png(figure, theme.ink)


def _draw(axis: Axes, entry: Mapping[str, Any], palette: Mapping[str, str], theme: Theme) -> None:
    """Bars from 0 for shares; points for perplexities, of which only differences tell anything."""
    values = entry["retrievers"]
    places = range(len(values))
    points = [one["value"] for one in values.values()]
    spans = [
        [one["value"] - one["low"] for one in values.values()],
        [one["high"] - one["value"] for one in values.values()],
    ]
    shades = [palette[name] for name in values]
    from_zero = entry["kind"] == "mean" and min(points) >= 0
    if from_zero:
        axis.barh(list(places), points, 0.72, color=shades)
        axis.errorbar(points, list(places), xerr=spans, fmt="none", ecolor=theme.ink.text, elinewidth=1, capsize=2)
    else:
        for place, point, low, high, shade in zip(places, points, *spans, shades, strict=True):
            axis.errorbar(
                [point], [place], xerr=[[low], [high]], fmt="o", color=shade, elinewidth=1.6, capsize=3, markersize=6
            )
    last = max(one["high"] for one in values.values()) or 1.0
    first = 0.0 if from_zero else min(one["low"] for one in values.values())
    room = 0.24 * (last - first or 1.0)
    axis.set_xlim(first if from_zero else first - 0.06 * room / 0.24, last + room)
    digits = 3 if last < 10 else 2
    for place, one in zip(places, values.values(), strict=True):
        shown = f"{one['value']:.{digits}f}"
        axis.text(one["high"] + 0.08 * room, place, shown, va="center", ha="left", fontsize=8, color=theme.ink.text)
    axis.set_yticks(list(places), list(values))
    axis.set_ylim(len(values) - 0.4, -0.6)


def _dress(axis: Axes, title: str, ink: PlotColors) -> None:
    """What all panels share."""
    axis.tick_params(axis="y", length=0)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=4))
    style_axes(axis, title, ink, pad=6)
