"""What the pictures of all reports share: colours of text and lines for a background, the axes, and the PNG."""

from __future__ import annotations

import io
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure


@dataclass(frozen=True)
class PlotColors:
    """Colours of what is no data."""

    text: str
    lines: str
    background: str | None = None
    """None: transparent."""


ON_LIGHT = PlotColors(text="#1d2733", lines="#8a94a0")
ON_DARK = PlotColors(text="#e4e8ee", lines="#6b7683")
ON_PAPER = PlotColors(ON_LIGHT.text, ON_LIGHT.lines, background="#ffffff")


def style_axes(axis: Axes, title: str, ink: PlotColors, pad: float) -> None:
    """Two thin axes, small labels, and the title on the left, `pad` points above."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(ink.lines)
    axis.tick_params(colors=ink.text, labelsize=8, color=ink.lines)
    axis.set_facecolor("none")
    for one in (axis.xaxis, axis.yaxis):
        one.label.set(color=ink.text, fontsize=9)
    axis.set_title(title, loc="left", color=ink.text, fontsize=10.5, fontweight="bold", pad=pad, parse_math=False)


def png(figure: Figure, ink: PlotColors) -> bytes:
    """The picture on the background that the ink is for."""
    if ink.background:
        figure.set_facecolor(ink.background)
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=150, transparent=ink.background is None)
    return written.getvalue()
