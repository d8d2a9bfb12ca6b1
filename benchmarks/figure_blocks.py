"""What prints the figures of README and docs, a function a block, from the files of stored runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import scaling

HERE = Path(__file__).parent
HEADLINES = ("nDCG@10", "R@5", "R@10")
"""Measures of rankings that are kept and shown."""


def read(name: str) -> dict[str, Any]:
    """A stored run."""
    found: dict[str, Any] = json.loads((HERE / name).read_text(encoding="utf-8"))
    return found


def machine_told(machine: dict[str, Any]) -> str:
    """On what was measured."""
    accelerator = "no GPU" if machine["accelerator"] == "none" else machine["accelerator"]
    return f"{machine['cores']} cores of {machine['processor']}, {accelerator}, commit {machine['commit']}"


def rates() -> list[str]:
    """Rates of small models on CPUs."""
    labelling, scheduler, embedding = read("labelling.json"), read("scheduler.json"), read("embedding.json")
    few, many = scheduler["runs"][0], scheduler["runs"][-1]
    each = (many["seconds"] - few["seconds"]) / (many["rows"] - few["rows"])
    start = few["seconds"] - each * few["rows"]
    sampled = median(labelling["sampling"]["tokens_a_second"])
    pairs = {
        cap: labelling[cap]["pairs"] / median(one["C"] for one in labelling[cap]["rounds"]) for cap in ("cap8", "cap32")
    }
    rows = [
        ("sampling 10 outputs, SmolLM2-135M, float32", f"{sampled:.0f} tokens/s"),
        ("scoring 11 outputs of up to 8 tokens, the same", f"{pairs['cap8']:.1f} pairs/s"),
        ("scoring 11 outputs of up to 32 tokens, the same", f"{pairs['cap32']:.1f} pairs/s"),
        (
            f"Ray's part of `label`, up to {many['rows']:,} groups with a scorer that makes the scores up",
            f"{1000 * each:.2f} ms a group beyond {start:.0f} s",
        ),
        ("`encoder.dtype: int8` beside float32, MiniLM", f"{median(embedding['int8']['gain']):.2f} times the passages"),
    ]
    return ["| what | rate |", "|---|---|", *(f"| {what} | {rate} |" for what, rate in rows)]


def stages(run: str) -> list[str]:
    """The stages of a run, with what they wrote and how long they took."""
    kept = read(f"kept/{run}.json")
    lines = [f"| {one['stage']} | {one['rows']:,} {one['unit']} | {one['seconds']:,.0f} |" for one in kept["stages"]]
    total = sum(one["seconds"] for one in kept["stages"])
    told = f"{kept['day']}, {machine_told(kept['machine'])}{'; ' if kept['note'] else ''}{kept['note']}"
    return ["| stage | wrote | seconds |", "|---|---:|---:|", *lines, f"| all | | {total:,.0f} |", "", told + "."]


def retrieval(run: str) -> list[str]:
    """How high retrievers rank what is right, with 95 % intervals."""
    kept = read(f"kept/{run}.json")
    lines = []
    for dataset, found in kept["datasets"].items():
        measures = found["measures"]
        shown = [name for name in HEADLINES if name in measures]
        lines += [
            f"{dataset}, {found['queries']} queries:",
            "",
            f"| retriever | {' | '.join(shown)} |",
            f"|---|{'---:|' * len(shown)}",
        ]
        for retriever in kept["retrievers"]:
            values = [measures[name]["retrievers"][retriever] for name in shown]
            cells = [f"{one['value']:.2f} [{one['low']:.2f}, {one['high']:.2f}]" for one in values]
            lines.append(f"| {retriever} | {' | '.join(cells)} |")
    return lines


def gains(run: str) -> list[str]:
    """What a training gained in each task, with 95 % intervals."""
    lines = []
    for task, gain in read(f"kept/{run}.json")["gains"].items():
        change = gain["difference"]
        told = f"{change['value']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]"
        measure = gain["measure"] + (", less is better" if gain["lower_is_better"] else "")
        lines.append(
            f"| {task} | {measure} | {gain['queries']} | {gain['base']:.3f} | {gain['trained']:.3f} | {told} |"
        )
    return ["| task | measure | queries | base | trained | difference |", "|---|---|---:|---:|---:|---:|", *lines]


def unseen() -> list[str]:
    """What training gained on data sets that no training saw."""
    study = read("study.json")
    gained, trainings = study["unseen"], study["trainings"]["full"]
    sure = [told_gain(task, gained[task]) for task in study["gaining_unseen"]]
    rest = [task for task in gained if task not in study["gaining_unseen"]]
    beyond, below = study["gaining_beyond_shuffled"], study["significantly_below"]
    told = [
        f"**On data sets that no training saw** ({trainings} trainings, 95 % intervals) it gains in "
        f"{' and '.join(sure) or 'no task'}.",
        f"In {', '.join(rest)} no difference is sure." if rest else "",
        f"More than by shuffled rewards it gains in {' and '.join(beyond)}."
        if beyond
        else "By shuffled rewards it gains as much there: the labels teach it, and not yet the small LLM.",
        f"Worse for sure: {', '.join(below) or 'no data set'}. `benchmarks/STUDY.md` has the protocol and all numbers.",
    ]
    return [" ".join(filter(None, told))]


def told_gain(task: str, gain: dict[str, Any]) -> str:
    """A gain as words."""
    return f"{task} ({gain['measure']} {gain['gain']:+.3f}, {gain['low']:+.3f} to {gain['high']:+.3f})"


BLOCKS: dict[str, Callable[[], list[str]]] = {
    "scaling": lambda: scaling.tables(scaling.Run()),
    "rates": rates,
    "unseen": unseen,
    "demo-stages": partial(stages, "demo"),
    "demo-gains": partial(gains, "demo"),
    "documentation-stages": partial(stages, "documentation"),
    "documentation-retrieval": partial(retrieval, "documentation"),
}
