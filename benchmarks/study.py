"""Which part of the method earns what: `python -m benchmarks.study`.

    python -m ray_jobs.prepare --config configs/study.yaml      and mine, and label: the labels of the study
    python -m benchmarks.study                                  trains and measures the grid; again: goes on
    python -m benchmarks.study --report --json study.json       asks the LLM, prints the tables

Encoders are trained in this process, without Ray, and measured on the dev splits; `--split test --arm ARM`, first
without and then with --report, measures the arm that was chosen on the test splits. Several processes may run at once:
each takes what no other is at.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers

from benchmarks.study_arms import FULL, Arm, arms_of
from benchmarks.study_tables import Cells, aim, as_records, cells, markdown
from benchmarks.study_units import Study, Unit, all_units
from embedder.config.evaluate import EvaluateConfig
from embedder.config.load import load_run
from embedder.config.run import RunConfig
from embedder.console import console
from embedder.data.records import Split
from embedder.errors import EmbedderError
from embedder.evaluation.local import EvaluationSet, ask_llm, llm_judge, read_sets
from embedder.storage.json_file import write_json


def main(arguments: list[str] | None = None) -> int:
    """Run the grid, or report it; 2 for an error that the user can fix."""
    given = _parser().parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    transformers.utils.logging.disable_progress_bar()
    try:
        config = load_run(given.config, given.set)
        study, sets = Study(config, given.split), read_sets(config, given.split)
        arms = arms_of(given.arm) if given.split == "dev" else arms_of(given.arm or [FULL.name])[-1:]
        units = all_units(arms, given.seeds)
        if given.report:
            found = cells(_measured(config, study, units, sets), arms, given.seeds)
            console().print(markdown(found, arms), markup=False, soft_wrap=True)
            if given.json:
                _keep(given.json, found, given.split, arms, given.seeds)
        else:
            for place, unit in enumerate(units, 1):
                console().print(f"{place} of {len(units)}: {unit.name}", markup=False)
                study.run(unit, sets)
    except EmbedderError as error:
        console().print(f"error: {error}", markup=False)
        return 2
    return 0


def _keep(path: Path, found: Cells, split: Split, arms: Sequence[Arm], seeds: int) -> None:
    """Write the figures beside those of the other split."""
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if split == "dev":
        known |= {"seeds": seeds, "grid": as_records(found)}
    else:
        known |= {"test": {"arm": arms[-1].name, "seeds": seeds, "cells": as_records(found)}, **aim(found, arms[-1])}
    write_json(known, path)


def _measured(config: RunConfig, study: Study, units: list[Unit], sets: list[EvaluationSet]) -> list[EvaluationSet]:
    """The sets with the measures of all encoders; equal prompts of the LLM are computed once."""
    rankings = {unit.name: study.rankings(unit) for unit in units}
    retrievers = [{"name": unit.name, "model": unit.name} for unit in units]
    changed: dict[str, Any] = {"split": study.split, "retrievers": retrievers, "baseline": units[0].name}
    # Answers cost more than likelihoods, and the few queries of dev tell less by them.
    changed |= {"generate_answers": study.split == "test"}
    settings = EvaluateConfig.model_validate({**config.evaluate.model_dump(exclude={"retrievers"}), **changed})
    for one in sets:
        one.measured.rankings = {
            name: found[one.measured.name] for name, found in rankings.items() if one.measured.name in found
        }
        one.measured.enter_rankings(one.measured.rankings, settings.cutoffs)
    if config.llm is not None and settings.llm_queries:
        ask_llm(sets, llm_judge(config, settings), settings, study.folder / "judged")
    return sets


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/study.yaml", help="run file (default configs/study.yaml)")
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value", help="override; repeatable")
    parser.add_argument("--seeds", type=int, default=3, help="encoders of each arm (default 3)")
    parser.add_argument("--arm", action="append", default=[], help="only this arm and the reference; may be repeated")
    parser.add_argument("--split", choices=["dev", "test"], default="dev", help="whose queries (default dev)")
    parser.add_argument("--threads", type=int, help="of this process (default: as torch has it)")
    parser.add_argument(
        "--report", action="store_true", help="only what has been trained: the LLM's part and the tables"
    )
    parser.add_argument("--json", type=Path, help="file that the figures of the report are written to")
    return parser


if __name__ == "__main__":
    sys.exit(main())
