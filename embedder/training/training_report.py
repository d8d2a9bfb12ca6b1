"""The training report: `training.json` for programs, `training.html` to read, `training.png` to show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from embedder.config.train import TrainConfig
from embedder.reporting.html import render
from embedder.reporting.plots import PAPER, PlotColors, light_and_dark, png, style_axes
from embedder.storage.json_file import write_json
from embedder.storage.object_store import AnyPath, replacing
from embedder.training.job import StepMetrics

MOST_POINTS = 300
"""A longer curve is averaged over neighbouring steps."""
END_PARTS = 5
"""The first and the last of so many parts stand for both ends of a loss."""

Point = tuple[float, float]
"""Step, counted from 1, and value."""


def summarise(
    steps: Sequence[StepMetrics],
    sizes: Mapping[str, int],
    left_out: Mapping[str, int],
    outcome: Mapping[str, Any],
    config: TrainConfig,
) -> dict[str, Any]:
    """The training as plain numbers, which the report's page, picture and JSON show.

    Args:
        steps: All steps of `MetricsReader`.
        sizes: Rows trained on, by task.
        left_out: Groups left out, by task and reason.
        outcome: What the loop wrote at the end; trainings of earlier versions noted no temperatures.
        config: The settings.
    """
    alphas = outcome.get("reward_temperatures", {})
    seconds = sum(step.seconds for step in steps)
    validation: dict[str, Any] | None = None
    if config.validation is not None:
        is_early = outcome["steps"] < config.steps
        validation = {"cutoff": config.validation.cutoff, **outcome["validation"], "stopped_early": is_early}
    return {
        "steps": len(steps),
        "queries": len(steps) * config.batch_size,
        "seconds": seconds,
        "queries_per_s": len(steps) * config.batch_size / seconds if seconds else 0.0,
        "workers": sorted({step.workers for step in steps}),
        "tasks": {
            task: {**_summarise_task(task, size, steps), "reward_temperature": alphas.get(task)}
            for task, size in sorted(sizes.items())
        },
        "validation": validation,
        "guard": outcome["guard"] if config.guard is not None else None,
        "left_out": dict(sorted(left_out.items())),
        "settings": config.model_dump(mode="json"),
    }


def _summarise_task(task: str, size: int, steps: Sequence[StepMetrics]) -> dict[str, Any]:
    own = [step for step in steps if task in step.losses]
    losses = [step.losses[task] for step in own]
    end = max(1, len(losses) // END_PARTS)
    return {
        "rows": size,
        "steps": len(own),
        "loss_first": mean(losses[:end]) if losses else None,
        "loss_last": mean(losses[-end:]) if losses else None,
        "pace_last": own[-1].paces[task] if own else None,
        "losses": thinned([(step.step + 1, step.losses[task]) for step in own]),
        "paces": thinned([(step.step + 1, step.paces[task]) for step in own]),
    }


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most `most` points, each the mean of neighbours."""
    size = -(-len(points) // most) if points else 1
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(mean(step for step, _ in part), mean(value for _, value in part)) for part in parts]


def write_report(numbers: Mapping[str, Any], folder: AnyPath, run: str) -> AnyPath:
    """Write all three files, each as a whole; returns the path of the page.

    Args:
        numbers: Result of `summarise`.
        folder: Made where it is missing.
        run: Name in the heading.
    """
    write_json(dict(numbers), folder / "training.json")
    with replacing(folder / "training.png") as file:
        file.write(draw_training(numbers, PAPER))
    path = folder / "training.html"
    with replacing(path) as file:
        file.write(page(numbers, run).encode())
    return path


def page(numbers: Mapping[str, Any], run: str) -> str:
    """The report as one HTML page; all texts are escaped and the page loads nothing."""
    return render("training.html", run=run, numbers=numbers, curves=light_and_dark(draw_training, numbers))


