"""The labelling report: `labelling.json` for programs, `labelling.html` to read, one file without network or script.

The page is built as a tree of elements, so every text from a corpus is escaped by the serialiser; none is in an
attribute.
"""

from __future__ import annotations

from xml.etree.ElementTree import Element, SubElement

from embedder.labelling.label_plots import DARK, LIGHT, draw_task
from embedder.labelling.label_statistics import Candidate, Example, LabelCost, LabelStatistics, TaskStatistics
from embedder.reporting.html import (
    NONE,
    add,
    duration,
    fixed,
    heading,
    new_page,
    picture,
    printable,
    row,
    share,
    share_cell,
    signed,
    significant,
    table,
    tiles,
    written,
)
from embedder.storage.json_file import write_json
from embedder.storage.object_store import AnyPath, replacing

SHARES = {
    "flat": ("flat", "All rewards are equal: the group orders nothing. Of the rewarded groups."),
    "saturated": (
        "saturated",
        "The desired output is already first without a candidate: no candidate can gain. Of the groups with ranks.",
    ),
    "polarised": (
        "polarised",
        "One candidate has the highest reward and all others have one and the same, so that the softmax of the rewards "
        "is nearly one-hot. Of the rewarded groups.",
    ),
    "decided": ("decided", "Neither flat nor saturated. Of the rewarded groups."),
    "positive_is_best": (
        "positive is best",
        "A known positive has the highest reward, alone or not. Of the groups that know one and are not flat.",
    ),
    "positive_by_chance": (
        "by chance",
        "How often that would be so if as many candidates had been called the best blindly.",
    ),
    "truncated": (
        "truncated",
        "Candidates that were cut to fit the LLM's prompt. Of the candidates of groups that tell.",
    ),
}
"""By name in `TaskStatistics.shares`: its heading and what it means."""


def write_report(statistics: LabelStatistics, cost: LabelCost | None, folder: AnyPath, run: str) -> AnyPath:
    """Write `labelling.json` and `labelling.html` into a folder, each as a whole.

    Args:
        statistics: All rows of the run, already counted.
        cost: Of this run; None where nothing was labelled by it.
        folder: Made where it is missing.
        run: Name in the heading.

    Returns:
        The page.
    """
    numbers = {printable(task): one.numbers() for task, one in statistics.tasks.items()}
    write_json({"cost": cost.numbers() if cost else None, "tasks": numbers}, folder / "labelling.json")
    path = folder / "labelling.html"
    with replacing(path) as file:
        file.write(page(statistics, cost, run).encode())
    return path


def page(statistics: LabelStatistics, cost: LabelCost | None, run: str) -> str:
    """The report as one HTML page; all texts are escaped and the page loads nothing."""
    sections = {"cost": "Cost", "tasks": "Tasks"}
    sections |= {f"task-{i}": printable(task) for i, task in enumerate(statistics.tasks)}
    lead = "What the rewards of the candidates look like, and what they cost."
    root, body = new_page(f"Labels of {printable(run)}", lead, sections)
    _cost(body, cost)
    _overview(body, statistics)
    for i, (task, one) in enumerate(statistics.tasks.items()):
        _task(body, f"task-{i}", printable(task), one)
    return written(root)


def _cost(body: Element, cost: LabelCost | None) -> None:
    heading(body, "h2", "Cost", "cost")
    if cost is None:
        add(body, "p", "This run labelled nothing: all groups were labelled before.")
        return
    numbers = [
        ("wall time", duration(cost.seconds)),
        ("actors", f"{cost.actors:,}"),
        ("pairs of query and candidate", f"{cost.pairs:,}"),
        ("pairs a second", significant(cost.pairs_per_s)),
        ("tokens computed", f"{cost.tokens:,}"),
        ("tokens a second", significant(cost.tokens_per_s)),
        ("operations", f"{significant(cost.flops / 1e12)} TFLOP"),
        ("share of the devices' peak", share(cost.peak_share)),
    ]
    tiles(body, numbers)
    add(body, "p", "Of this run alone; rates are those of all actors together.", "soft")


