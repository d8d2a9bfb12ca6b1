"""Files of FlagEmbedding's llm_embedder, whose rows become rows of the layout.

One file of training rows, or a folder with `train*.json`, `test*.json` and `corpus.json` (all JSON Lines, also as
.jsonl), as its README ships them: `pos_index` counts lines of the corpus from 0, PopQA has `possible_answers`, MMLU
`choices` and the position of the right one, the example sets `options` and the position of the right one as a text,
long texts are `text` alone.
"""

from __future__ import annotations

import json
from pathlib import Path

from embedder.data.formats.layout import LayoutReader
from embedder.data.formats.reader import titled_text
from embedder.data.records import Split
from embedder.data.rows import Row, RowError
from embedder.hashing import content_id


class ReferenceReader(LayoutReader):
    """Reads a file or folder of the reference."""

    needs = "a train nor a test file (.json, .jsonl)"
    is_missing = "is no file and no folder"

    def _find_splits(self) -> dict[Split, Path]:
        return {"train": self.path} if self.path.is_file() else super()._find_splits()

    def _split_files(self, split: Split) -> list[Path]:
        return sorted(path for path in self.path.glob(f"{split}*") if path.suffix in {".json", ".jsonl"})

    def _corpus_row(self, row: Row, number: int) -> Row:
        return {"id": str(number - 1), "text": titled_text(row), "title": row.get("title")}

    def _labels(self) -> list[str] | None:
        return None

    def _layout_row(self, row: Row) -> Row:
        """Where there is a corpus, `pos_index` stands for `pos`, and `neg_index`, if there are scores, for `neg`.

        Raises:
            RowError: a position of the right choice leaves the choices, or an index is no list.
        """
        common: Row = {**row, "pos_ids": None}
        if self.corpus:
            common["pos_ids"] = _lines(row, "pos_index")
            common["neg_ids"] = _lines(row, "neg_index") if self.source.teacher_scores else None
        if row.get("possible_answers"):
            common["answers"] = _answers(row["possible_answers"])
        if row.get("choices"):
            common["options"] = [str(choice) for choice in row["choices"]]
            common["answers"] = [_choice(common["options"], row.get("answer"))]
        elif row.get("options") and row.get("answers") and row["answers"][0] not in row["options"]:
            common["answers"] = [_choice(row["options"], row["answers"][0])]
        common.setdefault("category", row.get("task_name"))
        if "text" in row:
            common.setdefault("query_id", content_id(row["text"]))
        return common


def _lines(row: Row, key: str) -> list[str]:
    """Ids of the corpus lines that a row names."""
    lines = row.get(key) or []
    if not isinstance(lines, list):
        raise RowError(f"{key} is {lines!r:.200}; a list of line numbers is needed")
    return [str(line) for line in lines]


def _answers(value: object) -> object:
    """PopQA keeps its accepted answers as a list, or as JSON in a text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise RowError(f"possible_answers is {value!r:.200}; a list is needed") from error


def _choice(options: list[str], position: object) -> str:
    """The option at a position, which may be a number, digits, or a letter from A on."""
    letters = {letter: i for i, letter in enumerate("ABCDEFGHIJ")}
    known = letters.get(position, position) if isinstance(position, str) else position
    if isinstance(known, str) and known.isdigit():
        known = int(known)
    if not isinstance(known, int) or not 0 <= known < len(options):
        raise RowError(f"the answer is {position!r:.200}; a position in the {len(options)} options is needed")
    return str(options[known])
