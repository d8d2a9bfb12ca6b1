"""The training report: `training.json` for programs, `training.html` to read, `training.png` to show."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any
from xml.etree.ElementTree import Element

from embedder.reporting.html import (
    add,
    duration,
    fixed,
    heading,
    new_page,
    picture,
    printable,
    row,
    significant,
    table,
    tiles,
)
from embedder.reporting.html import written as as_text
from embedder.storage.json_file import write_json
from embedder.storage.object_store import AnyPath, replacing
from embedder.training.training_plots import DARK, LIGHT, PAPER, draw_training

SECTIONS = {"curves": "Curves", "tasks": "Tasks", "validation": "Validation", "settings": "Settings"}


def write_report(numbers: Mapping[str, Any], folder: AnyPath, run: str) -> AnyPath:
    """Write all three files, each as a whole; returns the page.

    Args:
        numbers: From `report.summarise`.
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
    lead = "How the losses of the tasks went, how fast each task learned, and how held-out queries were ranked."
    root, body = new_page(f"Training of {printable(run)}", lead, SECTIONS)
    workers = " to ".join(str(count) for count in dict.fromkeys([min(numbers["workers"]), max(numbers["workers"])]))
    tiles(
        body,
        [
            ("steps", f"{numbers['steps']:,}"),
            ("queries trained", f"{numbers['queries']:,}"),
            ("computing", duration(numbers["seconds"])),
            (f"queries a second on {workers} workers", significant(numbers["queries_per_s"])),
        ],
    )
    heading(body, "h2", "Curves", "curves")
    light, dark = (base64.b64encode(draw_training(numbers, theme)).decode("ascii") for theme in (LIGHT, DARK))
    picture(body, light, dark, "Loss and learning-rate factor of each task, and NDCG on held-out queries, by step")
    _tasks(body, numbers)
    _validation(body, numbers["validation"])
    heading(body, "h2", "Settings", "settings")
    lines = table(body, ["train.", "value"], [])
    for name, value in numbers["settings"].items():
        row(lines, [name, printable(str(value))], [])
    return as_text(root)


def _tasks(body: Element, numbers: Mapping[str, Any]) -> None:
    heading(body, "h2", "Tasks", "tasks")
    lines = table(body, ["task"], ["groups", "steps", "loss, first fifth", "last fifth", "factor at the end"])
    for task, one in numbers["tasks"].items():
        counts = [f"{one['rows']:,}", f"{one['steps']:,}"]
        losses = [fixed(one["loss_first"], 4), fixed(one["loss_last"], 4)]
        row(lines, [printable(task)], [*counts, *losses, fixed(one["pace_last"], 2)])
    add(body, "p", "Losses of different kinds cannot be compared with each other, only with themselves.", "soft")
    if numbers["left_out"]:
        lines = table(body, ["groups left out"], ["groups"])
        for reason, count in numbers["left_out"].items():
            row(lines, [printable(reason)], [f"{count:,}"])


def _validation(body: Element, validation: Mapping[str, Any] | None) -> None:
    heading(body, "h2", "Validation", "validation")
    if validation is None:
        add(body, "p", "No groups were kept apart; the encoder of the last step was exported.")
        return
    history, place = validation["history"], validation["best"]
    best = history[place]
    if best["steps"]:
        add(body, "p", f"Exported: the encoder after {best['steps']:,} steps, which ranks held-out queries best.")
    else:
        add(body, "p", "No step did better than the encoder it began with, which is what was exported.", "positive")
    if validation["stopped_early"]:
        add(body, "p", "Stopped early: the last measurements brought no new best.")
    names = list(history[0]["tasks"])
    lines = table(body, [f"NDCG@{validation['cutoff']}"], [*map(printable, names), "mean"])
    shown = {"before": history[0], f"best, after {best['steps']:,} steps": best}
    for label, one in {**shown, f"last, after {history[-1]['steps']:,} steps": history[-1]}.items():
        row(lines, [label], [fixed(one["tasks"].get(name), 4) for name in names] + [fixed(one["mean"], 4)])
