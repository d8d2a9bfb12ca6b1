"""The fields of one source row: read by name and type, or the reason why the row is rejected.

A text or a whole number is an id, and white space at its ends is nothing: 7, 7.0, "7" and " 7 " are one id.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from typing import Any

from embedder.errors import shown

Row = dict[str, Any]
FLOAT32_MAX = 3.4028234663852886e38
"""Rewards are stored as float32; a larger score would become infinite."""
EXACT_FLOAT = 2.0**53
"""Beyond it neighbouring whole numbers are equal as floats, so that two ids would become one."""
MAX_ID_CHARACTERS = 512
"""The service takes no longer ids."""

ALIASES: Mapping[str, tuple[str, ...]] = {
    "query": ("question", "queries", "input", "prompt", "instruction", "utterance", "anchor", "sentence1"),
    "text": ("passage", "document", "doc", "body", "context", "paragraph", "abstract", "page_content"),
    "id": ("_id", "doc_id", "docid", "document_id", "passage_id", "pid", "corpus_id", "corpus-id", "uid"),
    "_id": ("id", "query_id", "query-id", "qid", "doc_id", "docid", "passage_id", "pid", "corpus-id"),
    "query_id": ("id", "_id", "qid", "question_id", "query-id"),
    "answers": ("answer", "output", "outputs", "response", "reply", "target", "completion", "label"),
    "pos": ("positive", "positives", "positive_passages", "positive_ctxs", "positive_contexts", "pos_texts"),
    "pos_ids": ("pos_id", "positive_id", "positive_ids", "positives_ids", "relevant_ids", "gold_ids"),
    "neg": ("negative", "negatives", "negative_passages", "negative_ctxs", "hard_negatives", "neg_texts"),
    "neg_ids": ("neg_id", "negative_id", "negative_ids", "hard_negative_ids"),
    "history": ("dialogue", "dialog", "turns", "messages"),
}
"""Names that other tools have for a field of ours, for the message that names the right one."""


class RowError(Exception):
    """Says why one row is rejected."""


def required_text(row: Row, key: str) -> str:
    """A required text of a row, without white space at its ends.

    Raises:
        RowError: it is missing, of another type or blank.
    """
    value = row.get(key)
    if isinstance(value, str) and not is_blank(value):
        return value.strip()
    raise _missing(row, key, "a non-empty text")


def required_id(row: Row, key: str) -> str:
    """A required id of a row.

    Raises:
        RowError: it is missing, or no id.
    """
    given = optional_id(row, key)
    if given is None:
        raise _missing(row, key, "a text or a whole number")
    return given


def _missing(row: Row, key: str, wanted: str) -> RowError:
    if other := _other_name(row, key):
        return RowError(f"no `{key}`; the row has `{other}`, name it `{key}`")
    return RowError(f"{key} is {shown(row.get(key))}; {wanted} is needed")


def optional_id(row: Row, key: str) -> str | None:
    """An optional id of a row; None where it is missing, null or an empty text.

    Raises:
        RowError: it is no id.
    """
    value = row.get(key)
    return None if value is None or value == "" else as_id(value, key)


def optional_ids(row: Row, key: str) -> list[str]:
    """An optional list of ids; empty where the row has none.

    Raises:
        RowError: it is no list, or an entry is no id.
    """
    return [as_id(value, f"{key}[{i}]") for i, value in enumerate(_optional_list(row, key, "ids"))]


def as_id(value: object, name: str) -> str:
    """A value as an id.

    Raises:
        RowError: it is neither a text that is not blank nor a whole number, too long, or holds an empty byte.
    """
    given = value
    if isinstance(value, float) and value.is_integer() and abs(value) <= EXACT_FLOAT:
        given = int(value)
    # A bool is an int too.
    if isinstance(given, bool) or not isinstance(given, str | int) or is_blank(str(given)):
        raise RowError(f"{name} is {shown(value)}; a text or a whole number is needed")
    text = str(given).strip()
    if len(text) > MAX_ID_CHARACTERS:
        raise RowError(f"{name} has {len(text):,} characters; an id has at most {MAX_ID_CHARACTERS}")
    # The library that measures rankings reads ids as C strings, which end at an empty byte: two ids become one, and
    # its process aborts.
    if "\0" in text:
        raise RowError(f"{name} is {shown(text)}; an id holds no empty byte")
    return text


def optional_texts(row: Row, key: str, *, strip: bool = True) -> list[str]:
    """An optional list of texts or numbers of a row, as texts; empty where the row has none.

    `strip`: without white space at their ends.

    Raises:
        RowError: it is no list, or an entry is of another type or blank.
    """
    values = _optional_list(row, key, "non-empty texts")
    texts = [_as_text(value) for value in values]
    for i, text in enumerate(texts):
        if text is None or is_blank(text):
            raise RowError(f"{key} is not a list of non-empty texts; entry {i} is {shown(values[i])}")
    return [text.strip() if strip else text for text in texts if text is not None]


def optional_text(row: Row, key: str) -> str | None:
    """An optional text or number of a row as a text, without white space at its ends; None where it is blank.

    Raises:
        RowError: it is of another type.
    """
    value = row.get(key)
    if value is None:
        return None
    text = _as_text(value)
    if text is None:
        raise RowError(f"{key} is {shown(value)}; a text is needed")
    return None if is_blank(text) else text.strip()


def refuse_other_names(row: Row, *keys: str) -> None:
    """Refuse a row that holds a field under the name that another tool has for it.

    Raises:
        RowError: it has such a name, and the field itself not.
    """
    for key in keys:
        if row.get(key) is None and (other := _other_name(row, key)):
            raise RowError(f"`{other}` is not read; name it `{key}`")


def options_of(row: Row, answers: list[str]) -> list[str] | None:
    """All answers that a row offers; None where it offers none.

    Raises:
        RowError: an accepted answer is not among them.
    """
    options = optional_texts(row, "options")
    if options and answers and answers[0].strip() not in options:
        raise RowError(f"the answer {shown(answers[0])} is not among the options {shown(options)}")
    return options or None


def gold_positions(row: Row, length: int) -> list[int]:
    """Positions of the known positives in the row's history of `length` texts.

    Raises:
        RowError: they are no list of positions, or leave the history.
    """
    positions = row.get("gold_history")
    if positions is None:
        return []
    if not isinstance(positions, list):
        raise RowError(f"gold_history is {shown(positions)}; a list of positions is needed")
    if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < length for i in positions):
        raise RowError(f"gold_history {shown(positions)} leaves the history of {length}")
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
        raise RowError(f"teacher_scores is {shown(scores)}; a list of numbers is needed")
    if len(scores) != candidates:
        raise RowError(f"teacher_scores has {len(scores)} entries for {candidates} candidates ({fields})")
    for i, value in enumerate(scores):
        # The comparison is written so that NaN fails it too.
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= FLOAT32_MAX:
            raise RowError(f"teacher_scores[{i}] is {shown(value)}; a finite number of at most 3.4e38 is needed")
    return [float(value) for value in scores]


def _as_text(value: object) -> str | None:
    """A text or number as a text, the years and counts that are answers for instance; None for all else."""
    # A bool is an int too. NaN is what other tools write for a missing value; as a text it would be "nan".
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value)


def is_blank(text: str) -> bool:
    """True if a text is white space and format characters alone, such as joiners and marks of direction."""
    return all(sign.isspace() or unicodedata.category(sign) == "Cf" for sign in text)


def _optional_list(row: Row, key: str, what: str) -> list[Any]:
    values = row.get(key)
    if values is None:
        return []
    if not isinstance(values, list):
        raise RowError(f"{key} is not a list of {what}, but {shown(values)}")
    return values


def _other_name(row: Row, key: str) -> str | None:
    if key in row:
        return None
    # In another case and spacing too: `Query`, `POS IDS`.
    names = {name.strip().lower().replace(" ", "_").replace("-", "_"): name for name in row}
    wanted = [name.replace("-", "_") for name in (key, *ALIASES.get(key, ()))]
    return next((names[name] for name in wanted if name in names), None)
