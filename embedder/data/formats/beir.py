"""BEIR folders (Thakur et al. 2021): corpus.jsonl and queries.jsonl with `_id`, and qrels/SPLIT.tsv."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from embedder.data.formats.reader import SourceReader, titled_text
from embedder.data.records import Split
from embedder.data.rows import Prepared, Row, RowError, query_row, read_lines, required_text
from embedder.errors import DataError

FILES = ("corpus.jsonl", "queries.jsonl")


class BeirReader(SourceReader):
    """Reads a BEIR folder; judgements are rows too: each is kept or rejected."""

    needs = "qrels/train.tsv, dev.tsv nor test.tsv"

    def _split_files(self, split: Split) -> list[Path]:
        return [self.path / "qrels" / f"{split}.tsv"]

    def _find_splits(self) -> dict[Split, Path]:
        splits = super()._find_splits()
        if not all((self.path / name).is_file() for name in FILES):
            raise DataError(f"{self._where} lacks one of {FILES}, which `format: beir` needs")
        return splits

    def _corpus_row(self, row: Row, number: int) -> Row:
        return {"id": str(row.get("_id", "")), "text": titled_text(row), "title": row.get("title")}

    def read_queries(self, prepared: Prepared) -> dict[Split, list[list[Row]]]:
        """The queries of each split that have a relevant passage; a judgement of 0 says that a passage is not."""
        texts = self._read_texts(prepared)
        uses: Counter[str] = Counter()
        lines: dict[Split, list[list[Row]]] = {}
        for split, path in self.splits.items():
            grades = _read_judgements(path, texts, prepared)
            lines[split] = [[self._query(query_id, texts[query_id], grades[query_id])] for query_id in grades]
            uses.update(list(grades))
        # Every row in must be a row out or left out: a query of two splits counts as two rows, one of none is left out.
        prepared.rows_in += uses.total() - len(uses)
        prepared.left_out += len(texts) - len(uses)
        return lines

    def _read_texts(self, prepared: Prepared) -> dict[str, str]:
        """Texts of all queries by id."""
        texts: dict[str, str] = {}
        path = self.path / "queries.jsonl"
        for number, row in read_lines(path, prepared):
            try:
                query_id = str(row.get("_id", ""))
                if not query_id or query_id in texts:
                    raise RowError(f"_id {query_id!r} is {'missing' if not query_id else 'seen before'}")
                texts[query_id] = required_text(row, "text")
            except RowError as error:
                prepared.set_aside(path, number, str(error), row)
        return texts

    def _query(self, query_id: str, text: str, grades: Mapping[str, int]) -> Row:
        known = {"positive_ids": list(grades), "positive_grades": list(grades.values())}
        return query_row(self.source, query_id, text, **known)


def _read_judgements(path: Path, texts: Mapping[str, str], prepared: Prepared) -> dict[str, dict[str, int]]:
    """Grades above 0 of the passages of each query, by query id."""
    grades: dict[str, dict[str, int]] = {}
    for number, line in _judgement_lines(path):
        prepared.rows_in += 1
        try:
            query_id, passage_id, grade = _judgement(line)
            if query_id not in texts:
                raise RowError(f"query {query_id!r} is not in queries.jsonl")
            if passage_id not in prepared.passages:
                raise RowError(f"passage {passage_id!r} is not in corpus.jsonl")
            prepared.rows_out += 1
            if grade > 0:
                grades.setdefault(query_id, {})[passage_id] = grade
        except RowError as error:
            prepared.set_aside(path, number, str(error), line)
    return grades


def _judgement_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines after the heading, with their numbers."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if line.strip() and not (number == 1 and line.lower().startswith("query-id")):
                yield number, line


def _judgement(line: str) -> tuple[str, str, int]:
    parts = line.rstrip("\r\n").split("\t")
    if len(parts) != 3:
        raise RowError(f"{len(parts)} columns; query-id, corpus-id and score with tabs between them are needed")
    try:
        return parts[0], parts[1], int(parts[2])
    except ValueError as error:
        raise RowError(f"score is {parts[2]!r}; a whole number is needed") from error
