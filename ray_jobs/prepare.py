"""Read source files into checked rows.

    python -m ray_jobs.prepare --config configs/demo.yaml
    ray job submit --working-dir . -- python -m ray_jobs.prepare --config /shared/run.yaml

reads   prepare.sources                         folders of the data layout, of BEIR or the reference, documents
writes  prepared/corpus/DATASET/*.parquet       records.PASSAGE
        prepared/queries/SPLIT/DATASET.parquet  records.QUERY
        prepared/rejected/DATASET.json          rows set aside: file, line, reason, row

A second run writes the same files again. One Ray task a dataset.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, replace
from itertools import islice
from math import ceil
from typing import Any

from embedder.config.paths import Paths
from embedder.config.prepare import PrepareConfig, Source
from embedder.config.run import RunConfig
from embedder.config.tasks import TaskSpec
from embedder.data.dataset import open_source, read_source
from embedder.data.first_rows import FirstRows, read_first_rows
from embedder.data.formats.reader import SPLITS
from embedder.data.records import PASSAGE, QUERY, write_table
from embedder.data.rows import Prepared
from embedder.data.stored_passages import StoredPassages
from embedder.errors import ConfigError, DataError
from embedder.run.cost import Work
from embedder.run.prompt_room import prompt_room_lines
from embedder.run.stage_report import StageReport
from embedder.run.written import forget_written
from embedder.storage.folders import folder_here, remove_folder
from embedder.storage.json_file import write_json
from embedder.storage.object_store import AnyPath, entries
from ray_jobs.cluster.session import Job, main

PART_ROWS = 20_000
"""Passages of one Parquet file."""


def check(config: RunConfig) -> Work:
    """All source files exist, and their first rows can be used."""
    return work_of_sources(config, read_sources(config))


def work_of_sources(config: RunConfig, first_rows: Mapping[str, FirstRows]) -> Work:
    """A line for each source, and what its first rows tell."""
    lines = []
    for source in config.needed_prepare.sources:
        size = open_source(source, config.tasks[source.task]).size
        lines.append(f"{source.dataset} ({source.task}, {source.format}): {source.path}, {size / 1e6:,.1f} MB")
        lines += first_rows[source.dataset].notes
    return Work("prepare", lines, flops=0.0)


def read_sources(config: RunConfig) -> dict[str, FirstRows]:
    """The first rows of every source, by dataset.

    Raises:
        ConfigError: a source can have no answers, which the reward of its task needs; or recent text and a candidate
            do not fit into the LLM's prompt.
        DataError: a file is missing, or none of its first rows can be used.
    """
    found = {}
    for source in config.needed_prepare.sources:
        task = config.tasks[source.task]
        rows = read_first_rows(source, task)
        found[source.dataset] = replace(rows, notes=rows.notes + prompt_room_lines(config, source, rows.continued))
        # Of the other teachers one may have learned from other sources, and one rewards nothing itself.
        needs_answers = config.label.teacher == "llm" and task.needs_answers
        if source.format == "beir" and rows.learns and needs_answers:
            raise ConfigError(
                f"source {source.dataset}: queries of BEIR have no answers, but tasks.{source.task}.reward is "
                f"{task.reward!r} and needs them; set it to own_answers, which needs none, or to learn from the "
                f"judgements alone set tasks.{source.task}.reward: none and tasks.{source.task}.loss: contrastive"
            )
    return found


def run(config: RunConfig) -> StageReport:
    """Prepare every dataset; the summary counts rows in, out, left out and rejected."""
    import ray

    from embedder.run.too_long import long_text_lines
    from ray_jobs.cluster.metrics import track_progress

    settings = config.needed_prepare
    forget_written(config.paths)
    task = ray.remote(num_cpus=1)(prepare_dataset)
    pending = {
        task.remote(source, config.tasks[source.task], settings, config.paths): source for source in settings.sources
    }
    counts: dict[str, dict[str, Any]] = {}
    with track_progress("prepare: sources", len(pending)) as counter:
        while pending:
            (done,), _ = ray.wait(list(pending), num_returns=1)
            counts[pending.pop(done).dataset] = ray.get(done)
            counter.advance(1)
    # After all tasks, so that a source that is refused does not cost the datasets of an earlier run.
    _remove_stale(config.paths, set(counts))
    report = StageReport("prepare", sum(count["rows_in"] for count in counts.values()), "source rows", details=counts)
    for name, count in sorted(counts.items()):
        report.lines.append(
            f"{name}: {count['rows_in']:,} rows in = {count['rows_out']:,} out + {count['left_out']:,} left out by "
            f"limits + {count['rejected']:,} rejected + {count['merged']:,} merged with others; "
            f"{count['passages']:,} passages, {count['train']:,} train, {count['dev']:,} dev and "
            f"{count['test']:,} test queries"
        )
        report.lines += [f"{name}: {note}" for note in count["notes"]]
    report.lines += long_text_lines(config)
    return report


def _remove_stale(paths: Paths, kept: set[str]) -> None:
    """Remove datasets of an earlier run file, which the next stages would take for this run's."""
    for folder in entries(paths.corpus, "*"):
        if folder.name not in kept:
            remove_folder(folder)
    for path in entries(paths.queries, "*/*.parquet"):
        if path.stem not in kept:
            path.unlink()


