"""What the method gains on data that it never saw: `python -m benchmarks.study`.

    for job in prepare mine label; do python -m ray_jobs.$job --config configs/study.yaml; done
    python -m benchmarks.study                       trains and measures the grid; again: goes on
    python -m benchmarks.study --report              tables, picture and study.json from what has been measured

In place of mine and label, `python -m benchmarks.study_labels read` takes the labels of the repository. Encoders are
trained in this process, without Ray. Several processes may run at once, each with a thread: each takes what no other is
at. Each training writes its values to benchmarks/study/NAME.json when it ends, and the report reads only these.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.study_arms import Arm, arms_of
from benchmarks.study_gains import tables
from benchmarks.study_protocol import TRAININGS
from benchmarks.study_tables import PICTURE, put_results, results_page, summary
from benchmarks.study_values import Results, grid
from embedder.config.load import load_run
from embedder.console import console
from embedder.errors import EmbedderError
from embedder.storage.durable import write_durably
from embedder.storage.json_file import write_json


def main(arguments: list[str] | None = None) -> int:
    """Run the grid, or report it; 2 for an error that the user can fix."""
    given = _parser().parse_args(arguments)
    try:
        arms = arms_of(given.arm)
        results = Results(given.results / "study")
        if given.report:
            report(given.results, results, arms)
        else:
            work(given, results, arms)
    except EmbedderError as error:
        console().print(f"error: {error}", markup=False)
        return 2
    return 0


def work(given: argparse.Namespace, results: Results, arms: list[Arm]) -> None:
    """Train and measure what nobody has."""
    # Here, so that a report needs no torch.
    import torch
    import transformers

    from benchmarks.study_trainings import Study

    torch.set_num_threads(given.threads)
    transformers.utils.logging.disable_progress_bar()
    study = Study(load_run(given.config, given.set), results)
    entries = grid(arms, given.trainings)
    for place, entry in enumerate(entries, 1):
        console().print(f"{place} of {len(entries)}: {entry.name}", markup=False)
        study.run(entry)


def report(folder: Path, results: Results, arms: list[Arm]) -> None:
    """Write study.json, the picture, and the results part of STUDY.md."""
    found = tables(results.read_all(entry.name for entry in grid(arms, TRAININGS)))
    told = summary(found)
    page = results_page(found, told)
    put_results(folder / "STUDY.md", page)
    # Lazily, because drawing needs a second to load.
    from benchmarks.study_picture import draw_gains

    write_durably(folder / PICTURE, draw_gains(found.tasks))
    write_json(told, folder / "study.json")
    console().print(page, markup=False, soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/study.yaml", help="run file (default configs/study.yaml)")
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value", help="override; repeatable")
    parser.add_argument("--arm", action="append", default=[], help="only this arm and `full`; may be repeated")
    parser.add_argument(
        "--trainings", type=int, default=TRAININGS, help=f"most trainings of an arm (default {TRAININGS})"
    )
    parser.add_argument("--threads", type=int, default=1, help="of this process (default 1)")
    parser.add_argument("--report", action="store_true", help="only report what has been measured")
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("benchmarks"),
        help="folder of study/, STUDY.md, study.json and the picture (default benchmarks)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
