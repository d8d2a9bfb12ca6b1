"""The picture of the study: a row a task, the base at 0, and what each way to teach gains with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.study_arms import FULL, LABELS, SHUFFLED
from benchmarks.study_gains import PERPLEXITY, Row
from embedder.reporting.plots import PAPER, png, style_axes

MARKS = {
    FULL.name: ("full: rewards of the LLM", PAPER.series[0], "o", 7.0),
    SHUFFLED.name: ("shuffled: the LLM's part taken away", PAPER.greys[2], "s", 5.0),
    LABELS.name: ("labels: known positives alone", PAPER.series[3], "D", 5.0),
}
"""By arm: its words, colour, mark and size."""


def draw_gains(rows: Sequence[Row]) -> bytes:
    """A PNG of the gains of some tasks; to the right of 0 is better."""
    figure = Figure(figsize=(8.4, 1.5 + 0.72 * len(rows)), layout="constrained")
    axis = figure.subplots()
    for place, row in enumerate(rows):
        if place % 2:
            axis.axhspan(place - 0.5, place + 0.5, color="#f3f5f7", zorder=0)
        for shift, (arm, (_, color, mark, size)) in zip((-0.24, 0.0, 0.24), MARKS.items(), strict=True):
            one = row.gains.get(arm)
            if one is None:
                continue
            at = place + shift
            if isfinite(one.low):
                axis.plot([100 * one.low, 100 * one.high], [at, at], color=color, linewidth=2.2, zorder=2)
            axis.plot([100 * one.value], [at], mark, color=color, markersize=size, zorder=3)
    axis.axvline(0, color=PAPER.text, linewidth=1.2, zorder=1)
    axis.set_yticks(range(len(rows)), [f"{row.task}\n{_words(row.measure)}" for row in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlabel("gain over the base, which stands at 0 (points of 100; of perplexity and likelihood per cent)")
    style_axes(axis, "Gain on data sets that no training saw (95 % intervals)", PAPER, 26)
    keys = [
        Line2D([], [], color=color, marker=mark, markersize=size, linewidth=2.2, label=words)
        for words, color, mark, size in MARKS.values()
    ]
    axis.legend(
        handles=keys, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=8, borderaxespad=0.2
    )
    return png(figure, PAPER)


def _words(measure: str) -> str:
    return {PERPLEXITY: "lower perplexity", "log-likelihood": "answer's likelihood"}.get(measure, measure)