def prepare_dataset(source: Source, task: TaskSpec, settings: PrepareConfig, paths: Paths) -> dict[str, Any]:
    """Prepare one dataset and return its counts.

    Raises:
        DataError: a file is damaged, nothing of one is left, more rows are rejected than `max_rejected_share` allows,
            or the counts do not add up.
    """
    rejected_file = paths.work / "prepared" / "rejected" / f"{source.dataset}.json"
    with (
        folder_here(paths.work / "prepared" / "reading") as folder,
        closing(StoredPassages(folder / f"{source.dataset}.sqlite")) as passages,
    ):
        prepared = Prepared(passages=passages)
        try:
            read_source(source, task, settings.seed, prepared)
        finally:
            # Also of a source that is refused, so that it leaves the rows that tell why.
            _write_rejected(prepared, rejected_file)
        return _write_dataset(source, settings, prepared, paths)


def _write_dataset(source: Source, settings: PrepareConfig, prepared: Prepared, paths: Paths) -> dict[str, Any]:
    """Write what was read, if its counts hold, and return these."""
    _check_counts(source, prepared, settings.max_rejected_share)
    folder = paths.corpus / source.dataset
    # Parts of a larger corpus of an earlier run must not stay among the new ones.
    remove_folder(folder)
    rows = iter(prepared.passages.values())
    for part in range(ceil(len(prepared.passages) / PART_ROWS)):
        write_table(list(islice(rows, PART_ROWS)), PASSAGE, folder / f"part-{part:05d}.parquet")
    for split in SPLITS:
        path = paths.queries / split / f"{source.dataset}.parquet"
        if prepared.queries.get(split):
            write_table(prepared.queries[split], QUERY, path)
        else:
            path.unlink(missing_ok=True)
    return {
        "task": source.task,
        "rows_in": prepared.rows_in,
        "rows_out": prepared.rows_out,
        "merged": prepared.merged,
        "left_out": prepared.left_out,
        "rejected": prepared.rejected_of.total(),
        "passages": len(prepared.passages),
        **{split: len(prepared.queries.get(split, [])) for split in SPLITS},
        "notes": prepared.notes,
    }


def _check_counts(source: Source, prepared: Prepared, allowed: float) -> None:
    rejected = prepared.rejected_of.total()
    if not prepared.sum_holds:
        raise DataError(
            f"{source.dataset}: {prepared.rows_in} rows in, but {prepared.rows_out} out, {prepared.merged} merged, "
            f"{prepared.left_out} left out and {rejected} rejected; this is a defect of the reader"
        )
    if rejected > allowed * prepared.rows_in:
        raise DataError(
            f"{source.dataset}: {rejected} of {prepared.rows_in} rows rejected, more than prepare.max_rejected_share "
            f"{allowed} allows{prepared.first_reason()}; they are in prepared/rejected/{source.dataset}.json: correct "
            "them, or let more be left out by that setting"
        )
    # A large corpus would hide that a small file was lost as a whole.
    for file in prepared.lost_files:
        raise DataError(f"{source.dataset}: no row of {file} can be used{prepared.first_reason(file)}")
    # Documents alone are enough to index and search.
    no_queries = source.format == "documents" and source.queries is None
    if not no_queries and not any(prepared.queries.values()) and 0 not in source.query_limits.values():
        raise DataError(f"{source.dataset}: no query in {source.path}; give rows with a query, or judgements above 0")


def _write_rejected(prepared: Prepared, path: AnyPath) -> None:
    """Write the rejected rows, or remove the file of an earlier run where there are none."""
    if prepared.rejected:
        write_json([asdict(row) for row in prepared.rejected], path)
    else:
        path.unlink(missing_ok=True)


JOB = Job("prepare", __doc__, check, run)

if __name__ == "__main__":
    main(JOB)
