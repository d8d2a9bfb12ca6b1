"""Files of FlagEmbedding's llm_embedder, whose rows become rows of the layout.

One file of training rows, or a folder with `train*.json`, `test*.json` and `corpus.json` (all JSON Lines, also as
.jsonl), as its README ships them: `pos_index` counts lines of the corpus from 0, PopQA has `possible_answers`, MMLU
`choices` and the position of the right one, the example sets `options` and the position of the right one as a text,
long texts are `text` alone.
"""

from __future__ import annotations

from pathlib import Path

from embedder.data.fields import Row, RowError, as_id
from embedder.data.formats.layout import KNOWN, LayoutReader
from embedder.data.formats.reader import TEXT_FIELDS
from embedder.data.json_lines import parse_json
from embedder.data.records import Split
from embedder.errors import shown

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class ReferenceReader(LayoutReader):
    """Reads a file or folder of the reference."""

    needs = "a train nor a test file (.json, .jsonl)"
    is_missing = "is no file and no folder"
    corpus_fields = frozenset({"title", *TEXT_FIELDS})
    query_fields = KNOWN | {
        *("pos_index", "neg_index", "options", "choices", "answer", "possible_answers"),
        *("category", "subject", "task_name"),
    }
    mines_negatives = True

    def _find_splits(self) -> dict[Split, Path]:
        return {"train": self.path} if self.path.is_file() else super()._find_splits()

    def _split_files(self, split: Split) -> list[Path]:
        return sorted(path for path in self.path.glob(f"{split}*") if path.suffix in {".json", ".jsonl"})

    def _passage_id(self, row: Row, position: int) -> str:
        return str(position)

    def _metadata(self, row: Row) -> str | None:
        return None

    def _labels(self) -> list[str] | None:
        return None

    def _layout_row(self, row: Row) -> Row:
        """Where there is a corpus, `pos_index` stands for `pos`, and `neg_index`, if there are scores, for `neg`.

        Raises:
            RowError: a position of the right choice leaves the choices, or an index is no list.
        """
        common: Row = {**row, "pos_ids": None, "neg_ids": None}
        if self.corpus:
            common["pos_ids"] = _lines(row, "pos_index")
            common["neg_ids"] = _lines(row, "neg_index") if self.source.teacher_scores else None
        if row.get("possible_answers"):
            common["answers"] = _answers(row["possible_answers"])
        options = _options(row)
        if row.get("choices"):
            common |= {"options": options, "answers": [_choice(options, row.get("answer"))]}
        elif options and isinstance(row.get("answers"), list) and row["answers"] and row["answers"][0] not in options:
            common["answers"] = [_choice(options, row["answers"][0])]
        if common.get("category") is None and common.get("subject") is None:
            common["category"] = row.get("task_name")
        return common


def _lines(row: Row, key: str) -> list[str]:
    """Ids of the corpus lines that a row names."""
    lines = row.get(key)
    if not isinstance(lines, list | None):
        raise RowError(f"{key} is {shown(lines)}; a list of line numbers is needed")
    return [as_id(line, f"{key}[{i}]") for i, line in enumerate(lines or [])]


def _answers(value: object) -> object:
    """PopQA keeps its accepted answers as a list, or as JSON in a text."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except RowError as error:
        raise RowError(f"possible_answers is {shown(value)}; a list is needed") from error


def _options(row: Row) -> list[str]:
    """The answers to choose from, numbers among them as texts."""
    key = "choices" if row.get("choices") else "options"
    options = row.get(key)
    if options is None:
        return []
    if not isinstance(options, list) or not all(isinstance(option, str | int | float) for option in options):
        raise RowError(f"{key} is {shown(options)}; a list of texts is needed")
    return [str(option).strip() for option in options]


def _choice(options: list[str], position: object) -> str:
    """The option at a position, which may be a number, digits, or a letter from A on."""
    known = position
    if isinstance(position, str):
        text = position.strip()
        # Only the digits 0 to 9, since other signs are digits to Python too, such as a raised 2.
        digits = text.isascii() and text.isdigit() and len(text) < 4
        known = int(text) if digits else LETTERS.find(text) if len(text) == 1 else -1
    if isinstance(known, bool) or not isinstance(known, int) or not 0 <= known < len(options):
        raise RowError(f"the answer is {shown(position)}; a position in the {len(options)} options is needed")
    return options[known]
