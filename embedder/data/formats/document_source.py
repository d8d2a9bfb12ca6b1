"""Documents as people have them: a folder or one file, read a file at a time and cut into chunks, which are passages.

Questions may stand beside them, in files of the layout. A chunk's id is its file's path and the hash of its text, so
that a file that has changed gives new ids and vectors to those chunks alone that have changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from math import inf
from pathlib import Path

from embedder.config.prepare import Source
from embedder.config.tasks import TaskSpec
from embedder.data.documents.chunks import Chunk, Chunker
from embedder.data.documents.kinds import MAX_NAME, DocumentFile, document_files
from embedder.data.documents.reader_process import ReaderProcess
from embedder.data.documents.section import DocumentPart, UnreadableError
from embedder.data.documents.table_rows import TableColumns
from embedder.data.fields import Row, RowError, as_id
from embedder.data.formats.layout import LayoutReader
from embedder.data.metadata import metadata_json
from embedder.data.records import Split
from embedder.data.rows import Prepared, passage_row, read_lines, titled
from embedder.errors import DataError, shown
from embedder.hashing import content_id
from embedder.storage.fetched import local_copy

HASH_DIGITS = 12
"""Digits of a text's hash in the id of a chunk: enough to tell those of one file apart."""
BEGINNING = 16
"""Characters by which a quote is found; few passages hold those of a quote by chance."""
MAX_FIELD = 1_024
"""Characters of a value to filter by."""
NAMED_FILES = 3
"""Files that a note names, of those that cannot be read."""


