"""What a run has done, what is missing and what it cost, from the marks and reports in its folder; its page."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.table import Table

from embedder.config.load import load_run
from embedder.config.run import RunConfig
from embedder.data.records import count_rows, parquet_files
from embedder.errors import BundleError, ConfigError, DataError
from embedder.reporting.html import render
from embedder.run.rounds import planned_stages, stage_title
from embedder.run.stage_report import StageReport, read_reports
from embedder.run.stages import STAGES, Contents, is_done, mark_path
from embedder.storage.line_log import LineReader
from embedder.storage.object_store import AnyPath, entries, replacing

if TYPE_CHECKING:
    from embedder.index.listing import ListedVersion

State = Literal["done", "run by itself", "changed since", "begun", "to do"]
TOLD: dict[State, str] = {
    "done": "",
    "run by itself": "by its own command; the pipeline will look over it",
    "changed since": "settings, inputs or output are not those it was done with",
    "begun": "cut off, and goes on",
    "to do": "",
}
PAGE = "run.html"
"""The page of a run, in its `reports/`."""
TITLES = {
    "labelling.html": "labelling: what the LLM's feedback says",
    "training.html": "training: losses, and what was held out",
    "report.html": "evaluation: retrievers compared, with intervals",
}
"""By file name of a report: what it shows."""
MISSING: tuple[State, ...] = ("changed since", "begun", "to do")


@dataclass(frozen=True)
class StageStatus:
    """One stage of one round."""

    stage: str
    state: State
    note: str
    report: StageReport | None

    @property
    def hours(self) -> tuple[float, float]:
        """CPU-hours and GPU-hours that its actors held."""
        used = (self.report.details.get("resources") or {}) if self.report else {}
        return used.get("cpu_hours") or 0.0, used.get("gpu_hours") or 0.0

    @property
    def seconds(self) -> float:
        """Wall time of its last run."""
        return self.report.seconds if self.report else 0.0


@dataclass(frozen=True)
class RunStatus:
    """A run as a whole."""

    work: str
    stages: list[StageStatus]
    index: list[str]
    """A line for each version of the index: documents that it was built with, and the aliases that name it."""
    pages: list[AnyPath]
    """Reports to look at; the page of the run, which links all others, comes first."""

    @property
    def missing(self) -> list[str]:
        """Stages that are not done."""
        return [each.stage for each in self.stages if each.state in MISSING]

    def table(self) -> Table:
        """A line a stage."""
        table = Table(title=f"run {self.work}", title_justify="left")
        for name in ("stage", "state", "note"):
            table.add_column(name)
        for name in ("rows", "seconds", "CPU-hours", "GPU-hours"):
            table.add_column(name, justify="right")
        for each in self.stages:
            rows = f"{each.report.rows:,} {each.report.unit}" if each.report else ""
            cpu, gpu = (f"{hours:.3g}" if hours else "" for hours in each.hours)
            table.add_row(
                each.stage, each.state, each.note, rows, f"{each.seconds:,.1f}" if each.report else "", cpu, gpu
            )
        return table

    @property
    def hours(self) -> tuple[float, float]:
        """CPU-hours and GPU-hours of all stages."""
        cpu, gpu = zip(*(each.hours for each in self.stages), strict=True)
        return sum(cpu), sum(gpu)

    @property
    def seconds(self) -> float:
        """Wall time of the last runs of all stages."""
        return sum(each.seconds for each in self.stages)

    def lines(self, run_file: Path) -> list[str]:
        """The sum, the reports, and what to do next with the run file."""
        cpu, gpu = self.hours
        lines = [
            f"cost so far: {self.seconds:,.0f} s; actors held {cpu:.3g} CPU-hours and {gpu:.3g} GPU-hours",
            *(f"index {line}" for line in self.index),
            *(f"report: {page}" for page in self.pages),
        ]
        if not self.missing:
            return [*lines, f"nothing is missing; next: llm-embedder serve --config {run_file}"]
        return [*lines, f"missing: {', '.join(self.missing)}; next: llm-embedder pipeline --config {run_file}"]

    def record(self) -> dict[str, Any]:
        """The same for programs."""
        stages = [
            {
                "stage": each.stage,
                "state": each.state,
                "note": each.note,
                "seconds": each.seconds,
                "cpu_hours": each.hours[0],
                "gpu_hours": each.hours[1],
                "report": asdict(each.report) if each.report else None,
            }
            for each in self.stages
        ]
        told = {"stages": stages, "missing": self.missing, "index": self.index}
        return {"work": self.work, **told, "reports": list(map(str, self.pages))}


def read_status(run_file: Path, overrides: list[str], *, compares: bool) -> RunStatus:
    """The status of a run, whose page is written anew.

    `compares`: the contents of what each stage read and wrote are compared with its mark, as the pipeline does; without
    it a mark counts as it is.

    Raises:
        ConfigError: the run file is wrong.
        DataError: the object store of the run does not answer.
    """
    config = load_run(run_file, overrides)
    found = status_of(config, Contents() if compares else None)
    page = write_page(found, config) if any(each.report for each in found.stages) else None
    return replace(found, pages=[*([page] if page else []), *found.pages])


def status_of(config: RunConfig, contents: Contents | None) -> RunStatus:
    """The status of a run; without `contents` a mark counts as it is."""
    stages = [_stage_status(stage, settings, contents) for stage, settings in _stages(config)]
    index = _index_lines(config) if config.paths.indexes.is_dir() else []
    return RunStatus(str(config.paths.work), stages, index, _pages(config))


def _index_lines(config: RunConfig) -> list[str]:
    # FAISS comes with it, which a run without an index need not wait for.
    from embedder.index.catalog import Catalog
    from embedder.index.listing import list_version

    catalog = Catalog(config.paths.indexes)
    lines: list[str] = []
    for version in catalog.versions():
        try:
            lines.append(list_version(catalog, version).line)
        except BundleError as error:
            lines.append(f"{version}: {error}")
    return lines


def write_page(found: RunStatus, config: RunConfig) -> AnyPath | None:
    """Write `reports/run.html`, which links all reports; returns None where nothing can be written."""
    folder, summary = config.paths.work / "reports", config.paths.summary
    gained = json.loads(summary.read_text(encoding="utf-8")) if summary.is_file() else {"tasks": {}}
    links = [(TITLES[page.name], os.path.relpath(str(page), str(folder))) for page in found.pages]
    text = render("run.html", run=found.work, found=found, links=links, gained=gained)
    try:
        with replacing(folder / PAGE) as file:
            file.write(text.encode())
    except (OSError, DataError):
        # Whoever may only read a run, or whose disk is full, may still ask what it has done.
        return None
    return folder / PAGE


def _stages(config: RunConfig) -> list[tuple[str, RunConfig]]:
    """The stages of the run; without `evaluate` where nothing can be measured."""
    planned = planned_stages(config)
    is_prepared = bool(parquet_files(config.paths.queries / "train"))
    if planned[-1][0] == "evaluate" and is_prepared and not _has_queries(config):
        planned.pop()
    return planned


def _has_queries(config: RunConfig) -> bool:
    return count_rows(parquet_files(config.paths.queries / config.evaluate.split)) > 0


def _stage_status(name: str, config: RunConfig, contents: Contents | None) -> StageStatus:
    stage = STAGES[name]
    report = next((each for each in read_reports(config.paths.reports) if each.stage == name), None)
    state: State = "run by itself" if report else "to do"
    if mark_path(stage, config).is_file():
        state = "done" if contents is None or is_done(stage, config, contents) else "changed since"
    note = TOLD[state]
    if state == "to do" and (begun := _begun(name, config)):
        state, note = "begun", f"{begun}; {TOLD['begun']}"
    return StageStatus(stage_title(name, config), state, note, report)


def _begun(name: str, config: RunConfig) -> str:
    """What a stage without a report has committed so far; empty where it has nothing."""
    if name == "label":
        labelled = count_rows(parquet_files(config.paths.labelled / "blocks"))
        groups = count_rows(parquet_files(config.paths.candidates))
        return f"{labelled:,} of {groups:,} groups labelled" if labelled else ""
    if name == "train":
        # Each once: after a kill those since the last checkpoint are made again.
        steps = [_steps(folder) for folder in entries(config.paths.training, "*")]
        needed = config.train.steps if config.train else 0
        return f"{max(steps):,} of {needed:,} steps" if any(steps) else ""
    return ""


def _steps(training: AnyPath) -> int:
    """Steps that a training has made; a line that a kill cut is none."""
    numbers = set()
    for line in LineReader(training / "metrics.jsonl").new():
        with suppress(ValueError, KeyError, TypeError):
            numbers.add(json.loads(line)["step"])
    return len(numbers)


def _pages(config: RunConfig) -> list[AnyPath]:
    """The HTML reports that are there, in the order of the stages."""
    rounds = [settings for stage, settings in planned_stages(config) if stage == "train"] or [config]
    folders = [settings.paths.reports for settings in rounds]
    pages = [folder / name for folder in folders for name in ("labelling.html", "training.html")]
    pages.append(config.paths.work / "evaluation" / config.evaluate.split / "report.html")
    return [page for page in pages if page.is_file()]


def index_versions(run_file: Path, overrides: list[str]) -> list[ListedVersion]:
    """The versions of a run's index, by name.

    Raises:
        ConfigError: the run file is wrong, or there is no version.
        BundleError: a version is damaged, or of another version of this program.
    """
    # FAISS comes with it, which `status` need not wait for.
    from embedder.index.catalog import Catalog
    from embedder.index.listing import list_versions

    config = load_run(run_file, overrides)
    versions = list_versions(Catalog(config.paths.indexes))
    if not versions:
        raise ConfigError(
            f"{config.paths.indexes}: no versions; build one with `llm-embedder index --config {run_file}`"
        )
    return versions
