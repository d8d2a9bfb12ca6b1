"""Keep what a run measured, for the figures of README and docs.

    python -m benchmarks.kept_runs --config run.yaml --name documentation

Writes benchmarks/kept/NAME.json from the reports of a run that is done: the machine, the stages with their times, and
what `evaluate` measured of rankings, without any text. `--commit` names the commit of a run that was made before.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.figure_blocks import HEADLINES
from benchmarks.labelling_rounds import machine
from embedder.config.load import load_run
from embedder.config.run import RunConfig
from embedder.console import exit_on_error
from embedder.errors import DataError
from embedder.run.stage_report import read_reports
from embedder.storage.json_file import write_json
from embedder.storage.object_store import stamp_of

KEPT = Path(__file__).parent / "kept"


def kept(config: RunConfig, note: str) -> dict[str, Any]:
    """What is kept of a run.

    Raises:
        DataError: nothing of it is done.
    """
    reports = read_reports(config.paths.reports)
    if not reports:
        raise DataError(f"{config.paths.reports}: no reports; let `llm-embedder pipeline` run first")
    written = max(stamp_of(path)[1] / 1e9 for path in (config.paths.work / "reports").glob("*.json"))
    stages = [{name: getattr(one, name) for name in ("stage", "rows", "unit", "seconds")} for one in reports]
    results = config.paths.work / "evaluation" / config.evaluate.split / "results.json"
    found = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else {"retrievers": [], "datasets": {}}
    datasets = {
        name: {
            "queries": one["queries"],
            "measures": {key: one["measures"][key] for key in HEADLINES if key in one["measures"]},
        }
        for name, one in found["datasets"].items()
    }
    summary = config.paths.summary
    gains = json.loads(summary.read_text(encoding="utf-8"))["tasks"] if summary.is_file() else {}
    run = {"day": date.fromtimestamp(written).isoformat(), "machine": machine(), "note": note, "stages": stages}
    return {**run, "retrievers": found["retrievers"], "datasets": datasets, "gains": gains}


def main(arguments: Sequence[str] | None = None) -> None:
    """Keep a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="run file")
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value", help="override; repeatable")
    parser.add_argument("--name", required=True, help="name of the file in benchmarks/kept")
    parser.add_argument("--note", default="", help="what else must be known, such as other work on the machine")
    parser.add_argument("--commit", help="commit that the run was made by; default: this one")
    options = parser.parse_args(arguments)
    with exit_on_error():
        KEPT.mkdir(exist_ok=True)
        found = kept(load_run(options.config, options.set), options.note)
        found["machine"] |= {"commit": options.commit} if options.commit else {}
        write_json(found, KEPT / f"{options.name}.json")


if __name__ == "__main__":
    main()
