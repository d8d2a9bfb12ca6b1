"""What a labelling run leaves beside the labels: the summary, the report page, and the export."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from embedder.config.paths import Paths
from embedder.config.run import RunConfig
from embedder.data.row_ids import RowIds
from embedder.errors import LabelError
from embedder.labelling.export import write_reference
from embedder.labelling.label_report import write_report
from embedder.labelling.label_statistics import LabelCost, TaskStatistics, statistics_of
from embedder.labelling.label_trust import trust_lines
from embedder.labelling.rounding import Rounding, rounding_numbers
from embedder.run.stage_report import StageReport
from ray_jobs.cluster.tables import labelled_ledger
from ray_jobs.labelling.provenance import read_devices
from ray_jobs.labelling.teachers import Labels

COUNTS = {"groups", "rewarded", "errors"}


def report_labels(config: RunConfig, labels: Labels) -> StageReport:
    """Count what is labelled, write the report and the export.

    Raises:
        LabelError: rows are missing, or more of them could not be scored than `label.max_error_share` allows.
    """
    expected = labels.expected
    repeats = labels.before == len(expected)
    cost, rounding = _earlier(config.paths) if repeats else (labels.cost, labels.rounding)
    tasks: dict[str, TaskStatistics] = {}
    rows, errors, first = 0, 0, ""
    for row in _rows(config, expected):
        if row["task"] not in tasks:
            tasks[row["task"]] = statistics_of(config.label, config.tasks.get(row["task"]))
        tasks[row["task"]].add(row)
        rows += 1
        if row["error"]:
            errors, first = errors + 1, first or f"{row['query_id']!r}: {row['error']}"
    if rows != len(expected):
        raise LabelError(f"{config.paths.labelled}: {rows:,} of {len(expected):,} groups; run the job again")
    devices = read_devices(config.paths)
    page = write_report(tasks, cost, config.paths.reports, config.paths.work.name, devices, rounding)
    summary = {task: measured.shares() for task, measured in sorted(tasks.items())}
    made = {"devices": devices, "rounding": rounding_numbers(rounding), "labelled_before": labels.before}
    report = StageReport("label", rows, "groups", details={"tasks": summary, **made}, repeats=repeats)
    repeated = labelled_ledger(config).count_duplicates()
    report.lines = [
        *labels.lines,
        f"{len(expected):,} groups in = {rows:,} out; {labels.before:,} were labelled before this run; "
        f"{repeated:,} repeated in blocks and counted once",
        *(_task_line(task, values) for task, values in summary.items()),
        *trust_lines({task: measured.trust for task, measured in tasks.items()}),
        *_false_negative_lines(config, tasks),
    ]
    report.lines += _source_lines(devices, rounding)
    if cost is not None and cost.pairs:
        share = cost.peak_share
        report.lines.append(
            f"{cost.pairs:,} pairs, {cost.pairs_per_s:,.1f} pairs/s, {cost.tokens_per_s:,.0f} tokens/s, "
            + (
                f"money {cost.money:,.2f}"
                if cost.money
                else f"{'an unknown share' if share is None else f'{share:.0%}'} of"
            )
            + ("" if cost.money else f" the peak of {cost.actors} actors")
        )
        report.details["cost"] = cost.numbers()
    if config.label.export is not None:
        written = write_reference(_rows(config, expected), config.label.export)
        report.lines.append(
            f"{config.label.export}: {written.total():,} groups, {written['rewarded']:,} with teacher_scores, "
            f"{written['failed']:,} failed and {written['plain']:,} of tasks without a reward have none"
        )
    report.lines.append(f"report: {page}")
    if errors > config.label.max_error_share * max(1, rows):
        raise LabelError(
            f"{errors} of {rows} groups could not be scored, more than label.max_error_share allows; first {first}; "
            f"see {page}"
        )
    return report


def _source_lines(devices: list[str], rounding: Rounding | str | None) -> list[str]:
    """What made the log-likelihoods, and what bfloat16 changed of the rewards."""
    lines = [f"scored on {each}" for each in devices]
    if len(devices) > 1:
        lines = [f"scored in {len(devices)} ways, whose last digits differ: {'; '.join(devices)}"]
    if rounding is not None:
        lines.append(rounding if isinstance(rounding, str) else rounding.line())
    return lines


def _earlier(paths: Paths) -> tuple[LabelCost | None, Rounding | str | None]:
    """Cost and rounding of which the report tells, so that a run with nothing to label does not erase them."""
    path = paths.reports / "label.json"
    details = json.loads(path.read_text(encoding="utf-8"))["details"] if path.is_file() else {}
    cost, rounding = details.get("cost"), details.get("rounding")
    measured = Rounding(**rounding) if isinstance(rounding, dict) else rounding
    return LabelCost.of(cost) if cost else None, measured


def _rows(config: RunConfig, expected: RowIds) -> Iterator[dict[str, Any]]:
    for table in labelled_ledger(config).stream(expected):
        yield from table.to_pylist()


def _false_negative_lines(config: RunConfig, tasks: Mapping[str, TaskStatistics]) -> list[str]:
    """How many false negatives there may be, and what becomes of them in training; none of a task without any."""
    lines = []
    for task, measured in sorted(tasks.items()):
        spec = config.tasks.get(task)
        if measured.false_negatives.line and spec is not None:
            learns = f"loss {spec.loss} learns from the rewards"
            choice = f"tasks.{task}.false_negatives: {spec.false_negatives}"
            lines.append(
                f"{task}: {measured.false_negatives.line} ({choice if spec.loss == 'contrastive' else learns})"
            )
    return lines


def _task_line(task: str, values: dict[str, float]) -> str:
    shares = ", ".join(f"{name} {value:.0%}" for name, value in values.items() if name not in COUNTS)
    return (
        f"{task}: {values['groups']:,.0f} groups, {values['rewarded']:,.0f} rewarded, {values['errors']:,.0f} errors"
        + (f"; {shares}" if shares else "")
    )
