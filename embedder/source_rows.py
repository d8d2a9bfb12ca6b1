"""One row of a JSON Lines file: parsed, its fields checked, or why it is set aside."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from embedder.records import content_id

Row = dict[str, Any]
KEPT_CHARACTERS = 2000
"""Of a row that is set aside."""


@dataclass(frozen=True)
class Rejected:
    """One source row that was set aside."""

    file: str
    line: int
    reason: str
    row: str
    """The first `KEPT_CHARACTERS` characters."""


class RowError(Exception):
    """Why one row is rejected."""


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
