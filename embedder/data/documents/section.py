"""A part of a document under its headings, how documents become such parts, and why a file cannot be read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

MAX_TEXT_BYTES = 64 * 2**20
"""A file that is read as a whole may have so many bytes."""
MAX_HEADING = 300
"""Characters of a heading; what is longer is a paragraph in the dress of one."""
EMPTY_LINES = re.compile(r"\n{3,}")
MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
"""Byte order marks and the encodings that they tell of."""


class UnreadableError(Exception):
    """Says why a file, or a row of one, is set aside."""


def yaml_value(text: str) -> object:
    """What a text in YAML says, of which nothing is built but texts, numbers, lists and mappings.

    Raises:
        UnreadableError: it is no YAML.
    """
    try:
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UnreadableError(f"no YAML: {' '.join(str(error).split())[:200]}") from error


@dataclass(frozen=True)
class DocumentPart:
    """A part of a document that has one heading path."""

    headings: tuple[str, ...]
    """From the document's title to the nearest heading; may be empty."""
    text: str
    pages: tuple[tuple[int, int], ...] = ()
    """Where in the text each page begins, and its number from 1; empty where a document has no pages."""
    row_id: str | None = None
    """The id that a row of a table brings."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Further fields to filter by."""
    fault: str | None = None
    """Why this row is set aside, with its text as it stood there; None for all others."""
    line: int = 0
    """Number of the row in its file, from 1."""


class Outline:
    """Collects lines under the headings that are open, and gives a section at each further heading."""

    def __init__(self, title: str) -> None:
        """`title`: stands for the headings of what comes before the first one."""
        self._title = title
        self._open: list[tuple[int, str]] = []
        self._lines: list[str] = []

    def add(self, line: str) -> None:
        """Add a line to the text under the last heading."""
        self._lines.append(line)

    def heading(self, level: int, title: str) -> Iterator[DocumentPart]:
        """Open a heading; gives what stood under the one before."""
        title = " ".join(title.split())
        if not title or len(title) > MAX_HEADING:
            self._lines.append(title)
            return
        yield from self._section(deeper=bool(self._open) and level > self._open[-1][0])
        while self._open and self._open[-1][0] >= level:
            self._open.pop()
        self._open.append((level, title))

    def end(self) -> Iterator[DocumentPart]:
        """Give what stood under the last heading."""
        yield from self._section(deeper=False)

    def _section(self, *, deeper: bool) -> Iterator[DocumentPart]:
        text = EMPTY_LINES.sub("\n\n", "\n".join(self._lines)).strip("\n")
        self._lines.clear()
        headings = tuple(title for _, title in self._open)
        # A heading without a text of its own is no passage where others stand below it, since these name it.
        if not text.strip() and headings and not deeper:
            text = headings[-1]
        if text.strip():
            yield DocumentPart(headings or (self._title,), text)


def read_text(path: Path, encoding: str) -> str:
    """The text of a whole file; a byte order mark tells more than `encoding`.

    Raises:
        UnreadableError: it is empty, too large, binary, or of another encoding.
    """
    return decoded(read_bytes(path), encoding)


def read_bytes(path: Path) -> bytes:
    """The bytes of a whole file.

    Raises:
        UnreadableError: it is empty or too large.
    """
    size = path.stat().st_size
    if size > MAX_TEXT_BYTES:
        raise UnreadableError(f"{size:,} bytes; a file of this kind may have {MAX_TEXT_BYTES:,}")
    raw = path.read_bytes()
    if not raw.strip():
        raise UnreadableError("empty")
    return raw


def decoded(raw: bytes, encoding: str) -> str:
    """Bytes as text, with plain ends of lines.

    Raises:
        UnreadableError: they are binary, of another encoding, or blank.
    """
    told = next((name for mark, name in MARKS.items() if raw.startswith(mark)), None)
    if told is None and b"\0" in raw:
        raise UnreadableError("binary: it holds empty bytes")
    try:
        text = raw.decode(told or encoding)
        text.encode()
    except UnicodeDecodeError as error:
        raise UnreadableError(
            f"not {told or encoding}: byte {error.start + 1} is {raw[error.start]:#04x}; save the file as UTF-8, or "
            "name the `encoding` of the source"
        ) from error
    except UnicodeEncodeError as error:
        raise UnreadableError("a text holds half of a character (a lone surrogate)") from error
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    if not text.strip():
        raise UnreadableError("empty")
    return text
