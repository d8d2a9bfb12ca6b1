"""What the training has gained in each task: `summary.json`, and the table that a pipeline ends with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

from embedder.evaluation.base import LIKELIHOOD, PERPLEXITY
from embedder.evaluation.comparison import TRAINED
from embedder.evaluation.evaluations import EVALUATIONS
from embedder.storage.object_store import AnyPath

LIKELIHOODS = (LIKELIHOOD.name, PERPLEXITY.name)
"""What the passages found are worth to the LLM; stands beside the measure of a task."""


def gains(results: Mapping[str, Any]) -> dict[str, Any]:
    """The base's and the trained encoder's value of each task, from the results of `comparison.summarise`.

    `tasks_better` counts the tasks whose measure is better than the baseline's.
    """
    tasks: dict[str, Any] = {}
    for task, entry in results["tasks"].items():
        evaluation = EVALUATIONS[entry["evaluation"]]
        # Without known positives there is no ranking to measure, and the headline stands alone.
        judged_by = evaluation.judged_by if evaluation.judged_by in entry["measures"] else entry["headline"]
        beside = next((name for name in LIKELIHOODS if name in entry["measures"] and name != judged_by), None)
        found = _gain(entry, judged_by, results["baseline"])
        if found is not None:
            tasks[task] = {**found, "likelihood": beside and _gain(entry, beside, results["baseline"])}
    better = sum(bool(gain["better"]) for gain in tasks.values())
    return {"split": results["split"], "baseline": results["baseline"], "tasks_better": better, "tasks": tasks}


def _gain(task: Mapping[str, Any], measure: str | None, baseline: str) -> dict[str, Any] | None:
    entry = task["measures"].get(measure)
    if entry is None or TRAINED not in entry["differences"]:
        return None
    change, values = entry["differences"][TRAINED], entry["retrievers"]
    lower_is_better = entry["kind"] == "perplexity"
    return {
        "measure": measure,
        "lower_is_better": lower_is_better,
        "queries": entry["queries"],
        "base": values[baseline]["value"],
        "trained": values[TRAINED]["value"],
        "difference": {name: change[name] for name in ("value", "low", "high")},
        "better": change["value"] < 0 if lower_is_better else change["value"] > 0,
        "llm_share": entry.get("llm_share"),
    }


def gains_table(found: Mapping[str, Any]) -> Table:
    """The summary as a table: a line a task, and one below it for the likelihood of the LLM where it was asked."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.title = f"what the training gained: {found['tasks_better']} of {len(found['tasks'])} tasks are better"
    table.caption = (
        "In brackets the 95 % interval. Perplexity: less is better. LLM's share: the trained encoder less\n"
        "the control, which learned from shuffled rewards; * the 95 % interval leaves out 0."
    )
    table.title_justify = table.caption_justify = "left"
    for name in ("task", "measure"):
        table.add_column(name, overflow="fold")
    for name in ("n", "base", "trained", "difference", "LLM's share"):
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("", overflow="fold")
    for task, gain in found["tasks"].items():
        table.add_row(task, *_cells(gain), _verdict(gain))
        if gain["likelihood"]:
            table.add_row("", *_cells(gain["likelihood"]), "")
    return table


def kept_table(path: AnyPath) -> list[Table]:
    """The table of a `summary.json`; none where it is missing, or no training was compared with its base."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"tasks": {}}
    return [gains_table(found)] if found["tasks"] else []


def _cells(gain: Mapping[str, Any]) -> list[str]:
    digits = 2 if gain["lower_is_better"] else 3
    share, change = gain["llm_share"], gain["difference"]
    return [
        gain["measure"],
        str(gain["queries"]),
        f"{gain['base']:.{digits}f}",
        f"{gain['trained']:.{digits}f}",
        f"{change['value']:+.{digits}f} [{change['low']:+.{digits}f}, {change['high']:+.{digits}f}]",
        f"{share['value']:+.{digits}f}{'*' if share['low'] > 0 or share['high'] < 0 else ' '}" if share else "- ",
    ]


def _verdict(gain: Mapping[str, Any]) -> str:
    return "better" if gain["better"] else "worse" if gain["difference"]["value"] else "equal"
