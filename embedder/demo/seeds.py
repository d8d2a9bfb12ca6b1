"""Compare runs of the demo with several seeds: `make demo-check`.

    python -m embedder.demo.seeds runs/demo-check/0 runs/demo-check/1 runs/demo-check/2

Reads the `summary.json` of each run, prints what the training gained in each of them, and writes nothing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from embedder.config.paths import SUMMARY
from embedder.console import console, exit_on_error, show_table
from embedder.errors import DataError

Summary = Mapping[str, Any]


def read_summaries(runs: Sequence[Path]) -> list[Summary]:
    """The summary of each run.

    Raises:
        DataError: a run has none, a damaged one, or one of other tasks.
    """
    for run in runs:
        if not (run / SUMMARY).is_file():
            raise DataError(f"{run / SUMMARY}: not there; run the pipeline with --set paths.work={run}")
    try:
        summaries = [json.loads((run / SUMMARY).read_text(encoding="utf-8")) for run in runs]
        tasks = [set(one["tasks"]) for one in summaries]
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"a {SUMMARY} is not what the pipeline writes ({error!r}); run it again") from error
    if any(each != tasks[0] for each in tasks):
        raise DataError(f"the runs have other tasks: {[sorted(each) for each in tasks]}; name runs of one demo")
    return summaries


def seeds_table(names: Sequence[str], summaries: Sequence[Summary]) -> Table:
    """A line a task: the base's value in the first run, what each run has gained, and in how many it is better."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.title = "tasks better: " + ", ".join(
        f"{name}: {one['tasks_better']} of {len(one['tasks'])}" for name, one in zip(names, summaries, strict=True)
    )
    table.title_justify = "left"
    for column in ("task", "measure"):
        table.add_column(column, overflow="fold")
    for column in ("base", *names, "better in"):
        table.add_column(column, justify="right", overflow="fold")
    for task, first in summaries[0]["tasks"].items():
        digits = 2 if first["lower_is_better"] else 3
        gains = [one["tasks"][task] for one in summaries]
        changes = [f"{gain['difference']['value']:+.{digits}f}" for gain in gains]
        better = f"{sum(gain['better'] for gain in gains)} of {len(gains)}"
        measure = f"{first['measure']}{' (less is better)' if first['lower_is_better'] else ''}"
        table.add_row(task, measure, f"{first['base']:.{digits}f}", *changes, better)
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of the runs named; exit status 2 and one line where one has not ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="`paths.work` of each run")
    runs = parser.parse_args(arguments).runs
    with exit_on_error():
        show_table(console(), seeds_table([run.name for run in runs], read_summaries(runs)))


if __name__ == "__main__":
    main()
