"""The labelling report: `labelling.json` for programs, `labelling.html` to read, one file without network or script.

The page is built as a tree of elements, so every text from a corpus is escaped by the serialiser; none is in an
attribute.
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element, SubElement, tostring

from embedder.labelling.report import Candidate, Example, LabelCost, LabelStatistics, TaskStatistics, printable
from embedder.labelling.report_picture import DARK, LIGHT, draw_task
from embedder.records import write_json
from embedder.storage import AnyPath, replacing

NONE, MINUS = "–", "−"
"""What stands for a number that is not known, and before one below 0."""

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""What the page may load: nothing but its own style and pictures."""

STYLE = """
:root { color-scheme: light dark; --text: #1d2733; --soft: #5b6673; --line: #d9dee5; --back: #ffffff;
  --panel: #f5f7fa; --mark: #fdf0f6; --positive: #aa3377; --link: #2f5f96; --bar: #4477aa; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e8ee; --soft: #9aa6b4; --line: #343c47; --back: #14181d;
  --panel: #1c222a; --mark: #33202c; --positive: #ee88bb; --link: #8ab8ec; --bar: #6fa8dc; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 72rem; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.35rem; margin: 2.8rem 0 .6rem; padding-top: .8rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .5rem; }
p { margin: .4rem 0; max-width: 60rem; }
a { color: var(--link); }
nav { background: var(--panel); border-radius: 8px; padding: .7rem 1.1rem; margin: 1.2rem 0; }
nav a { margin-right: 1.2rem; white-space: nowrap; }
.soft { color: var(--soft); }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
.n { text-align: right; font-variant-numeric: tabular-nums; }
td.n, td.label { white-space: nowrap; }
td.bar { min-width: 5rem; background: linear-gradient(to right, var(--bar) var(--share), var(--line) var(--share))
  .6rem calc(100% - 2px) / calc(100% - 1.2rem) 3px no-repeat; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
td.text { min-width: 16rem; }
tr.marked td { background: var(--mark); }
.positive { color: var(--positive); font-weight: 600; white-space: nowrap; }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: .7rem; margin: .8rem 0; }
.tile { background: var(--panel); border-radius: 8px; padding: .6rem .9rem; }
.tile b { display: block; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
.picture { display: block; width: 100%; height: auto; margin: .8rem 0; }
details { border: 1px solid var(--line); border-radius: 8px; margin: .6rem 0; padding: 0 1rem; }
details[open] { padding-bottom: .8rem; }
summary { cursor: pointer; padding: .55rem 0; overflow-wrap: anywhere; unicode-bidi: isolate; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1rem; margin: .6rem 0; }
dt { color: var(--soft); }
dd { margin: 0; }
@media (max-width: 50rem) { .tiles { grid-template-columns: repeat(2, 1fr); } }
@media print { details { break-inside: avoid; } }
"""

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
    root = Element("html", {"lang": "en"})
    head, body = SubElement(root, "head"), SubElement(root, "body")
    SubElement(head, "meta", {"charset": "utf-8"})
    SubElement(head, "meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"})
    SubElement(head, "meta", {"http-equiv": "Content-Security-Policy", "content": POLICY})
    _add(head, "title", f"Labels of {printable(run)}")
    _add(head, "style", STYLE)
    _add(body, "h1", f"Labels of {printable(run)}")
    _add(body, "p", "What the rewards of the candidates look like, and what they cost.", "soft")
    nav = SubElement(body, "nav", {"aria-label": "contents"})
    sections = {"cost": "Cost", "tasks": "Tasks"}
    sections |= {f"task-{i}": printable(task) for i, task in enumerate(statistics.tasks)}
    for anchor, title in sections.items():
        SubElement(nav, "a", {"href": f"#{anchor}"}).text = title
    _cost(body, cost)
    _overview(body, statistics)
    for i, (task, one) in enumerate(statistics.tasks.items()):
        _task(body, f"task-{i}", printable(task), one)
    return "<!doctype html>\n" + tostring(root, encoding="unicode", method="html") + "\n"


