"""What the readers of all formats share: they find a source's files at once, then read passages, then queries."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from embedder.config.prepare import Source
from embedder.config.tasks import TaskSpec
from embedder.data.fields import Row, RowError, is_blank, optional_text, required_id, required_text
from embedder.data.hub_dataset import source_copy
from embedder.data.metadata import metadata_json
from embedder.data.records import Split
from embedder.data.rows import FieldNames, Prepared, passage_row, read_lines, titled
from embedder.errors import DataError
from embedder.storage.fetched import local_copy

SPLITS: tuple[Split, ...] = ("train", "dev", "test")
TEXT_FIELDS = ("text", "contents", "content")
"""Names of a passage's text; the first one that is not blank counts."""


class SourceReader(ABC):
    """Reads the files of one source, all of which exist."""

    needs: ClassVar[str]
    """Split files of a folder, as an error names them."""
    is_missing: ClassVar[str] = "is no folder"
    """Ending of the error about a path where nothing is."""
    corpus_fields: ClassVar[frozenset[str]] = frozenset({"id", "title", *TEXT_FIELDS, "answer", "metadata"})
    """Fields of a row of the corpus that are read."""

    def __init__(self, source: Source, task: TaskSpec) -> None:
        """Find the files.

        Raises:
            DataError: the path is missing, no split is in it, or its corpus is missing or empty.
        """
        self.source, self.task = source, task
        self.path = source_copy(source.path)
        self.splits = self._find_splits()
        """Rows of queries; for beir the relevance judgements."""
        self.corpus = self._find_corpus()
        """None where rows bring their own candidates."""

    @property
    def size(self) -> int:
        """Bytes of rows."""
        paths = [*self.splits.values(), *([self.corpus] if self.corpus else [])]
        return sum(path.stat().st_size for path in paths)

    @abstractmethod
    def read_queries(self, prepared: Prepared) -> dict[Split, list[list[Row]]]:
        """The checked queries of each line, by split; call it after `read_passages`.

        A long document gives many queries, any other line one.
        """

    def read_passages(self, prepared: Prepared) -> None:
        """Fill `prepared.passages` by id from the corpus, if there is one."""
        if self.corpus is None:
            return
        before, names = prepared.rows_in, FieldNames(self.corpus_fields)
        for number, row in read_lines(self.corpus, prepared):
            names.see(row)
            try:
                # Rejected lines count too, blank ones do not, as where others number the rows of a file.
                passage = self._passage(row, prepared.rows_in - before - 1)
                known = prepared.passages.setdefault(passage["id"], passage)
                if known is not passage:
                    if known != passage:
                        raise RowError(f"id {passage['id']!r} was seen before, with another text")
                    prepared.merged += 1
            # `metadata_json` knows nothing of rows, so it raises a ValueError.
            except (RowError, ValueError) as error:
                prepared.set_aside(self.corpus, number, str(error), row)
        prepared.notes += names.notes(self.corpus)

    def _passage(self, row: Row, position: int) -> Row:
        passage_id, text = self._passage_id(row, position), titled_text(row)
        answer = optional_text(row, "answer") if "answer" in self.corpus_fields else None
        return passage_row(self.source, passage_id, text, optional_text(row, "title"), self._metadata(row), answer)

    def _metadata(self, row: Row) -> str | None:
        """The metadata of a row of the corpus as the payload keeps it.

        Raises:
            ValueError: nothing could be filtered by it.
        """
        return metadata_json(row.get("metadata"))

    def _passage_id(self, row: Row, position: int) -> str:
        """The id of a row of the corpus, which stands at a position, counted from 0."""
        return required_id(row, "id")

    @abstractmethod
    def _split_files(self, split: Split) -> list[Path]:
        """Paths that may hold a split; at most one of them may exist."""

    @property
    def _where(self) -> str:
        return f"source {self.source.dataset}: {self.source.path}"

    def _find_splits(self) -> dict[Split, Path]:
        if not self.path.is_dir():
            raise DataError(
                f"{self._where} {self.is_missing}; correct prepare.sources.path, or set format: documents of the "
                "source to read files as they are"
            )
        return self._splits_there(self._where)

    def _splits_there(self, where: str) -> dict[Split, Path]:
        """The split files that are there, at least one.

        Raises:
            DataError: there is none, or two of one split.
        """
        splits: dict[Split, Path] = {}
        for split in SPLITS:
            files = [path for path in self._split_files(split) if path.is_file()]
            if len(files) > 1:
                names = [path.name for path in files]
                raise DataError(f"{where}: {names} may all be the {split} split; leave one of them in the folder")
            if files:
                splits[split] = files[0]
        if not splits:
            raise DataError(
                f"{where} has neither {self.needs}; give it one, or set format: documents of the source to read files "
                "as they are (docs/documents.md)"
            )
        return splits

    def _find_corpus(self) -> Path | None:
        path = None if self.source.corpus is None else local_copy(self.source.corpus)
        if path is None and self.path.is_dir():
            own = (self.path / name for name in ("corpus.jsonl", "corpus.json"))
            path = next((file for file in own if file.is_file()), None)
        if path is None:
            return None
        if not path.is_file():
            raise DataError(f"source {self.source.dataset}: {path} is no file; correct prepare.sources.corpus")
        if path.stat().st_size == 0:
            raise DataError(f"source {self.source.dataset}: {path} is empty; a corpus needs at least one passage")
        return path


def titled_text(row: Row) -> str:
    """The text of a passage with its title before it, or its title alone.

    Raises:
        RowError: both are blank, or one is of another type.
    """
    title = optional_text(row, "title")
    name = next((key for key in TEXT_FIELDS if not _is_empty(row.get(key))), "text")
    if title is not None and _is_empty(row.get(name)):
        return title
    return titled(title, required_text(row, name))


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, str) and is_blank(value))
