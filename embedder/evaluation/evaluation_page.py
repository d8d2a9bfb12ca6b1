"""The report of an evaluation as one HTML page, in the form of the labelling report."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element, SubElement

from embedder.evaluation.comparison import headline_entries
from embedder.evaluation.evaluation_plots import DARK, LIGHT, draw_headlines
from embedder.reporting.html import MINUS, NONE, add, fixed, heading, new_page, picture, printable, table, written

SURE = 0.05
"""Differences with a smaller p-value are marked."""


def page(results: Mapping[str, Any], run: str) -> str:
    """The report; all texts are escaped and the page loads nothing."""
    sections = {"summary": "Summary"}
    sections |= {f"task-{i}": printable(task) for i, task in enumerate(results["tasks"])}
    sections |= {"method": "How it was measured"}
    lead = f"Retrievers on the {results['split']} split: their rankings, and what the LLM makes of what they find."
    root, body = new_page(f"Evaluation of {printable(run)}", lead, sections)
    _summary(body, results)
    for i, task in enumerate(results["tasks"]):
        _task(body, f"task-{i}", task, results)
    _method(body, results)
    return written(root)


def _summary(body: Element, results: Mapping[str, Any]) -> None:
    heading(body, "h2", "Summary", "summary")
    entries = headline_entries(results)
    if not entries:
        add(body, "p", "Nothing could be measured: no dataset has relevant passages, and the LLM was not asked.")
        return
    light, dark = (base64.b64encode(draw_headlines(results, theme)).decode("ascii") for theme in (LIGHT, DARK))
    picture(body, light, dark, "The measure that stands for each task, by retriever, with 95 % intervals")
    rows = [(f"{task}: {measure}", entry) for task, (measure, entry) in entries.items()]
    _values(body, "task", rows, results)
    add(body, "p", "Means over the datasets of a task, each of which counts once.", "soft")
    _differences(body, "task", rows, results)


def _task(body: Element, anchor: str, task: str, results: Mapping[str, Any]) -> None:
    one = results["tasks"][task]
    heading(body, "h2", printable(task), anchor)
    add(body, "p", one["describes"])
    for name in one["datasets"]:
        dataset = results["datasets"][name]
        heading(body, "h3", printable(name), f"{anchor}-{name}")
        facts = [f"{dataset['queries']:,} queries"]
        if dataset["units"] != dataset["queries"]:
            facts.append(f"from {dataset['units']:,} documents or conversations")
        if dataset["errors"]:
            facts.append(f"{dataset['errors']:,} could not be asked and count for no retriever")
        add(body, "p", "; ".join(facts) + ".", "soft")
        if not dataset["measures"]:
            add(body, "p", "Nothing was measured: no relevant passages are known, and the LLM was not asked.")
            continue
        order = sorted(dataset["measures"], key=lambda measure: measure != dataset["headline"])
        rows = [(measure, dataset["measures"][measure]) for measure in order]
        _values(body, "measure", rows, results)
        _differences(body, "measure", rows[:1], results)
        _examples(body, dataset["examples"], results["baseline"], dataset["measures"][order[0]]["kind"])


def _values(
    body: Element, head: str, rows: Sequence[tuple[str, Mapping[str, Any]]], results: Mapping[str, Any]
) -> None:
    """A line a measure, a column a retriever; the best value is marked."""
    names = [name for name in results["retrievers"] if any(name in entry["retrievers"] for _, entry in rows)]
    lines = table(body, [head], ["queries", *names])
    for title, entry in rows:
        line = SubElement(lines, "tr")
        add(line, "td", _named(title, entry), "label")
        add(line, "td", f"{entry['queries']:,}", "n")
        found = entry["retrievers"]
        pick = min if entry["kind"] == "perplexity" else max
        best = pick(one["value"] for one in found.values())
        for name in names:
            cell = add(line, "td", cls="n")
            if name not in found:
                cell.text = NONE
                continue
            one = found[name]
            add(cell, "b" if one["value"] == best else "span", fixed(one["value"], 3))
            SubElement(cell, "br")
            add(cell, "small", f"{fixed(one['low'], 3)} to {fixed(one['high'], 3)}", "soft")


def _differences(
    body: Element, head: str, rows: Sequence[tuple[str, Mapping[str, Any]]], results: Mapping[str, Any]
) -> None:
    """How far each retriever is from the baseline; sure differences are marked."""
    names = [name for name in results["retrievers"] if any(name in entry["differences"] for _, entry in rows)]
    if not names:
        return
    lines = table(body, [f"{head}, less {results['baseline']}"], names)
    for title, entry in rows:
        line = SubElement(lines, "tr")
        add(line, "td", _named(title, entry), "label")
        for name in names:
            cell, one = add(line, "td", cls="n"), entry["differences"].get(name)
            if one is None:
                cell.text = NONE
                continue
            better = one["value"] < 0 if entry["kind"] == "perplexity" else one["value"] > 0
            sure = one["p"] < SURE
            add(cell, "b" if sure else "span", _signed(one["value"]), "positive" if sure and better else "")
            SubElement(cell, "br")
            add(cell, "small", f"{_signed(one['low'])} to {_signed(one['high'])}", "soft")
            SubElement(cell, "br")
            add(cell, "small", f"p = {one['p']:.4f}" if one["p"] >= 0.0001 else "p < 0.0001", "soft")


def _named(title: str, entry: Mapping[str, Any]) -> str:
    """The measure's title; an arrow says that lower is better."""
    return title + (" \N{DOWNWARDS ARROW}" if entry["kind"] == "perplexity" else "")


