"""Which questions are kept and become train and test queries, and what is told of the others."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from embedder.config.paths import Paths
from embedder.config.run import RunConfig
from embedder.data.fields import Row
from embedder.data.records import QUERY, Split, write_table
from embedder.run.written import note_written, written_files
from embedder.writing.verdicts import NEAR_DUPLICATE, OutputScores, near_duplicates, verdict
from ray_jobs.writing.asked_passages import AskedDataset, is_kept_for_test

EXAMPLES = 3
"""Questions that are shown for each reason."""
NO_DRAFT = "no draft without a fault"
KEPT = "kept"

Shown = dict[str, Any]


@dataclass
class Outcome:
    """What became of the passages of one dataset that were asked about."""

    asked: int = 0
    """Questions that were asked for, one a passage and kind."""
    kept: list[dict[str, Any]] = field(default_factory=list)
    """Checked rows that are kept."""
    by_kind: dict[str, Counter[str]] = field(default_factory=dict)
    """By kind: how many were asked for, and how many kept."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Reasons why the others were dropped; with those that are kept they add up to `asked`."""
    faults: Counter[str] = field(default_factory=Counter)
    """What was wrong with single drafts, of which each question has several."""
    examples: dict[str, list[Shown]] = field(default_factory=dict)
    """Some questions of each reason, and some that are kept."""

    def show(self, reason: str, shown: Shown) -> None:
        """Keep an example."""
        known = self.examples.setdefault(reason, [])
        if len(known) < EXAMPLES:
            known.append(shown)

    @property
    def yield_share(self) -> float:
        """Share of the questions asked for that are kept."""
        return len(self.kept) / self.asked if self.asked else 0.0


def judge(config: RunConfig, drafts: pa.Table, checks: pa.Table) -> Outcome:
    """Decide about the drafts of one dataset and their scores; each row stands in both once, but for those without a
    good draft.
    """
    settings, outcome = config.needed_questions, Outcome()
    scored = {row["draft_id"]: row for row in checks.to_pylist()}
    passed = []
    for row in drafts.to_pylist():
        outcome.asked += 1
        outcome.by_kind.setdefault(row["kind"], Counter())["asked"] += 1
        for draft in row["drafts"]:
            if draft["fault"]:
                outcome.faults[draft["fault"]] += 1
                outcome.show(draft["fault"], {"kind": row["kind"], "query": draft["query"], "output": draft["output"]})
        best = scored.get(row["row_id"])
        reason = verdict(scores_of(best), settings) if best else NO_DRAFT
        if best and reason is None:
            passed.append(best)
            continue
        outcome.reasons[str(reason)] += 1
        if best:
            outcome.show(str(reason), shown(best))
    # In an order of their own, because the earlier one of two that are alike is kept.
    passed.sort(key=lambda row: str(row["draft_id"]))
    alike = near_duplicates([row["query"] for row in passed], settings.duplicate_overlap)
    for row, is_near in zip(passed, alike, strict=True):
        outcome.show(NEAR_DUPLICATE if is_near else KEPT, shown(row))
        if is_near:
            outcome.reasons[NEAR_DUPLICATE] += 1
        else:
            outcome.kept.append(row)
            outcome.by_kind[row["kind"]][KEPT] += 1
    return outcome


def scores_of(row: Row) -> OutputScores:
    """The scores of a checked row."""
    return OutputScores(row["bare"], row["own"], row["alone"], row["others"], row["above"], row["rank"])


def shown(row: Row) -> Shown:
    """A checked question as the report shows it."""
    gain = row["own"] - row["bare"]
    told = round(gain, 2) if math.isfinite(gain) else None
    return {"kind": row["kind"], "query": row["query"], "output": row["output"], "gain": told}


def query_rows(outcome: Outcome, dataset: AskedDataset, config: RunConfig) -> dict[Split, list[Row]]:
    """The kept questions as rows of QUERY, by split; the passage decides about the split."""
    rows: dict[Split, list[Row]] = {"train": [], "test": []}
    for row in outcome.kept:
        is_test = is_kept_for_test(row["passage_ids"][0], dataset, config.needed_questions)
        query = {
            **dict.fromkeys(QUERY.names),
            **{name: row[name] for name in ("task", "dataset", "query")},
            "query_id": f"llm-{row['draft_id']}",
            "answers": [row["output"]],
            "positive_ids": row["passage_ids"],
            "example_ids": [],
            "category": row["kind"],
        }
        rows["test" if is_test else "train"].append(query)
    return {split: sorted(queries, key=lambda row: str(row["query_id"])) for split, queries in rows.items() if queries}


def write_queries(paths: Paths, by_dataset: dict[str, dict[Split, list[Row]]]) -> None:
    """Write the questions beside the prepared queries, in place of those of an earlier run of the job."""
    wanted = {
        paths.queries / split / f"{name}.parquet": rows
        for name, own in by_dataset.items()
        for split, rows in own.items()
    }
    before = set(written_files(paths))
    # Noted before they are written: what a killed run leaves is known for what it is.
    note_written(paths, [*before, *wanted])
    for path in before - wanted.keys():
        path.unlink()
    for path, rows in wanted.items():
        write_table(rows, QUERY, path)
    note_written(paths, list(wanted))


def outcome_lines(name: str, outcome: Outcome, rows: dict[Split, list[Row]]) -> Sequence[str]:
    """The yield of a dataset, reasons with an example each, and faults of single drafts, a line each."""
    counts = {split: len(rows.get(split, [])) for split in ("train", "test")}
    kinds = ", ".join(
        f"{kind} {counted[KEPT]:,} of {counted['asked']:,}" for kind, counted in sorted(outcome.by_kind.items())
    )
    lines = [
        f"{name}: {outcome.asked:,} questions asked for, {len(outcome.kept):,} kept ({outcome.yield_share:.0%}): "
        f"{counts['train']:,} train, {counts['test']:,} test; by kind: {kinds}"
    ]
    for reason, count in outcome.reasons.most_common():
        example = outcome.examples.get(reason)
        lines.append(f"{name}: dropped {count:,}, {reason}" + (f", such as {example[0]['query']!r}" if example else ""))
    if outcome.faults:
        told = ", ".join(f"{count:,} {fault}" for fault, count in outcome.faults.most_common())
        lines.append(f"{name}: faults of single drafts: {told}")
    return lines
