"""HTML pages: the text that a reader sees, without scripts, styles and navigation. Nothing is fetched or run."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator

from selectolax.lexbor import LexborHTMLParser, LexborNode

from embedder.data.documents.section import DocumentPart, Outline, UnreadableError, decoded

CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:-]{1,40})", re.IGNORECASE)
LEFT_OUT = (
    *("script", "style", "template", "noscript", "nav", "svg", "iframe", "object", "form", "select", "button"),
    *('[role="navigation"]', '[aria-hidden="true"]', "a.headerlink"),
)
"""Parts of a page that are not its text."""
MAIN = 'main, [role="main"]'
BLOCKS = {
    *("address", "article", "aside", "blockquote", "body", "dd", "details", "div", "dl", "dt", "figcaption", "figure"),
    *("footer", "header", "hr", "li", "main", "ol", "p", "pre", "section", "summary", "table", "tbody", "tfoot"),
    *("thead", "tr", "ul", "caption"),
}
"""Elements that begin a new line."""
PARAGRAPHS = {"p", "pre", "table", "ul", "ol", "dl", "blockquote", "div", "section"}
"""Elements with an empty line around them."""
HEADINGS = {f"h{level}": level for level in range(1, 7)}
ANCHOR = re.compile(r"\s*[¶§]\s*$|\s+#\s*$")
"""The sign that generators of pages put behind a heading, to link to it."""
SPACES = re.compile(r"[ \t\n\r\f\v\u00a0]+")


def page_sections(raw: bytes, name: str, encoding: str) -> Iterator[DocumentPart]:
    """The parts of a page by its headings, in their order.

    Raises:
        UnreadableError: it is binary, of another encoding, or holds no text.
    """
    tree = LexborHTMLParser(decoded(raw, _charset(raw) or encoding))
    title = tree.css_first("title")
    name = (title and SPACES.sub(" ", title.text()).strip()) or name
    # Marked and not removed, because removing an element frees those within it, which may be marked too.
    left_out = {element.mem_id for element in tree.css(", ".join(LEFT_OUT))}
    found = tree.css(MAIN)
    root = found[0] if len(found) == 1 else tree.body
    sections = list(_Page(name, left_out).sections(root)) if root is not None else []
    if not sections:
        raise UnreadableError("no text in the page")
    yield from sections


def _charset(raw: bytes) -> str | None:
    """The encoding that the page names, if Python knows it."""
    found = CHARSET.search(raw[:4096])
    try:
        return codecs.lookup(found[1].decode()).name if found else None
    except LookupError:
        return None


class _Page:
    """Walks over the elements of a page without recursion, since pages of strangers nest as deep as they like."""

    def __init__(self, name: str, left_out: set[int]) -> None:
        self._outline = Outline(name)
        self._left_out = left_out
        self._line: list[str] = []
        self._preformatted = 0
        """Elements around the place that keep their white space."""

    def sections(self, root: LexborNode) -> Iterator[DocumentPart]:
        """The parts below an element."""
        above: list[LexborNode] = []
        node: LexborNode | None = root
        while node is not None:
            inside = None
            if node.tag in HEADINGS and node.mem_id not in self._left_out:
                self._break()
                yield from self._outline.heading(HEADINGS[node.tag], ANCHOR.sub("", self._heading(node)))
            elif node.mem_id not in self._left_out:
                inside = self._enter(node)
            if inside is not None:
                above.append(node)
                node = inside
                continue
            while above and node.next is None:
                node = above.pop()
                self._leave(node)
            node = node.next if above else None
        self._break()
        yield from self._outline.end()

    def _heading(self, node: LexborNode) -> str:
        """What a reader sees of a heading, on one line."""
        parts: list[str] = []
        above = [node.child]
        while above:
            inside = above.pop()
            if inside is None:
                continue
            above.append(inside.next)
            if inside.mem_id in self._left_out:
                continue
            if inside.tag == "-text":
                parts.append(inside.text_content or "")
            elif inside.tag in BLOCKS or inside.tag == "br":
                parts.append(" ")
            above.append(inside.child)
        return "".join(parts)

    def _enter(self, node: LexborNode) -> LexborNode | None:
        """Begin an element; the first node within it, or None where it has been read as a whole."""
        tag = node.tag or ""
        if tag == "-text":
            self._text(node.text_content or "")
            return None
        if tag in BLOCKS or tag == "br":
            self._break()
        if tag in PARAGRAPHS:
            self._outline.add("")
        if tag == "li":
            self._line.append("- ")
        self._preformatted += tag == "pre"
        inside = node.child
        if inside is None:
            self._leave(node)
        return inside

    def _leave(self, node: LexborNode) -> None:
        tag = node.tag or ""
        if tag in {"td", "th"}:
            self._line.append(" | ")
        if tag in BLOCKS:
            self._break()
        if tag in PARAGRAPHS:
            self._outline.add("")
        self._preformatted -= tag == "pre"

    def _text(self, text: str) -> None:
        if not self._preformatted:
            self._line.append(SPACES.sub(" ", text))
            return
        first, *others = text.split("\n")
        self._line.append(first)
        for line in others:
            self._break()
            self._line.append(line)

    def _break(self) -> None:
        """End the line; white space at its beginning stays where it counts."""
        line = SPACES.sub(" ", "".join(self._line)) if not self._preformatted else "".join(self._line)
        self._line.clear()
        line = line.rstrip() if self._preformatted else line.strip().removesuffix(" |")
        if line.strip() or self._preformatted:
            self._outline.add(line)