def _signed(value: float) -> str:
    return f"{value:+,.3f}".replace("-", MINUS)


def _examples(body: Element, examples: Mapping[str, Any], baseline: str, kind: str) -> None:
    name = examples["retriever"]
    for won, title in (("won", "better"), ("lost", "worse")):
        for example in examples[won]:
            box = SubElement(body, "details")
            add(box, "summary", f"{name} {title}: " + (" ".join(example["query"].split())[:110] or NONE))
            _example(box, example, (baseline, name), examples["measure"], kind)


def _example(box: Element, example: Mapping[str, Any], pair: tuple[str, str], measure: str, kind: str) -> None:
    facts = SubElement(box, "dl")
    for name, text in (("query", example["query"]), ("desired output", "\n".join(example["answers"]) or NONE)):
        add(facts, "dt", name)
        add(facts, "dd", text, "text")
    for name in pair:
        one = example["retrievers"][name]
        what = f"{name}: {measure} {fixed(one['value'], 3)}" + (" (of this query)" if kind == "perplexity" else "")
        add(add(box, "p"), "b", what)
        if one["reply"] is not None:
            add(box, "p", f"The LLM wrote: {one['reply'] or NONE}", "text")
        lines = table(box, ["passage found", ""], [])
        for passage in one["passages"]:
            line = SubElement(lines, "tr", {"class": "marked"} if passage["relevant"] else {})
            add(line, "td", passage["text"], "text")
            add(line, "td", "relevant" if passage["relevant"] else "", "positive")
        if not one["passages"]:
            add(SubElement(lines, "tr"), "td", "nothing", "soft")


def _method(body: Element, results: Mapping[str, Any]) -> None:
    heading(body, "h2", "How it was measured", "method")
    rounds = f"{results['resamples']:,}"
    for text in (
        f"Intervals: {results['interval']}, {rounds} resamples, seed {results['seed']}.",
        f"p: {results['test']}, {rounds} rounds. Bold differences have p < {SURE}.",
        "All retrievers are measured on the same queries, and the LLM gets the same prompt, worked examples and number "
        "of passages with each of them. Perplexity weighs every token alike; lower is better.",
    ):
        add(body, "p", text)
