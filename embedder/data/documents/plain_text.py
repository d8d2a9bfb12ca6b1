"""Text, Markdown, reStructuredText and source code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from markdown_it import MarkdownIt

from embedder.data.documents.section import DocumentPart, Outline, UnreadableError, yaml_value

FRONT_MATTER = re.compile(r"\A---\n(.*?)\n(?:---|\.\.\.)\n", re.DOTALL)
TITLE_LINE = re.compile(r"^title:\s*[\"']?(.+?)[\"']?\s*$", re.MULTILINE)
UNDERLINE = re.compile(r"([=\-`:.'\"~^_*+#])\1{2,}\s*")
"""A line of one sign, under (and sometimes over) a heading of reStructuredText."""
NODES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
LONG_CLASS = 60
"""Lines of a class whose functions get headings of their own."""


def text_sections(text: str, name: str) -> Iterator[DocumentPart]:
    """A text without headings that one could know: its name stands for them."""
    yield DocumentPart((name,), text.strip("\n"))


def markdown_sections(text: str, name: str) -> Iterator[DocumentPart]:
    """The parts of a Markdown text, as it stands there; its front matter is left out, apart from a title."""
    front = FRONT_MATTER.match(text)
    if front and _is_mapping(front[1]):
        title = TITLE_LINE.search(front[1])
        name, text = (title[1] if title else name), text[front.end() :]
    # Blocks alone: what stands within a line has no headings and would take most of the time.
    tokens = MarkdownIt("commonmark").disable("inline").parse(text)
    headings = {}
    for i, token in enumerate(tokens):
        # Of quotes and lists a heading belongs to these.
        if token.type == "heading_open" and token.level == 0 and token.map:
            headings[token.map[0]] = (token.map[1], int(token.tag[1]), tokens[i + 1].content)
    yield from _cut(text.split("\n"), headings, name)


def _is_mapping(text: str) -> bool:
    """Whether a text is YAML with names and values, and not what stands between two rules."""
    try:
        return isinstance(yaml_value(text), dict)
    except UnreadableError:
        return False


def rst_sections(text: str, name: str) -> Iterator[DocumentPart]:
    """The parts of a text in reStructuredText; signs under headings rank by their first appearance, as it says."""
    lines = text.split("\n")
    ranks: dict[tuple[str, bool], int] = {}
    headings = {}
    for i in range(1, len(lines)):
        title, line = lines[i - 1].strip(), lines[i]
        if not title or lines[i - 1][0].isspace() or UNDERLINE.fullmatch(lines[i - 1]) or not UNDERLINE.fullmatch(line):
            continue
        if len(line.rstrip()) < len(title):
            continue
        over = i > 1 and UNDERLINE.fullmatch(lines[i - 2]) is not None and lines[i - 2][0] == line[0]
        rank = ranks.setdefault((line[0], over), len(ranks) + 1)
        headings[i - 1 - over] = (i + 1, rank, title)
    yield from _cut(lines, headings, name)


def python_sections(text: str, name: str) -> Iterator[DocumentPart]:
    """Python source by its classes and functions; text that does not parse is one part."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        yield from text_sections(text, name)
        return
    lines = text.split("\n")
    starts: dict[int, tuple[str, ...]] = {0: (name,)}
    _mark(tree.body, (name,), starts)
    cuts = sorted(starts)
    for begin, end in zip(cuts, [*cuts[1:], len(lines)], strict=True):
        if part := "\n".join(lines[begin:end]).strip("\n"):
            yield DocumentPart(starts[begin], part)


def _mark(body: list[ast.stmt], above: tuple[str, ...], starts: dict[int, tuple[str, ...]]) -> None:
    """Note the line from 0 at which each class and function begins, and where the text around goes on."""
    for node in body:
        if not isinstance(node, NODES):
            continue
        kind = "class" if isinstance(node, ast.ClassDef) else "def"
        headings = (*above, f"{kind} {node.name}")
        first = min([node.lineno, *(each.lineno for each in node.decorator_list)]) - 1
        end = node.end_lineno or node.lineno
        starts[first] = headings
        if isinstance(node, ast.ClassDef) and end - first > LONG_CLASS:
            _mark(node.body, headings, starts)
        starts.setdefault(end, above)


def _cut(lines: list[str], headings: dict[int, tuple[int, int, str]], name: str) -> Iterator[DocumentPart]:
    """Lines under headings; of each its first line, the line after it, its level and its text."""
    outline, i = Outline(name), 0
    while i < len(lines):
        if i in headings:
            i, level, title = headings[i]
            yield from outline.heading(level, title)
        else:
            outline.add(lines[i])
            i += 1
    yield from outline.end()