class DocumentReader(LayoutReader):
    """Reads a folder of documents, or one."""

    needs = "train.jsonl, dev.jsonl nor test.jsonl"

    def __init__(self, source: Source, task: TaskSpec) -> None:
        """Find the files.

        Raises:
            DataError: there is no file that is read, or the task makes its passages itself.
        """
        if task.template is not None and task.template.continues:
            raise DataError(
                f"source {source.dataset}: task {source.task} cuts long texts itself; give rows with `text` "
                "(format: layout), or take another task, such as qa"
            )
        super().__init__(source, task)
        self._holding: dict[str, list[str]] = {}
        """Ids of the chunks that hold each text that a row quotes."""

    def _split_files(self, split: Split) -> list[Path]:
        return [] if self._queries_folder is None else [self._queries_folder / f"{split}.jsonl"]

    def _find_splits(self) -> dict[Split, Path]:
        """The files of questions, none where no folder is named."""
        self._queries_folder = None if self.source.queries is None else local_copy(self.source.queries)
        if self._queries_folder is None:
            return {}
        if not self._queries_folder.is_dir():
            raise DataError(
                f"source {self.source.dataset}: {self._queries_folder} is no folder; correct prepare.sources.queries"
            )
        return self._splits_there(f"source {self.source.dataset}: {self._queries_folder}")

    def _find_corpus(self) -> Path | None:
        left_out: Counter[str] = Counter()
        if next(self._files(left_out), None) is None:
            raise DataError(
                f"{self._where} holds no file of a kind that is read, but {_named(left_out) or 'nothing'}; name them "
                "by `files` of the source, or correct its path"
            )
        return self.path

    def _files(self, left_out: Counter[str]) -> Iterator[DocumentFile]:
        return document_files(self.path, self.source.files, left_out)

    @property
    def size(self) -> int:
        paths = [*self.splits.values(), *(file.path for file in self._files(Counter()) if file.fault is None)]
        return sum(path.stat().st_size for path in paths)

    def read_passages(self, prepared: Prepared) -> None:
        """Fill `prepared.passages` with the chunks of all files.

        Raises:
            DataError: no file gives a chunk.
        """
        renamed = 0
        for row in self.each_passage(prepared):
            known = prepared.passages.setdefault(row["id"], row)
            if known is not row and known["text"] != row["text"]:
                # Two tables count their rows from 1, or a column holds no ids after all.
                renamed += 1
                own = f"{row['id'][:MAX_NAME]}#{content_id(row['text'])[:HASH_DIGITS]}"
                row |= {"id": as_id(own, "id")}
                known = prepared.passages.setdefault(row["id"], row)
            prepared.merged += known is not row
        if renamed:
            prepared.notes.append(
                f"{renamed:,} rows have the id of an earlier row with another text; the hash of theirs is added to it"
            )
        if not prepared.passages and prepared.most_rows is None:
            raise DataError(f"{self._where} gives no text; add files that can be read{prepared.first_reason()}")

    def each_passage(self, prepared: Prepared) -> Iterator[Row]:
        """The chunks of all files, one file after the other; faults, counts and notes go to `prepared`."""
        chunker, most = Chunker(self.source, self.task), prepared.most_rows
        left_out: Counter[str] = Counter()
        kinds: Counter[str] = Counter()
        chunks, faults = 0, len(prepared.rejected)
        end = prepared.rows_in + (inf if most is None else most)
        source = self.source
        columns = TableColumns(
            None if source.text_columns is None else tuple(source.text_columns), source.title_column, source.id_column
        )
        with ReaderProcess(columns, source.encoding) as reader:
            for file in self._files(left_out):
                kinds[file.kind] += 1
                for row in self._file_passages(file, reader, chunker, prepared, end):
                    yield row
                    chunks += 1
                if prepared.rows_in >= end:
                    return
        prepared.notes.append(
            f"{kinds.total():,} files ({_named(kinds)}) gave {chunks:,} chunks of at most {source.chunk_tokens} tokens"
        )
        if left_out:
            prepared.notes.append(f"{left_out.total():,} files of other kinds left out: {_named(left_out)}")
        if lost := {row.file: row.reason for row in prepared.rejected[faults:] if row.line == 0}:
            named = "; ".join(f"{file}: {reason}" for file, reason in islice(lost.items(), NAMED_FILES))
            more = f"; the others are in prepared/rejected/{source.dataset}.json" if len(lost) > NAMED_FILES else ""
            prepared.notes.append(f"files that cannot be read, or not to their end: {len(lost):,}; {named}{more}")

    def _file_passages(
        self, file: DocumentFile, reader: ReaderProcess, chunker: Chunker, prepared: Prepared, end: float
    ) -> Iterator[Row]:
        """The chunks of one file; the number of rows is not to grow beyond `end`."""
        position, is_empty = 0, True
        try:
            if file.fault:
                raise UnreadableError(file.fault)
            for section in reader.sections(file):
                if prepared.rows_in >= end:
                    return
                is_empty = False
                if section.fault:
                    _set_aside(prepared, file, section.line, section.fault, section.text)
                    continue
                chunks = list(chunker.chunks(section, file.kind == "markdown"))
                for chunk in chunks:
                    try:
                        row = self._chunk_row(file, section, chunk, position, alone=len(chunks) == 1)
                    # `metadata_json` knows nothing of rows, so it raises a ValueError.
                    except (RowError, ValueError) as error:
                        _set_aside(prepared, file, section.line, str(error), chunk.text)
                        continue
                    prepared.rows_in += 1
                    position += 1
                    yield row
            if is_empty:
                raise UnreadableError("no text in it")
        except UnreadableError as error:
            _set_aside(prepared, file, 0, str(error), "")

    def _chunk_row(self, file: DocumentFile, section: DocumentPart, chunk: Chunk, position: int, *, alone: bool) -> Row:
        """A chunk as a passage, with its place to filter by: file, heading, page and position."""
        text = titled(chunk.title, chunk.text)
        named = section.row_id or file.name
        passage_id = named if section.row_id and alone else f"{named}#{content_id(text)[:HASH_DIGITS]}"
        place = {
            "file": file.name,
            "heading": " > ".join(section.headings)[:MAX_FIELD] or None,
            "page": chunk.page,
            "position": position,
        }
        known = {name: value for name, value in place.items() if value is not None}
        metadata = metadata_json({**section.metadata, **known})
        return passage_row(self.source, as_id(passage_id, "id"), text, chunk.title or None, metadata)

    def read_queries(self, prepared: Prepared) -> dict[Split, list[list[Row]]]:
        """The same, with the texts that rows quote sought in all chunks at once."""
        quotes: set[str] = set()
        aside = Prepared(most_rows=prepared.most_rows)
        for path in self.splits.values():
            for _, row in read_lines(path, aside):
                named = [row.get(side) for side in ("pos", "neg")]
                texts = (text for side in named if isinstance(side, list) for text in side if isinstance(text, str))
                quotes.update(map(_unspaced, texts))
        self._holding = holding_ids(quotes, ((row["id"], row["text"]) for row in prepared.passages.values()))
        return super().read_queries(prepared)

    def _find(self, texts: list[str], prepared: Prepared) -> list[str]:
        """Ids of the chunks that hold a quoted text; white space counts as nothing.

        Raises:
            RowError: none does.
        """
        found: list[str] = []
        for text in texts:
            holding = self._holding.get(_unspaced(text), [])
            if not holding and prepared.most_rows is None:
                raise RowError(f"no chunk of the documents holds the text {shown(text)}; quote a shorter part of one")
            # Of documents of which only the beginning was read any text may stand further down.
            found += holding or self._add_passages([text], prepared)
        return found


def holding_ids(quotes: Iterable[str], passages: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """The ids of the passages that hold each quote, all without white space; time does not grow with the quotes."""
    by_beginning: dict[str, list[str]] = {}
    for quote in set(quotes) - {""}:
        by_beginning.setdefault(quote[:BEGINNING], []).append(quote)
    lengths = sorted({len(beginning) for beginning in by_beginning})
    found: dict[str, list[str]] = {}
    for passage_id, text in passages if lengths else ():
        whole = _unspaced(text)
        held: dict[str, None] = {}
        for length in lengths:
            for at in range(len(whole) - length + 1):
                for quote in by_beginning.get(whole[at : at + length], ()):
                    if whole.startswith(quote, at):
                        held[quote] = None
        for quote in held:
            found.setdefault(quote, []).append(passage_id)
    return found


def _unspaced(text: str) -> str:
    return "".join(text.split())


def _set_aside(prepared: Prepared, file: DocumentFile, line: int, reason: str, text: str) -> None:
    """Reject a file or a row of one, as one row in."""
    # Not by `count`, for which a file of which nothing is left stops the job: of many documents some are damaged.
    prepared.rows_in += 1
    prepared.set_aside(file.path, line, reason, text)


def _named(counts: Counter[str]) -> str:
    """The most frequent names with their numbers."""
    parts = [f"{count:,} {name}" for name, count in counts.most_common(8)]
    return ", ".join([*parts, "others"] if len(counts) > len(parts) else parts)
