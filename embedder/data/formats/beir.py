"""BEIR folders (Thakur et al. 2021): corpus.jsonl and queries.jsonl with `_id`, and qrels/SPLIT.tsv."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from embedder.config.prepare import Source
from embedder.config.tasks import TaskSpec
from embedder.data.fields import Row, RowError, as_id, required_id, required_text
from embedder.data.formats.reader import TEXT_FIELDS, SourceReader
from embedder.data.json_lines import read_text_lines
from embedder.data.records import Split
from embedder.data.rows import FieldNames, Prepared, query_row, read_lines
from embedder.errors import DataError

FILES = ("corpus.jsonl", "queries.jsonl")
GRADE = re.compile(r"([+-]?[0-9]+)(\.0*)?")
LARGEST_GRADE = 2**31 - 1
HEADINGS = {"queryid", "qid", "query", "topic", "topicid"}
"""First columns of a heading, without signs and in lower case."""


class BeirReader(SourceReader):
    """Reads a BEIR folder; judgements are rows too: each is kept, merged or rejected."""

    needs = "qrels/train.tsv, dev.tsv nor test.tsv"
    corpus_fields = frozenset({"_id", "title", *TEXT_FIELDS, "metadata"})

    def __init__(self, source: Source, task: TaskSpec) -> None:
        super().__init__(source, task)
        self._unfit: Counter[str] = Counter()
        """The first reason why metadata are not kept, and of how many passages."""

    def _split_files(self, split: Split) -> list[Path]:
        return [self.path / "qrels" / f"{split}.tsv"]

    def _find_splits(self) -> dict[Split, Path]:
        splits = super()._find_splits()
        if not all((self.path / name).is_file() for name in FILES):
            raise DataError(f"{self._where} lacks one of {FILES}, which `format: beir` needs")
        return splits

    def _passage_id(self, row: Row, position: int) -> str:
        return required_id(row, "_id")

    def read_passages(self, prepared: Prepared) -> None:
        """The same; metadata that nothing could be filtered by costs no passage, since BEIR sets no rules for it."""
        super().read_passages(prepared)
        if self._unfit:
            first = next(iter(self._unfit))
            prepared.notes.append(f"corpus.jsonl: metadata of {self._unfit.total():,} passages not kept: {first}")

    def _metadata(self, row: Row) -> str | None:
        try:
            return super()._metadata(row)
        except ValueError as error:
            # By their first one: a corpus of millions may have as many reasons.
            self._unfit[next(iter(self._unfit), str(error))] += 1
            return None

    def read_queries(self, prepared: Prepared) -> dict[Split, list[list[Row]]]:
        """The queries of each split that have a relevant passage; a judgement of 0 says that a passage is not."""
        texts = self._read_texts(prepared)
        uses: Counter[str] = Counter()
        lines: dict[Split, list[list[Row]]] = {}
        for split, path in self.splits.items():
            grades = _read_judgements(path, texts, prepared)
            lines[split] = [[self._query(query_id, texts[query_id], of)] for query_id, of in grades.items() if of]
            uses.update(line[0]["query_id"] for line in lines[split])
        # Every row in must be a row out or left out: a query of two splits counts as two rows, one of none is left out.
        prepared.rows_in += uses.total() - len(uses)
        prepared.left_out += len(texts) - len(uses)
        return lines

    def _read_texts(self, prepared: Prepared) -> dict[str, str]:
        """Texts of all queries by id."""
        texts: dict[str, str] = {}
        seen: set[str] = set()
        path, names = self.path / "queries.jsonl", FieldNames(frozenset({"_id", "text"}))
        for number, row in read_lines(path, prepared):
            names.see(row)
            try:
                query_id, text = required_id(row, "_id"), required_text(row, "text")
                if texts.setdefault(query_id, text) != text:
                    raise RowError(f"_id {query_id!r} was seen before, with another text")
            except RowError as error:
                prepared.set_aside(path, number, str(error), row)
                continue
            prepared.merged += query_id in seen
            seen.add(query_id)
        prepared.notes += names.notes(path)
        return texts

    def _query(self, query_id: str, text: str, grades: Mapping[str, int]) -> Row:
        known = {"positive_ids": list(grades), "positive_grades": list(grades.values())}
        return query_row(self.source, query_id, text, **known)


def _read_judgements(path: Path, texts: Mapping[str, str], prepared: Prepared) -> dict[str, dict[str, int]]:
    """Grades above 0 of the passages of each query, by query id."""
    grades: dict[tuple[str, str], int] = {}
    relevant: dict[str, dict[str, int]] = {}
    first = True
    for line in read_text_lines(path):
        heading, first = first and not line.fault and _is_heading(line.text), False
        if heading:
            continue
        prepared.count(path)
        try:
            if line.fault:
                raise RowError(line.fault)
            query_id, passage_id, grade = _judgement(line.text)
            if query_id not in texts:
                raise RowError(f"query {query_id!r} is not in queries.jsonl")
            if passage_id not in prepared.passages:
                raise RowError(f"passage {passage_id!r} is not in corpus.jsonl")
            if (query_id, passage_id) in grades:
                known = grades[query_id, passage_id]
                if known != grade:
                    raise RowError(f"query {query_id!r} with {passage_id!r} was seen before, with score {known}")
                prepared.merged += 1
                continue
        except RowError as error:
            prepared.set_aside(path, line.number, str(error), line.text)
            continue
        prepared.rows_out += 1
        grades[query_id, passage_id] = grade
        if grade > 0:
            relevant.setdefault(query_id, {})[passage_id] = grade
    return relevant


def _columns(line: str) -> list[str]:
    """Tabs divide the columns, so that an id may hold a space; in a line without a tab, white space does."""
    return [column.strip() for column in line.split("\t")] if "\t" in line.strip() else line.split()


def _is_heading(line: str) -> bool:
    columns = _columns(line)
    first = "".join(sign for sign in columns[0].lower() if sign.isalnum())
    return first in HEADINGS and GRADE.fullmatch(columns[-1]) is None


def _judgement(line: str) -> tuple[str, str, int]:
    """Query, passage and grade of a line; TREC's files have a column between the first two, which says nothing.

    Raises:
        RowError: the line has other columns, or the grade is no whole number.
    """
    parts = _columns(line)
    if len(parts) not in {3, 4}:
        raise RowError(f"{len(parts)} columns; query-id, corpus-id and score with tabs between them are needed")
    grade = GRADE.fullmatch(parts[-1])
    # Looked at by length first: numbers of thousands of digits are slow to read, or refused by Python.
    if grade is None or len(grade[1]) > 12 or abs(int(grade[1])) > LARGEST_GRADE:
        raise RowError(f"score is {parts[-1][:100]!r}; a whole number of at most {LARGEST_GRADE} is needed")
    return as_id(parts[0], "query-id"), as_id(parts[-2], "corpus-id"), int(grade[1])
