"""The curves of a training: loss a task, learning-rate factor a task, and the validation where there was one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from embedder.reporting.plots import ON_DARK, ON_LIGHT, ON_PAPER, PlotColors, png, style_axes
from embedder.training.training_report import Point


@dataclass(frozen=True)
class Theme:
    """Colours of a picture for one background."""

    ink: PlotColors
    tasks: tuple[str, ...]
    """Of the tasks, in turn."""


LIGHT = Theme(
    ON_LIGHT,
    tasks=("#4477aa", "#aa3377", "#228833", "#d9a321", "#ee6677", "#66ccee", "#8866cc", "#775533"),
)
DARK = Theme(
    ON_DARK,
    tasks=("#6fa8dc", "#ee88bb", "#5fc06f", "#e0b84f", "#ff8f9c", "#8fdcf5", "#b59be8", "#c2a27f"),
)
PAPER = Theme(ON_PAPER, LIGHT.tasks)


def draw_training(numbers: Mapping[str, Any], theme: Theme) -> bytes:
    """A PNG of what `report.summarise` found: two panels, or three with a validation."""
    validation = numbers["validation"]
    panels = 2 if validation is None else 3
    figure = Figure(figsize=(4.2 * panels, 3.6), layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.1))
    axes = figure.subplots(1, panels, squeeze=False).ravel()
    tasks = {task: one for task, one in numbers["tasks"].items() if one["losses"]}
    palette = {task: theme.tasks[i % len(theme.tasks)] for i, task in enumerate(tasks)}
    _draw(axes[0], {task: one["losses"] for task, one in tasks.items()}, palette)
    _draw(axes[1], {task: one["paces"] for task, one in tasks.items()}, palette)
    titles = ["Loss", "Learning-rate factor (self-paced)"]
    if validation is not None:
        _draw_validation(axes[2], validation, palette, theme)
        titles.append(f"NDCG@{validation['cutoff']}, held-out queries")
    for axis, title in zip(axes, titles, strict=True):
        _dress(axis, title, theme.ink)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower left", ncols=6, frameon=False, fontsize=8.5, labelcolor=theme.ink.text
    )
    return png(figure, theme.ink)


def _draw(axis: Axes, curves: Mapping[str, Sequence[Point]], palette: Mapping[str, str]) -> None:
    for task, points in curves.items():
        steps, values = zip(*points, strict=True)
        mark = "o" if len(points) == 1 else None
        axis.plot(steps, values, color=palette[task], linewidth=1.4, marker=mark, markersize=3, label=task)


def _draw_validation(axis: Axes, validation: Mapping[str, Any], palette: Mapping[str, str], theme: Theme) -> None:
    history = validation["history"]
    for task in history[0]["tasks"]:
        points = [(one["steps"], one["tasks"][task]) for one in history]
        axis.plot(*zip(*points, strict=True), color=palette.get(task, theme.ink.lines), linewidth=1.1, alpha=0.75)
    means = [(one["steps"], one["mean"]) for one in history]
    axis.plot(*zip(*means, strict=True), color=theme.ink.text, linewidth=2.0, linestyle=(0, (4, 1.5)))
    best = history[validation["best"]]
    axis.plot([best["steps"]], [best["mean"]], "o", color=theme.ink.text, markersize=6)
    axis.annotate(
        f"best mean {best['mean']:.3f}",
        (best["steps"], best["mean"]),
        xytext=(0, 8),
        textcoords="offset points",
        ha="center",
        fontsize=8,
        color=theme.ink.text,
    )


def _dress(axis: Axes, title: str, ink: PlotColors) -> None:
    """What all panels share."""
    axis.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axis.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axis.set_xlabel("step")
    style_axes(axis, title, ink, pad=8)