def _cost(body: Element, cost: LabelCost | None) -> None:
    _heading(body, "h2", "Cost", "cost")
    if cost is None:
        _add(body, "p", "This run labelled nothing: all groups were labelled before.")
        return
    tiles = [
        ("wall time", _duration(cost.seconds)),
        ("actors", f"{cost.actors:,}"),
        ("pairs of query and candidate", f"{cost.pairs:,}"),
        ("pairs a second", _significant(cost.pairs_per_s)),
        ("tokens computed", f"{cost.tokens:,}"),
        ("tokens a second", _significant(cost.tokens_per_s)),
        ("operations", f"{_significant(cost.flops / 1e12)} TFLOP"),
        ("share of the devices' peak", _share(cost.peak_share)),
    ]
    grid = _add(body, "div", cls="tiles")
    for label, value in tiles:
        tile = _add(grid, "div", cls="tile")
        _add(tile, "b", value)
        _add(tile, "span", label, "soft")
    _add(body, "p", "Of this run alone; rates are those of all actors together.", "soft")


def _overview(body: Element, statistics: LabelStatistics) -> None:
    _heading(body, "h2", "Tasks", "tasks")
    if not statistics.tasks:
        _add(body, "p", "There are no labelled groups.")
        return
    heads = ["groups", "rewarded", "errors", *(label for label, _ in SHARES.values()), "sampled outputs"]
    table = _table(body, ["task"], heads)
    for i, (task, one) in enumerate(statistics.tasks.items()):
        line, shares = SubElement(table, "tr"), one.shares()
        SubElement(SubElement(line, "td"), "a", {"href": f"#task-{i}"}).text = printable(task)
        for name in ("groups", "rewarded", "errors"):
            _add(line, "td", f"{shares[name]:,}", "n")
        for name in SHARES:
            _share_cell(line, shares.get(name))
        _add(line, "td", _fixed(one.mean_samples, 1), "n")
    _add(body, "p", "Sampled outputs: distinct ones a group, the desired output not among them.", "soft")


def _task(body: Element, anchor: str, task: str, one: TaskStatistics) -> None:
    _heading(body, "h2", task, anchor)
    counts, shares = one.counts, one.shares()
    facts = [f"{name}: {counts[name]:,}" for name in ("groups", "rewarded", "unrewarded", "errors")]
    _add(body, "p", "; ".join([*facts, f"rewarded candidates: {counts['candidates']:,}"]))
    if one.reasons:
        lines = _table(body, ["why groups have no reward"], ["groups"])
        for reason, count in [*one.reasons.most_common(), ("other reasons", counts["other_reasons"])]:
            if count:
                _row(lines, [reason], [f"{count:,}"])
    if counts["rewarded"]:
        lines = _table(body, ["share"], ["", "meaning"], numeric=1)
        for name, (label, meaning) in SHARES.items():
            line = SubElement(lines, "tr")
            _add(line, "td", label, "label")
            _share_cell(line, shares.get(name))
            _add(line, "td", meaning, "soft")
        _means(body, one)
        _picture(body, one)
    _heading(body, "h3", f"Groups to read: {len(one.examples)} of {counts['groups']:,}", f"{anchor}-read")
    _add(body, "p", "Drawn evenly by a seeded hash. Log-likelihoods are means over the tokens, in nats.", "soft")
    for example in one.examples:
        _example(body, example)


def _means(body: Element, one: TaskStatistics) -> None:
    lines = _table(body, ["mean reward", "unit"], ["known positives", "other candidates"])
    nats = dict.fromkeys(("likelihood", "lift"), "nats a token")
    units = {"rank": "ranks gained", **nats, "teacher": "the teacher's own"}
    for kind, (other, positive) in sorted(one.rewards.items()):
        _row(lines, [kind, units.get(kind, kind)], [_signed(positive.mean, 3), _signed(other.mean, 3)])


def _picture(body: Element, one: TaskStatistics) -> None:
    picture = SubElement(body, "picture")
    dark = f"data:image/png;base64,{draw_task(one, DARK)}"
    SubElement(picture, "source", {"media": "(prefers-color-scheme: dark)", "srcset": dark})
    shown = {"class": "picture", "src": f"data:image/png;base64,{draw_task(one, LIGHT)}"}
    SubElement(picture, "img", shown | {"alt": "Histograms of the desired output's rank and of the rewards"})


