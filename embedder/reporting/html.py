"""Parts of a report page: one HTML file without network or script, for light and dark screens.

A page is built as a tree of elements, so every text is escaped by the serialiser; texts of a corpus are put into
elements, never into attributes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from xml.etree.ElementTree import Element, SubElement, tostring

NONE, MINUS = "–", "−"
"""What stands for a number that is not known, and before one below 0."""

TEXT_CHARACTERS = 300
"""Longer texts are cut where a page does not say otherwise."""

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


def new_page(title: str, lead: str, sections: Mapping[str, str]) -> tuple[Element, Element]:
    """An empty page and its body, with a heading and links to the sections (anchor to title)."""
    root = Element("html", {"lang": "en"})
    head, body = SubElement(root, "head"), SubElement(root, "body")
    SubElement(head, "meta", {"charset": "utf-8"})
    SubElement(head, "meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"})
    SubElement(head, "meta", {"http-equiv": "Content-Security-Policy", "content": POLICY})
    add(head, "title", title)
    add(head, "style", STYLE)
    add(body, "h1", title)
    add(body, "p", lead, "soft")
    nav = SubElement(body, "nav", {"aria-label": "contents"})
    for anchor, text in sections.items():
        SubElement(nav, "a", {"href": f"#{anchor}"}).text = text
    return root, body


def written(root: Element) -> str:
    """The page as text."""
    return "<!doctype html>\n" + tostring(root, encoding="unicode", method="html") + "\n"


def add(parent: Element, tag: str, text: str = "", cls: str = "") -> Element:
    """A new element at the end of another."""
    element = SubElement(parent, tag, {"class": cls} if cls else {})
    element.text = text
    return element


def heading(parent: Element, tag: str, text: str, anchor: str) -> None:
    """A heading that links lead to."""
    SubElement(parent, tag, {"id": anchor}).text = text


def tiles(parent: Element, values: Sequence[tuple[str, str]]) -> None:
    """Single numbers side by side, (label, value) each."""
    grid = add(parent, "div", cls="tiles")
    for label, value in values:
        tile = add(grid, "div", cls="tile")
        add(tile, "b", value)
        add(tile, "span", label, "soft")


def table(parent: Element, left: Sequence[str], right: Sequence[str], numeric: int | None = None) -> Element:
    """A table's body; the first `numeric` (default: all) of the columns `right` hold numbers."""
    whole = SubElement(add(parent, "div", cls="wide"), "table")
    line = SubElement(SubElement(whole, "thead"), "tr")
    for i, head in enumerate([*left, *right]):
        number = len(left) <= i < len(left) + (len(right) if numeric is None else numeric)
        add(line, "th", head, "n" if number else "")
    return SubElement(whole, "tbody")


def row(body: Element, left: Sequence[str], right: Sequence[str]) -> None:
    """A line of a table: texts, then numbers."""
    line = SubElement(body, "tr")
    for text in left:
        add(line, "td", text, "text")
    for text in right:
        add(line, "td", text, "n")


def share_cell(line: Element, value: float | None) -> None:
    """A cell with a share of 1 and a bar of that length."""
    cell = SubElement(line, "td", {"class": "n"} if value is None else {"class": "n bar"})
    cell.text = share(value)
    if value is not None:
        cell.set("style", f"--share: {value:.1%}")


def picture(parent: Element, light: str, dark: str, description: str) -> None:
    """A PNG for either background, both as base64."""
    whole = SubElement(parent, "picture")
    source = {"media": "(prefers-color-scheme: dark)", "srcset": f"data:image/png;base64,{dark}"}
    SubElement(whole, "source", source)
    shown = {"class": "picture", "src": f"data:image/png;base64,{light}", "alt": description}
    SubElement(whole, "img", shown)


def printable(text: str, most: int = TEXT_CHARACTERS) -> str:
    """A text that can be written as UTF-8: no lone surrogates, no control characters; cut to `most` characters."""
    shown = re.sub(r"[^\S\n\t]|[\x00-\x08\x0b-\x1f\x7f-\x9f]", " ", text[:most]).encode("utf-8", "replace").decode()
    return shown + "…" if len(text) > most else shown


def share(value: float | None) -> str:
    """As per cent."""
    return NONE if value is None else f"{value:.1%}"


def fixed(value: float | None, digits: int) -> str:
    """With so many digits behind the point."""
    return NONE if value is None else f"{value:,.{digits}f}".replace("-", MINUS)


def signed(value: float | None, digits: int) -> str:
    """With its sign, and without zeros at the end."""
    if value is None:
        return NONE
    shown = f"{value:+,.{digits}f}".rstrip("0").rstrip(".")
    return "0" if shown in {"+0", "-0"} else shown.replace("-", MINUS)


def significant(value: float) -> str:
    """Three digits that count, with thousands marked."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, or seconds alone."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d} h" if whole >= 60 else f"{seconds:.1f} s"
