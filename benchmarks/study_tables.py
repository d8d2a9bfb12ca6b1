"""The report of the study: tables for the page, the record `study.json`, and the results part of STUDY.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any

from benchmarks.study_arms import ARMS, FULL, LABELS, SHUFFLED
from benchmarks.study_gains import PERPLEXITY, SHOWN, SURE, Row, Tables, corrected
from benchmarks.study_statistics import Gain
from benchmarks.study_values import BASE
from embedder.errors import DataError
from embedder.storage.durable import write_durably

BEGIN, END = "<!-- results: made by `python -m benchmarks.study --report` -->", "<!-- end of the results -->"
PICTURE = "study.png"


def summary(found: Tables) -> dict[str, Any]:
    """The record of what is claimed, with everything that it rests on."""
    p_values = corrected(found.tasks)
    judged = list(zip(found.tasks, p_values, strict=True))
    gaining = [row.task for row, p in judged if _is_sure(row.gains, FULL.name, p, BASE)]
    beyond = [
        row.task
        for row, p in zip(found.tasks, p_values, strict=True)
        if row.task in gaining and _is_sure(row.over, SHUFFLED.name, p, SHUFFLED.name)
    ]
    below = [
        *_below(found.datasets, corrected(found.datasets)),
        *(f"{name} (trained on)" for name in _below(found.seen, corrected(found.seen))),
    ]
    return {
        "unseen": {row.task: _claim(row, p) for row, p in zip(found.tasks, p_values, strict=True)},
        "tasks_gaining_unseen": len(gaining),
        "tasks_gaining_beyond_shuffled": len(beyond),
        "datasets_significantly_below": len(below),
        "gaining_unseen": gaining,
        "gaining_beyond_shuffled": beyond,
        "significantly_below": below,
        "below_uncorrected": _below(found.datasets, None) + [f"{one} (trained on)" for one in _below(found.seen, None)],
        "trainings": found.trainings,
        "tables": {
            "tasks": _records(found.tasks),
            "other measures": _records(found.others),
            "unseen": _records(found.datasets),
            "trained on": _records(found.seen),
            "dev": {arm: _records(rows) for arm, rows in found.dev.items()},
        },
    }


def results_page(found: Tables, told: dict[str, Any]) -> str:
    """The results part of the page."""
    planned = {arm.name: arm.trainings for arm in ARMS}
    trainings = ", ".join(f"{arm} {count} of {planned[arm]}" for arm, count in found.trainings.items() if count)
    is_whole = all(found.trainings.get(arm) == count for arm, count in planned.items())
    sure = ", ".join(told["gaining_unseen"]) or "none"
    parts = [] if is_whole else ["**The study is not finished, and nothing is claimed by it yet.**"]
    parts += [
        f"**Tasks that gain on data that no training saw: {sure} ({told['tasks_gaining_unseen']} of "
        f"{len(found.tasks)}); beyond shuffled rewards: {', '.join(told['gaining_beyond_shuffled']) or 'none'}; data "
        f"sets significantly below the base: {', '.join(told['significantly_below']) or 'none'}** (without correction "
        f"for the number of tests: {', '.join(told['below_uncorrected']) or 'none'}).",
        f"![Gain of each task on data that no training saw]({PICTURE})",
        f"Trainings: {trainings}. In brackets 95 % intervals over trainings and queries; p corrected by Holm over the "
        "table. Gains of perplexity are in nats a token, which is about the share by which it falls; more is better "
        "everywhere.",
        "### Data that no training saw, by task",
        _table(found.tasks),
        "### The same by further measures",
        _table(found.others),
        "### Each data set that was not trained on",
        _table(found.datasets),
        "### Each data set that was trained on (test queries)",
        _table(found.seen),
    ]
    if found.dev:
        parts += ["### Other ways to teach, on dev queries of what was trained on", _dev_table(found)]
    return "\n\n".join(parts)


def put_results(page: Path, results: str) -> None:
    """Replace the results part of the page.

    Raises:
        DataError: the page has no such part.
    """
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DataError(f"{page}: has no lines {BEGIN!r} and {END!r}; put them where the results are to stand")
    write_durably(page, f"{before}{begin}\n\n{results}\n\n{end}{after}".encode())


def _is_sure(gains: dict[str, Gain], name: str, p: dict[str, float], other: str) -> bool:
    return name in gains and gains[name].value > 0 and p[other] < SURE


def _below(rows: Sequence[Row], p_values: Sequence[dict[str, float]] | None) -> list[str]:
    """Data sets that are below the base by any measure; `p_values` are corrected ones, None: each by its own."""
    found = [
        row.name
        for i, row in enumerate(rows)
        if (each := row.gains.get(FULL.name)) and each.value < 0
        if (each.p if p_values is None else p_values[i][BASE]) < SURE
    ]
    return list(dict.fromkeys(found))


def _claim(row: Row, p: dict[str, float]) -> dict[str, Any]:
    """The gain of a task, and how much of it is the LLM's."""
    own = row.gains[FULL.name]
    over = row.over.get(SHUFFLED.name)
    return {
        "measure": row.measure,
        "datasets": list(row.datasets),
        "base": row.levels[BASE],
        "trained": row.levels[FULL.name],
        **_numbers(own),
        "p_holm": p[BASE],
        "over_shuffled": over.value if over else None,
        "over_shuffled_interval": [_finite(over.low), _finite(over.high)] if over else None,
        "over_shuffled_p_holm": p.get(SHUFFLED.name),
    }