def _example(body: Element, example: Example) -> None:
    box = SubElement(body, "details")
    _add(box, "summary", " ".join(example.query.split())[:120] or NONE)
    _add(box, "p", f"{example.dataset} / {example.query_id}", "soft")
    if example.error:
        _add(box, "p", f"No reward: {example.error}", "positive")
    facts = SubElement(box, "dl")
    for name, text in (("query", example.query), ("desired output", example.desired or NONE)):
        _add(facts, "dt", name)
        _add(facts, "dd", text, "text")
    if example.desired_likelihood is not None:
        lines = _table(box, ["output, without a candidate"], ["log-likelihood"])
        outputs = [("desired", example.desired or NONE, example.desired_likelihood)]
        outputs += [("", text, score) for text, score in example.samples]
        for mark, text, score in sorted(outputs, key=lambda output: -output[2]):
            line = SubElement(lines, "tr", {"class": "marked"} if mark else {})
            _add(line, "td", text, "text")
            _add(line, "td", _fixed(score, 3), "n")
        if example.desired_rank is not None:
            _add(box, "p", f"Rank of the desired output (marked): {example.desired_rank:g}.", "soft")
    lines = _table(box, ["candidate", ""], ["reward", "rank", "log-likelihood"])
    for candidate in sorted(example.candidates, key=_by_reward):
        line = SubElement(lines, "tr")
        _add(line, "td", candidate.text, "text")
        _add(line, "td", "known positive" if candidate.positive else "", "positive")
        _add(line, "td", _signed(candidate.reward, 3), "n")
        _add(line, "td", NONE if candidate.rank is None else f"{candidate.rank:g}", "n")
        _add(line, "td", _fixed(candidate.likelihood, 3), "n")
    if example.desired_likelihood is not None:
        _add(box, "p", "Rank and log-likelihood of the desired output when the prompt holds the candidate.", "soft")


def _by_reward(candidate: Candidate) -> float:
    return 0.0 if candidate.reward is None else -candidate.reward


def _add(parent: Element, tag: str, text: str = "", cls: str = "") -> Element:
    element = SubElement(parent, tag, {"class": cls} if cls else {})
    element.text = text
    return element


def _heading(parent: Element, tag: str, text: str, anchor: str) -> None:
    SubElement(parent, tag, {"id": anchor}).text = text


def _table(parent: Element, left: Sequence[str], right: Sequence[str], numeric: int | None = None) -> Element:
    """A table's body; the first `numeric` (default: all) of the columns `right` hold numbers."""
    table = SubElement(_add(parent, "div", cls="wide"), "table")
    line = SubElement(SubElement(table, "thead"), "tr")
    for i, head in enumerate([*left, *right]):
        number = len(left) <= i < len(left) + (len(right) if numeric is None else numeric)
        _add(line, "th", head, "n" if number else "")
    return SubElement(table, "tbody")


def _row(table: Element, left: Sequence[str], right: Sequence[str]) -> None:
    line = SubElement(table, "tr")
    for text in left:
        _add(line, "td", text, "text")
    for text in right:
        _add(line, "td", text, "n")


def _share_cell(line: Element, value: float | None) -> None:
    cell = SubElement(line, "td", {"class": "n"} if value is None else {"class": "n bar"})
    cell.text = _share(value)
    if value is not None:
        cell.set("style", f"--share: {value:.1%}")


def _share(value: float | None) -> str:
    return NONE if value is None else f"{value:.1%}"


def _fixed(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:,.{digits}f}".replace("-", MINUS)


def _signed(value: float | None, digits: int) -> str:
    """With its sign, and without zeros at the end."""
    if value is None:
        return NONE
    shown = f"{value:+,.{digits}f}".rstrip("0").rstrip(".")
    return "0" if shown in {"+0", "-0"} else shown.replace("-", MINUS)


def _significant(value: float) -> str:
    """Three digits that count, with thousands marked."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d} h" if whole >= 60 else f"{seconds:.1f} s"
