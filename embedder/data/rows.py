"""Rows of a source as they are read and counted: what is kept of them, and why some are set aside."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, MutableMapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from embedder.config.prepare import Source
from embedder.data.fields import Row, RowError
from embedder.data.json_lines import parse_object, read_text_lines
from embedder.data.records import QUERY, Split
from embedder.errors import shown

KEPT_ROWS = 20_000
"""Rows of a source that are kept of those that are set aside; more of them are counted."""
KEPT_CHARACTERS = 2000
"""Length of what is kept of a row that is set aside."""


@dataclass(frozen=True)
class Rejected:
    """One source row that was set aside."""

    file: str
    line: int
    reason: str
    row: str
    """The first `KEPT_CHARACTERS` characters."""


@dataclass
class Prepared:
    """A dataset after reading: `rows_in` = queries and passages kept + `merged` + `left_out` + rejected."""

    queries: dict[Split, list[Row]] = field(default_factory=dict)
    passages: MutableMapping[str, Row] = field(default_factory=dict)
    """By id; a dict, or a file where the corpus may be large (`StoredPassages`)."""
    rejected: list[Rejected] = field(default_factory=list)
    """The first `KEPT_ROWS` of them."""
    rejected_of: Counter[str] = field(default_factory=Counter, compare=False)
    """All of them, by file."""
    rows_in: int = 0
    rows_of: Counter[str] = field(default_factory=Counter, compare=False)
    """Rows read of each file."""
    rows_out: int = 0
    merged: int = 0
    """Rows that say the same as an earlier one, or add to it: further positives of one query."""
    left_out: int = 0
    notes: list[str] = field(default_factory=list)
    most_rows: int | None = None
    """Rows of each JSON Lines file that are read at most; None: all."""

    def set_aside(self, path: Path, line: int, reason: str, row: object) -> None:
        """Reject one row."""
        text = row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)
        self.rejected_of[str(path)] += 1
        if len(self.rejected) < KEPT_ROWS:
            self.rejected.append(Rejected(str(path), line, reason, text[:KEPT_CHARACTERS]))

    def count(self, path: Path) -> None:
        """Count one row that was read."""
        self.rows_in += 1
        self.rows_of[str(path)] += 1

    def first_reason(self, file: str | None = None) -> str:
        """Where and why the first row (of a file) was rejected, as the end of a message; empty if none was."""
        first = next((row for row in self.rejected if file is None or row.file == file), None)
        return f"; first rejected {first.file}:{first.line}: {first.reason}" if first else ""

    @property
    def lost_files(self) -> list[str]:
        """Files of which every row was rejected."""
        return [file for file, rows in self.rows_of.items() if self.rejected_of[file] == rows]

    @property
    def sum_holds(self) -> bool:
        return self.rows_in == self.rows_out + self.merged + self.left_out + self.rejected_of.total()


@dataclass
class FieldNames:
    """Names of the fields of a file's rows that no reader looks at."""

    read: frozenset[str]
    unread: Counter[str] = field(default_factory=Counter)

    def see(self, names: Iterable[str]) -> None:
        """Count the names of one row."""
        self.unread.update(name for name in names if name not in self.read)

    def notes(self, path: Path) -> list[str]:
        """A line with the names that are most frequent, if there are any."""
        names = [name for name, _ in self.unread.most_common(10)]
        more = f" and {len(self.unread) - len(names)} others" if len(self.unread) > len(names) else ""
        return [f"{path.name}: fields that are not read: {', '.join(map(shown, names))}{more}"] if names else []


def read_lines(path: Path, prepared: Prepared) -> Iterator[tuple[int, Row]]:
    """The JSON objects of a file with their line numbers; other lines are rejected, blank ones are nothing.

    Raises:
        DataError: a compressed file is damaged, or the file is in UTF-16 or UTF-32.
    """
    for line in islice(read_text_lines(path), prepared.most_rows):
        prepared.count(path)
        try:
            if line.fault:
                raise RowError(line.fault)
            row = parse_object(line.text)
        except RowError as error:
            prepared.set_aside(path, line.number, str(error), line.text)
            continue
        yield line.number, row


def titled(title: str | None, text: str) -> str:
    """What is encoded, searched by words and shown to the LLM of a passage: its title, a space, its text."""
    title = (title or "").strip()
    return f"{title} {text}" if title else text


def untitled(title: str | None, text: str) -> str:
    """The text of a passage without the title that `titled` put before it."""
    title = (title or "").strip()
    return text.removeprefix(f"{title} ") if title else text


def passage_row(
    source: Source,
    passage_id: str,
    text: str,
    title: str | None = None,
    metadata: str | None = None,
    answer: str | None = None,
) -> Row:
    """A row of `records.PASSAGE`."""
    named = {"task": source.task, "dataset": source.dataset, "id": passage_id, "text": text}
    return {**named, "title": title, "answer": answer, "metadata": metadata}


def query_row(source: Source, query_id: str, query: str, **known: object) -> Row:
    """A row of `records.QUERY`; what is not known of it is empty."""
    empty: Row = {**dict.fromkeys(QUERY.names), "answers": [], "positive_ids": [], "example_ids": []}
    named = {"task": source.task, "dataset": source.dataset, "query_id": query_id, "query": query}
    return {**empty, **named, **known}