def _records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [
        {
            **{key: value for key, value in asdict(row).items() if key not in {"gains", "over"}},
            "gains": {name: _numbers(each) for name, each in row.gains.items()},
            "over": {name: _numbers(each) for name, each in row.over.items()},
        }
        for row in rows
    ]


def _numbers(one: Gain) -> dict[str, Any]:
    return {
        "gain": one.value,
        "low": _finite(one.low),
        "high": _finite(one.high),
        "p": one.p,
        "trainings": one.trainings,
    }


def _finite(value: float) -> float | None:
    """None in place of an infinite bound, which JSON cannot hold."""
    return value if isfinite(value) else None


def _table(rows: Sequence[Row]) -> str:
    """Levels of all retrievers, and what the trained ones gain."""
    p_values = corrected(rows)
    shown = [name for name in SHOWN if any(name in row.levels for row in rows)]
    gains = [name for name in (FULL.name, SHUFFLED.name, LABELS.name) if any(name in row.gains for row in rows)]
    heads = [
        *("data", "measure", *shown),
        *(f"{name} gains" for name in gains),
        *(["full over shuffled"] if any(SHUFFLED.name in row.over for row in rows) else []),
    ]
    lines = ["| " + " | ".join(heads) + " |", "|---|---|" + "---:|" * (len(heads) - 2)]
    for row, p in zip(rows, p_values, strict=True):
        name = row.name if len(row.datasets) == 1 else f"{row.task} ({', '.join(row.datasets)})"
        cells = [name, row.measure, *(_level(row, each) for each in shown)]
        cells += [_gain(row.gains.get(each), p.get(BASE) if each == FULL.name else None) for each in gains]
        if heads[-1] == "full over shuffled":
            cells.append(_gain(row.over.get(SHUFFLED.name), p.get(SHUFFLED.name)))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _dev_table(found: Tables) -> str:
    """A line an arm and task: the base, the method, the arm, and what the arm gains over the method."""
    says = {arm.name: arm.says for arm in ARMS}
    lines = [
        "| arm | task | measure | base | full | arm | arm over full (two trainings: to choose, not to claim) |",
        "|---|---|---|" + "---:|" * 4,
    ]
    for arm, rows in found.dev.items():
        for row in rows:
            cells = [
                f"{arm}: {says[arm]}",
                row.task,
                row.measure,
                *(_level(row, one) for one in (BASE, FULL.name, arm)),
            ]
            lines.append("| " + " | ".join([*cells, _gain(row.over.get(arm), None)]) + " |")
    return "\n".join(lines)


def _level(row: Row, retriever: str) -> str:
    if retriever not in row.levels:
        return "-"
    return f"{row.levels[retriever]:.{2 if row.measure == PERPLEXITY else 3}f}"


def _gain(one: Gain | None, p: float | None) -> str:
    if one is None:
        return "-"
    interval = f"[{one.low:+.3f}, {one.high:+.3f}]" if isfinite(one.low) else "[one unit: no interval]"
    told = "" if p is None else f", p {'< 0.001' if p < 0.001 else f'{p:.3f}'}"
    mark = "**" if p is not None and p < SURE else ""
    return f"{mark}{one.value:+.3f}{mark} {interval}{told}"