def report_lines(numbers: Mapping[str, Any]) -> list[str]:
    """What a finished training tells: each task's loss at both ends, and the validation before, at best and last."""
    lines = [
        f"{name}: {task['rows']:,} rows, {task['steps']:,} steps, loss {task['loss_first']:.4f} -> "
        f"{task['loss_last']:.4f} (first and last fifth), pace {task['pace_last']:.2f}"
        + ("" if task["reward_temperature"] is None else f", reward temperature {task['reward_temperature']:.4g}")
        for name, task in numbers["tasks"].items()
        if task["steps"]
    ]
    if validation := numbers["validation"]:
        history, settings = validation["history"], numbers["settings"]
        first, best, last = history[0], history[validation["best"]], history[-1]
        exported = "" if numbers["guard"] else " (exported)"
        lines.append(
            f"NDCG@{validation['cutoff']} on held-out queries: {first['mean']:.4f} before, best {best['mean']:.4f} "
            f"after {best['steps']:,} steps{exported}, {last['mean']:.4f} after {last['steps']:,}"
        )
        if guard := numbers["guard"]:
            lines.append(guard_line(guard))
        if not best["steps"]:
            lines.append("no step did better than the encoder it began with, which is what was exported")
        if validation["stopped_early"]:
            lines.append(
                f"stopped {settings['steps'] - last['steps']:,} steps early: {settings['validation']['patience']} "
                "measurements brought no new best"
            )
    return lines


def guard_line(guard: Mapping[str, Any]) -> str:
    """What the guard chose, and what each share of the way would have given."""
    tried = ", ".join(f"{entry['share']:.0%} {entry['mean']:.4f}" for entry in guard["measured"])
    return (
        f"guard: exported are the weights at {guard['share']:.0%} of the way from the base to the best; mean NDCG by "
        f"share: {tried}"
    )


def draw_training(numbers: Mapping[str, Any], colors: PlotColors) -> bytes:
    """A PNG of what `summarise` returns: loss and learning-rate factor of each task, and the validation if any."""
    validation = numbers["validation"]
    panels = 2 if validation is None else 3
    figure = Figure(figsize=(4.2 * panels, 3.6), layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.1))
    axes = figure.subplots(1, panels, squeeze=False).ravel()
    # A task that no step drew has no curve, and takes no colour from those that have one.
    tasks = {name: task for name, task in numbers["tasks"].items() if task["losses"]}
    palette = {name: colors.series[i % len(colors.series)] for i, name in enumerate(tasks)}
    titles = ["Loss", "Learning-rate factor (self-paced)"]
    for axis, curve in zip(axes, ("losses", "paces"), strict=False):
        for name, task in tasks.items():
            # A curve of one point would be invisible without a marker.
            marker = "o" if len(task[curve]) == 1 else None
            line = {"color": palette[name], "linewidth": 1.4, "marker": marker, "markersize": 3, "label": name}
            axis.plot(*zip(*task[curve], strict=True), **line)
    if validation is not None:
        _draw_validation(axes[2], validation, palette, colors)
        titles.append(f"NDCG@{validation['cutoff']}, held-out queries")
    for axis, title in zip(axes, titles, strict=True):
        axis.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axis.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axis.set_xlabel("step")
        style_axes(axis, title, colors, pad=8)
    legend = axes[0].get_legend_handles_labels()
    figure.legend(*legend, loc="outside lower left", ncols=6, frameon=False, fontsize=8.5, labelcolor=colors.text)
    return png(figure, colors)


def _draw_validation(axis: Axes, validation: Mapping[str, Any], palette: Mapping[str, str], colors: PlotColors) -> None:
    history = validation["history"]
    steps = [measured["steps"] for measured in history]
    for task in history[0]["tasks"]:
        values = [measured["tasks"][task] for measured in history]
        axis.plot(steps, values, color=palette.get(task, colors.lines), linewidth=1.1, alpha=0.75)
    means = [measured["mean"] for measured in history]
    axis.plot(steps, means, color=colors.text, linewidth=2.0, linestyle=(0, (4, 1.5)))
    best = (steps[validation["best"]], means[validation["best"]])
    axis.plot(*best, "o", color=colors.text, markersize=6)
    label = f"best mean {best[1]:.3f}"
    axis.annotate(label, best, (0, 8), textcoords="offset points", ha="center", fontsize=8, color=colors.text)
