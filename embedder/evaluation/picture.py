"""One picture that compares retrievers: a panel a measure, a group of bars a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

COLOURS = {"none": "#bbbbbb", "bm25": "#ddaa33", "base": "#4477aa", "trained": "#aa3377"}

Panel = Mapping[str, Mapping[str, float]]
"""Dataset -> retriever -> value."""


def draw_comparison(panels: Mapping[str, Panel], path: Path) -> None:
    """Write a PNG; a panel's title is its measure, and every bar carries its value."""
    shown = {title: panel for title, panel in panels.items() if panel}
    if not shown:
        return
    figure, axes = plt.subplots(len(shown), 1, figsize=(10, 3.4 * len(shown)), squeeze=False, layout="constrained")
    for axis, (title, panel) in zip(axes[:, 0], shown.items(), strict=True):
        retrievers = [name for name in COLOURS if any(name in values for values in panel.values())]
        width = 0.8 / len(retrievers)
        for offset, name in enumerate(retrievers):
            places = [i for i, values in enumerate(panel.values()) if name in values]
            heights = [values[name] for values in panel.values() if name in values]
            bars = axis.bar(
                [place + (offset - (len(retrievers) - 1) / 2) * width for place in places],
                heights,
                width * 0.92,
                label=name,
                color=COLOURS[name],
            )
            axis.bar_label(bars, fmt="%.3f", fontsize=7, padding=1)
        axis.set_xticks(range(len(panel)), list(panel))
        axis.set_title(title, loc="left", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(y=0.15)
        axis.legend(frameon=False, fontsize=8, ncols=len(retrievers), loc="upper left", bbox_to_anchor=(0.45, 1.15))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
