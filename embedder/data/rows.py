"""Rows of a JSON Lines file: parsed, their fields checked, or why they are set aside; and what they add up to."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embedder.config.prepare import Source
from embedder.data.records import QUERY, Split
from embedder.errors import DataError
from embedder.hashing import content_id

Row = dict[str, Any]
KEPT_CHARACTERS = 2000
"""Length of what is kept of a row that is set aside."""
FLOAT32_MAX = 3.4028234663852886e38
"""Rewards are stored as float32; a larger score would become infinite."""


@dataclass(frozen=True)
class Rejected:
    """One source row that was set aside."""

    file: str
    line: int
    reason: str
    row: str
    """The first `KEPT_CHARACTERS` characters."""


class RowError(Exception):
    """Says why one row is rejected."""


@dataclass
class Prepared:
    """A dataset after reading: `rows_in` = queries and passages kept + `left_out` + rejected."""

    queries: dict[Split, list[Row]] = field(default_factory=dict)
    passages: dict[str, Row] = field(default_factory=dict)
    rejected: list[Rejected] = field(default_factory=list)
    rows_in: int = 0
    rows_out: int = 0
    left_out: int = 0
    notes: list[str] = field(default_factory=list)

    def set_aside(self, path: Path, line: int, reason: str, row: object) -> None:
        """Reject one row."""
        text = row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)
        self.rejected.append(Rejected(str(path), line, reason, text[:KEPT_CHARACTERS]))


def read_lines(path: Path, prepared: Prepared) -> Iterator[tuple[int, Row]]:
    """The JSON objects of a file with their line numbers; other lines are rejected.

    A file whose name ends in `.gz` is compressed.

    Raises:
        DataError: a compressed file is damaged.
    """
    # A byte that is no UTF-8 becomes a mark in its text, so that it spoils neither its row nor the lines after it.
    open_file = gzip.open if path.suffix == ".gz" else open
    number = 0
    with open_file(path, "rt", encoding="utf-8", errors="replace") as file:
        try:
            for number, line in enumerate(file, start=1):
                prepared.rows_in += 1
                try:
                    row = parse_object(line)
                except RowError as error:
                    prepared.set_aside(path, number, str(error), line)
                    continue
                yield number, row
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(f"{path}:{number + 1}: not readable ({error}); copy the file again") from error


def passage_row(source: Source, passage_id: str, text: str, title: object = None, metadata: str | None = None) -> Row:
    """A row of `records.PASSAGE`."""
    title = title if isinstance(title, str) else None
    named = {"task": source.task, "dataset": source.dataset, "id": passage_id, "text": text}
    return {**named, "title": title, "answer": None, "metadata": metadata}


def query_row(source: Source, query_id: str, query: str, **known: object) -> Row:
    """A row of `records.QUERY`; what is not known of it is empty."""
    empty: Row = {**dict.fromkeys(QUERY.names), "answers": [], "positive_ids": []}
    named = {"task": source.task, "dataset": source.dataset, "query_id": query_id, "query": query}
    return {**empty, **named, **known}


def parse_object(line: str) -> Row:
    """The JSON object of a line.

    Raises:
        RowError: it is no JSON, no object, or holds a text that is no Unicode.
    """
    try:
        row = json.loads(line)
        if "\\u" in line:
            # A lone surrogate is valid JSON but no text that could be hashed or written; only an escape makes one.
            json.dumps(row, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise RowError(f"not JSON: {error}") from error
    if not isinstance(row, dict):
        raise RowError(f"a {type(row).__name__}, not an object")
    return row


def required_text(row: Row, key: str) -> str:
    """A required text of a row, without white space at its ends.

    Raises:
        RowError: it is missing, of another type or blank.
    """
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"{key} is {value!r:.200}; a non-empty text is needed")
    return value.strip()


def optional_texts(row: Row, key: str) -> list[str]:
    """An optional list of texts of a row, without white space at their ends; empty where the row has none.

    Raises:
        RowError: it is no list, or an entry is of another type or blank.
    """
    values = row.get(key) or []
    if not isinstance(values, list):
        raise RowError(f"{key} is not a list of non-empty texts, but {values!r:.200}")
    for i, text in enumerate(values):
        if not isinstance(text, str) or not text.strip():
            raise RowError(f"{key} is not a list of non-empty texts; entry {i} is {text!r:.200}")
    return [text.strip() for text in values]


def optional_text(row: Row, key: str) -> str | None:
    """An optional text or number of a row as a text, without white space at its ends; None where it is blank."""
    value = row.get(key)
    return str(value).strip() or None if isinstance(value, str | int) else None


def options_of(row: Row, answers: list[str]) -> list[str] | None:
    """All answers that a row offers; None where it offers none.

    Raises:
        RowError: an accepted answer is not among them.
    """
    options = optional_texts(row, "options")
    if options and answers and answers[0] not in options:
        raise RowError(f"the answer {answers[0]!r:.200} is not among the options {options!r:.200}")
    return options or None


def query_id_of(row: Row, dataset: str, query: str) -> str:
    """The row's own `query_id`, or else one made from its dataset and query."""
    given = row.get("query_id")
    return content_id(dataset, query) if given in (None, "") else str(given)


def gold_positions(row: Row, length: int) -> list[int]:
    """Positions of the known positives in the row's history of `length` texts.

    Raises:
        RowError: they are no list of positions, or leave the history.
    """
    positions = row.get("gold_history") or []
    if not isinstance(positions, list):
        raise RowError(f"gold_history is {positions!r:.200}; a list of positions is needed")
    if not all(isinstance(i, int) and 0 <= i < length for i in positions):
        raise RowError(f"gold_history {positions!r:.200} leaves the history of {length}")
    return list(positions)


def optional_scores(row: Row, candidates: int, fields: str) -> list[float] | None:
    """The row's `teacher_scores`, one for each of its candidates; None where it has none.

    `fields` tells in messages where the candidates stand.

    Raises:
        RowError: they are no finite numbers, or more or fewer than candidates.
    """
    scores = row.get("teacher_scores")
    if scores is None:
        return None
    if not isinstance(scores, list):
        raise RowError(f"teacher_scores is {scores!r:.100}; a list of numbers is needed")
    if len(scores) != candidates:
        raise RowError(f"teacher_scores has {len(scores)} entries for {candidates} candidates ({fields})")
    for i, value in enumerate(scores):
        # The comparison is written so that NaN fails it too.
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= FLOAT32_MAX:
            raise RowError(f"teacher_scores[{i}] is {value!r:.100}; a finite number of at most 3.4e38 is needed")
    return [float(value) for value in scores]
