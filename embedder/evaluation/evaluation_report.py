"""What an evaluation leaves behind: `results.json`, `report.html`, `comparison.png`, and the table of the console."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from embedder.evaluation.evaluation_page import page
from embedder.evaluation.evaluation_plots import PAPER, draw_headlines
from embedder.storage.json_file import write_json
from embedder.storage.object_store import replacing


def write_report(results: Mapping[str, Any], folder: Path, run: str) -> Path:
    """Write all three files, each as a whole; returns the page.

    Args:
        results: From `results.summarise`, with the examples of each dataset.
        folder: Made where it is missing.
        run: Name in the heading.
    """
    write_json(results, folder / "results.json")
    with replacing(folder / "comparison.png") as file:
        file.write(draw_headlines(results, PAPER))
    path = folder / "report.html"
    with replacing(path) as file:
        file.write(page(results, run).encode())
    return path


def results_table(results: Mapping[str, Any]) -> Table:
    """The measures of each dataset's evaluation, the one that stands for it first; the report has the others too.

    The difference is that of the retriever compared, or of the last one, to the baseline.
    """
    names, baseline = results["retrievers"], results["baseline"]
    last = "trained" if "trained" in names and baseline != "trained" else names[-1]
    table = Table("dataset", "measure", "n", *names, f"{last} - {baseline} [95 %]", "p")
    for column in table.columns:
        column.no_wrap = True
    for dataset, one in results["datasets"].items():
        own = [name for name in one["own"] if name in one["measures"]]
        for measure in sorted(own, key=lambda name: name != one["headline"]):
            entry = one["measures"][measure]
            values = [entry["retrievers"].get(name) for name in names]
            cells = ["-" if value is None else f"{value['value']:.3f}" for value in values]
            change = entry["differences"].get(last)
            shown = f"{change['value']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]" if change else "-"
            p = f"{change['p']:.4f}" if change else "-"
            table.add_row(dataset, measure, str(entry["queries"]), *cells, shown, p)
        table.add_section()
    return table
