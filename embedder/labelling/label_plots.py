"""Histograms of one task's labels: the rank of the desired output, and the rewards."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter

from embedder.labelling.label_statistics import RANK_STEP, Histogram, TaskStatistics, bins_a_bar
from embedder.reporting.plots import ON_DARK, ON_LIGHT, PlotColors, png, style_axes

REWARD_UNITS = {
    "rank": "reward: ranks that the desired output gains",
    "likelihood": "reward: log-likelihood of the desired output (nats a token)",
    "lift": "reward: log-likelihood of the desired output gained (nats a token)",
}
"""By kind of reward; others are on the scale of their teacher."""


@dataclass(frozen=True)
class Theme:
    """Colours of a picture for one background."""

    ink: PlotColors
    without: str
    """Without a candidate."""
    other: str
    """With a candidate; candidates that are no known positive."""
    positive: str


LIGHT = Theme(ON_LIGHT, without="#b4bac2", other="#4477aa", positive="#aa3377")
DARK = Theme(ON_DARK, without="#66707c", other="#6fa8dc", positive="#ee88bb")


def draw_task(one: TaskStatistics, theme: Theme) -> str:
    """A PNG on a transparent background, as base64: a panel for ranks where there are any, one a kind of reward."""
    ranked = bool(one.rank_without.counts)
    panels = ranked + len(one.rewards)
    rows = math.ceil(panels / 2)
    figure = Figure(figsize=(10.4, 3.3 * rows), layout=ConstrainedLayoutEngine(h_pad=0.12))
    axes = figure.subplots(rows, 2, squeeze=False).ravel()
    if ranked:
        _draw_ranks(axes[0], one.rank_without, one.rank_with, theme)
    for axis, (kind, (other, positive)) in zip(axes[int(ranked) :], sorted(one.rewards.items()), strict=False):
        _draw_rewards(axis, kind, other, positive, theme)
    for axis in axes[panels:]:
        axis.set_axis_off()
    for axis in axes[:panels]:
        _dress(axis, theme.ink)
    return base64.b64encode(png(figure, theme.ink)).decode("ascii")


def _draw_ranks(axis: Axes, without: Histogram, with_one: Histogram, theme: Theme) -> None:
    merged = bins_a_bar([without, with_one])
    width = without.step * merged * 0.42
    for side, histogram, colour, label in (
        (-0.5, without, theme.without, "without a candidate (groups)"),
        (0.5, with_one, theme.other, "with one (candidates)"),
    ):
        total = histogram.counts.total()
        heights = {middle + side * width: count / total for middle, count in _middles(histogram, merged).items()}
        axis.bar(list(heights), list(heights.values()), width, color=colour, label=label)
    last = math.ceil(max(max(_middles(histogram, merged)) for histogram in (without, with_one)))
    axis.set_xlim(0.4, max(last, 3) + 0.6)
    axis.set_xticks(range(1, max(last, 3) + 1, 1 + last // 16))
    axis.set_title("Rank of the desired output")
    axis.set_xlabel("rank among the sampled outputs (1 is best)")
    axis.set_ylabel("share of groups or candidates")


def _draw_rewards(axis: Axes, kind: str, other: Histogram, positive: Histogram, theme: Theme) -> None:
    merged = bins_a_bar([other, positive])
    bar = other.step * merged
    total = other.counts.total() + positive.counts.total()
    floor: dict[float, float] = {}
    for histogram, colour, label in ((other, theme.other, "others"), (positive, theme.positive, "known positives")):
        heights = {middle: count / total for middle, count in _middles(histogram, merged).items()}
        if heights:
            bottoms = [floor.get(middle, 0.0) for middle in heights]
            axis.bar(list(heights), list(heights.values()), bar * 0.84, bottom=bottoms, color=colour, label=label)
            floor |= heights
    spare = max(1.0, 5 - (max(floor) - min(floor)) / bar / 2) * bar
    axis.set_xlim(min(floor) - spare, max(floor) + spare)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=11, integer=kind == "rank"))
    axis.set_title(f"Rewards: {kind}", parse_math=False)
    axis.set_xlabel(REWARD_UNITS.get(kind, "reward: the teacher's own scale"))
    axis.set_ylabel("share of candidates")


def _middles(histogram: Histogram, merged: int) -> dict[float, int]:
    """Counts by the middle of the values that a bar can hold: of a bin of ranks that is one value, its lower end."""
    bins = merged - 1 if histogram.step == RANK_STEP else merged
    return {low + bins * histogram.step / 2: count for low, count in histogram.bars(merged).items()}


def _dress(axis: Axes, ink: PlotColors) -> None:
    """What all panels share: per cent, a legend above the bars that hides none."""
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.yaxis.set_major_locator(MaxNLocator(nbins=5))
    title = axis.get_title()
    axis.set_title("")
    style_axes(axis, title, ink, pad=24)
    axis.legend(
        frameon=False,
        fontsize=8.5,
        labelcolor=ink.text,
        ncols=2,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        borderaxespad=0.2,
        handlelength=1.2,
    )
