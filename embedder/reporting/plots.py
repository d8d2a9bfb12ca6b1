"""What the pictures of all reports share: colours for a background, axes, and PNG."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Data = TypeVar("Data")


@dataclass(frozen=True)
class PlotColors:
    """Colours of a picture for one background."""

    text: str
    lines: str
    """Colour of axes and their ticks."""
    series: tuple[str, ...]
    """Colours of data, in turn: blue, purple, green, yellow, red, cyan, violet, brown."""
    greys: tuple[str, ...]
    """Colours of data to compare with, the one nearest to the background first."""
    background: str | None = None
    """None: transparent."""


LIGHT = PlotColors(
    text="#1d2733",
    lines="#8a94a0",
    series=("#4477aa", "#aa3377", "#228833", "#d9a321", "#ee6677", "#66ccee", "#8866cc", "#775533"),
    greys=("#c9ced5", "#a5adb7", "#7f8a96"),
)
DARK = PlotColors(
    text="#e4e8ee",
    lines="#6b7683",
    series=("#6fa8dc", "#ee88bb", "#5fc06f", "#e0b84f", "#ff8f9c", "#8fdcf5", "#b59be8", "#c2a27f"),
    greys=("#4b545f", "#66707c", "#8792a0"),
)
PAPER = replace(LIGHT, background="#ffffff")
"""For a picture that is shown by itself, on whatever background."""


def style_axes(axis: Axes, title: str, colors: PlotColors, pad: float) -> None:
    """Two thin axes, small labels, and the title on the left, `pad` points above."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(colors.lines)
    axis.tick_params(colors=colors.text, labelsize=8, color=colors.lines)
    axis.set_facecolor("none")
    for side in (axis.xaxis, axis.yaxis):
        side.label.set(color=colors.text, fontsize=9)
    # The names of tasks and measures are shown as they are: a dollar sign must not begin a formula.
    axis.set_title(title, loc="left", color=colors.text, fontsize=10.5, fontweight="bold", pad=pad, parse_math=False)


def png(figure: Figure, colors: PlotColors) -> bytes:
    """A PNG of a figure, on the background of the colours."""
    if colors.background:
        figure.set_facecolor(colors.background)
    # Figures are made without pyplot, because it keeps every figure open and is not safe in threads.
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150, transparent=colors.background is None)
    return file.getvalue()


def light_and_dark(draw: Callable[[Data, PlotColors], bytes], data: Data) -> tuple[str, str]:
    """A picture for either background of a page, each a PNG as base64."""
    light, dark = (base64.b64encode(draw(data, colors)).decode("ascii") for colors in (LIGHT, DARK))
    return light, dark