def _overview(body: Element, statistics: LabelStatistics) -> None:
    heading(body, "h2", "Tasks", "tasks")
    if not statistics.tasks:
        add(body, "p", "There are no labelled groups.")
        return
    heads = ["groups", "rewarded", "errors", *(label for label, _ in SHARES.values()), "sampled outputs"]
    tasks = table(body, ["task"], heads)
    for i, (task, one) in enumerate(statistics.tasks.items()):
        line, shares = SubElement(tasks, "tr"), one.shares()
        SubElement(SubElement(line, "td"), "a", {"href": f"#task-{i}"}).text = printable(task)
        for name in ("groups", "rewarded", "errors"):
            add(line, "td", f"{shares[name]:,}", "n")
        for name in SHARES:
            share_cell(line, shares.get(name))
        add(line, "td", fixed(one.mean_samples, 1), "n")
    add(body, "p", "Sampled outputs: distinct ones a group, the desired output not among them.", "soft")


def _task(body: Element, anchor: str, task: str, one: TaskStatistics) -> None:
    heading(body, "h2", task, anchor)
    counts, shares = one.counts, one.shares()
    facts = [f"{name}: {counts[name]:,}" for name in ("groups", "rewarded", "unrewarded", "errors")]
    add(body, "p", "; ".join([*facts, f"rewarded candidates: {counts['candidates']:,}"]))
    if one.reasons:
        lines = table(body, ["why groups have no reward"], ["groups"])
        for reason, count in [*one.reasons.most_common(), ("other reasons", counts["other_reasons"])]:
            if count:
                row(lines, [reason], [f"{count:,}"])
    if counts["rewarded"]:
        lines = table(body, ["share"], ["", "meaning"], numeric=1)
        for name, (label, meaning) in SHARES.items():
            line = SubElement(lines, "tr")
            add(line, "td", label, "label")
            share_cell(line, shares.get(name))
            add(line, "td", meaning, "soft")
        _means(body, one)
        _picture(body, one)
    heading(body, "h3", f"Groups to read: {len(one.examples)} of {counts['groups']:,}", f"{anchor}-read")
    add(body, "p", "Drawn evenly by a seeded hash. Log-likelihoods are means over the tokens, in nats.", "soft")
    for example in one.examples:
        _example(body, example)


def _means(body: Element, one: TaskStatistics) -> None:
    lines = table(body, ["mean reward", "unit"], ["known positives", "other candidates"])
    nats = dict.fromkeys(("likelihood", "lift"), "nats a token")
    units = {"rank": "ranks gained", **nats, "teacher": "the teacher's own"}
    for kind, (other, positive) in sorted(one.rewards.items()):
        row(lines, [kind, units.get(kind, kind)], [signed(positive.mean, 3), signed(other.mean, 3)])


def _picture(body: Element, one: TaskStatistics) -> None:
    description = "Histograms of the desired output's rank and of the rewards"
    picture(body, draw_task(one, LIGHT), draw_task(one, DARK), description)


def _example(body: Element, example: Example) -> None:
    box = SubElement(body, "details")
    add(box, "summary", " ".join(example.query.split())[:120] or NONE)
    add(box, "p", f"{example.dataset} / {example.query_id}", "soft")
    if example.error:
        add(box, "p", f"No reward: {example.error}", "positive")
    facts = SubElement(box, "dl")
    for name, text in (("query", example.query), ("desired output", example.desired or NONE)):
        add(facts, "dt", name)
        add(facts, "dd", text, "text")
    if example.desired_likelihood is not None:
        lines = table(box, ["output, without a candidate"], ["log-likelihood"])
        outputs = [("desired", example.desired or NONE, example.desired_likelihood)]
        outputs += [("", text, score) for text, score in example.samples]
        for mark, text, score in sorted(outputs, key=lambda output: -output[2]):
            line = SubElement(lines, "tr", {"class": "marked"} if mark else {})
            add(line, "td", text, "text")
            add(line, "td", fixed(score, 3), "n")
        if example.desired_rank is not None:
            add(box, "p", f"Rank of the desired output (marked): {example.desired_rank:g}.", "soft")
    lines = table(box, ["candidate", ""], ["reward", "rank", "log-likelihood"])
    for candidate in sorted(example.candidates, key=_by_reward):
        line = SubElement(lines, "tr")
        add(line, "td", candidate.text, "text")
        add(line, "td", "known positive" if candidate.positive else "", "positive")
        add(line, "td", signed(candidate.reward, 3), "n")
        add(line, "td", NONE if candidate.rank is None else f"{candidate.rank:g}", "n")
        add(line, "td", fixed(candidate.likelihood, 3), "n")
    if example.desired_likelihood is not None:
        add(box, "p", "Rank and log-likelihood of the desired output when the prompt holds the candidate.", "soft")


def _by_reward(candidate: Candidate) -> float:
    return 0.0 if candidate.reward is None else -candidate.reward
