"""Summaries of finished stages: one JSON file each, and the closing table."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from embedder.storage.json_file import write_json
from embedder.storage.object_store import AnyPath

STAGES = ("prepare", "questions", "mine", "label", "train", "index", "evaluate", "serve")
"""All stages, in the order of the pipeline."""
COST = ("estimate", "resources", "cost")
"""Names of the details that tell what a run cost."""


@dataclass
class StageReport:
    """What one stage did. `rows` counts what it wrote, in `unit`."""

    stage: str
    rows: int
    unit: str
    seconds: float = 0.0
    """Wall time of the stage's own work."""
    lines: list[str] = field(default_factory=list)
    """Further facts for the user, a line each."""
    details: dict[str, Any] = field(default_factory=dict)
    """Facts for programs, by name."""
    repeats: bool = False
    """True: an earlier run had done all of it, whose time and cost this report keeps."""

    def keep_cost(self, folder: AnyPath) -> None:
        """Where this run repeats an earlier one, take over the time and the cost that the folder's report tells."""
        path = folder / f"{self.stage}.json"
        if not self.repeats or not path.is_file():
            return
        earlier = StageReport(**json.loads(path.read_text(encoding="utf-8")))
        self.seconds = earlier.seconds
        self.details |= {name: earlier.details[name] for name in COST if name in earlier.details}
        self.lines.append(f"all was done before: the report keeps the {self.seconds:,.1f} s and the cost of that run")

    def write(self, folder: AnyPath) -> None:
        """Write `STAGE.json`."""
        write_json(asdict(self), folder / f"{self.stage}.json")


def read_reports(folder: AnyPath) -> list[StageReport]:
    """The reports of a run, in the order of the pipeline."""
    files = [folder / f"{stage}.json" for stage in STAGES]
    return [StageReport(**json.loads(path.read_text(encoding="utf-8"))) for path in files if path.is_file()]


def stage_table(reports: list[StageReport]) -> Table:
    """The closing table: stage, rows, seconds, rate."""
    table = Table("stage", "rows", "unit", "seconds", "rows/s", title="stages")
    for report in reports:
        rate = f"{report.rows / report.seconds:,.1f}" if report.seconds else "-"
        table.add_row(report.stage, f"{report.rows:,}", report.unit, f"{report.seconds:,.1f}", rate)
    total = sum(report.seconds for report in reports)
    table.add_row("total", "", "", f"{total:,.1f}", "", end_section=True)
    return table
