"""What lies at a path of data: its format, its task, and how much of it there is, from the first rows of each file."""

from __future__ import annotations

import gzip
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Final, Literal

from embedder.config.tasks import BUILTIN_TASKS
from embedder.data.documents.kinds import Kind, document_files, is_entered, printed_name
from embedder.data.fields import Row, RowError
from embedder.data.json_lines import parse_object, read_text_lines
from embedder.errors import DataError

Format = Literal["layout", "beir", "reference", "documents"]
DOCUMENTS: Final = "documents"
LOOKED_AT = 200
"""Rows of a file."""
MOST_FOLDERS = 1_000
"""Folders below the one that is given."""
MOST_NAME = 120
LARGEST_COUNTED = 2**26
"""Bytes of a compressed file that are read to count its rows."""
NAME = re.compile(r"[^A-Za-z0-9_.-]+")
PROSE: frozenset[Kind] = frozenset({"text", "markdown", "rst", "html", "pdf"})
"""Kinds of files that no source of rows consists of."""


@dataclass(frozen=True)
class FoundData:
    """One source."""

    path: Path
    format: Format
    dataset: str
    """Its name in the run."""
    task: str
    why: str
    """The fields that speak for the task."""
    train_rows: int
    """About so many."""
    has_test: bool
    has_answers: bool
    """Rows have answers, which a reward needs."""
    has_positives: bool
    """Rows name passages that are right."""
    queries: Path | None = None
    """Of documents: the folder of their questions."""

    @property
    def has_rows(self) -> bool:
        """Tell whether there are queries to learn from or to measure."""
        return bool(self.train_rows) or self.has_test

    @property
    def line(self) -> str:
        """Tell the user what was found."""
        return f"{self.path}: format {self.format}, task {self.task} ({self.why}){self.size}"

    @property
    def size(self) -> str:
        """How much there is to learn from and to measure, as the end of a line; empty for documents alone."""
        test = "with test queries" if self.has_test else "without test queries"
        train = f"about {self.train_rows:,}" if self.train_rows else "no"
        return f", {train} training rows, {test}" if self.has_rows else ""


def look_below(path: Path, task: str | None, questions: Path | None = None) -> list[FoundData]:
    """What lies at a path, or in the folders below it; `task` is what the user says it is.

    `questions`: a folder of questions about the documents at the path.

    Raises:
        DataError: it is nothing that can be read, with what is needed.
    """
    try:
        str(path).encode()
        is_there = path.exists()
    except UnicodeEncodeError as error:
        raise DataError(f"{printed_name(str(path))}: its name is not UTF-8; rename it") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give the folder of your data") from error
    if not is_there:
        raise DataError(f"{path}: no such folder or file; give the folder of your data")
    if questions is not None:
        return [_questioned(path, task, questions)]
    if _format(path) is not None:
        return [look_at(path, task)]
    below = islice(_folders(path), MOST_FOLDERS)
    found = [look_at(each, task) for each in below if _format(each) is not None]
    if not found:
        found = [_documents(path, task)]
    return found


def _folders(path: Path) -> Iterator[Path]:
    """The folders in a folder, then those in these; not those that hold what nobody wrote."""
    above = [path] if path.is_dir() else []
    for _ in range(2):
        try:
            above = [
                each for folder in above for each in sorted(folder.iterdir()) if each.is_dir() and is_entered(each)
            ]
        except OSError as error:
            raise DataError(
                f"{error.filename}: cannot be read ({error.strerror}); give this user the right to"
            ) from error
        yield from above


def documents_beside(path: Path, found: list[FoundData]) -> str:
    """Tell of documents at a path of which nothing found is a part; empty where there are none."""
    if path.is_file() or any(each.format == DOCUMENTS for each in found):
        return ""
    sources = [each.path for each in found if each.path != path]
    files = (file.path for file in document_files(path, None, Counter()) if file.kind in PROSE)
    beside = [file for file in files if not any(file.is_relative_to(source) for source in sources)]
    if not beside:
        return ""
    return (
        f"{path}: {len(beside):,} documents are left out, such as {beside[0].relative_to(path)}, since rows of "
        f"questions were found; to search the documents: llm-embedder init DOCUMENTS --questions {found[0].path}"
    )


def _documents(path: Path, task: str | None) -> FoundData:
    if next(document_files(path, None, Counter()), None) is None:
        raise DataError(f"{path}: holds {_contents(path)}; {NEEDED}")
    why = "documents without questions"
    return FoundData(path, DOCUMENTS, _name(path), task or "qa", why, 0, False, False, False)


def _questioned(path: Path, task: str | None, questions: Path) -> FoundData:
    """Documents with a folder of questions about them."""
    if not questions.is_dir() or _format(questions) != "layout":
        raise DataError(f"--questions {questions}: give a folder with train.jsonl or test.jsonl (docs/documents.md)")
    documents, rows = _documents(path, task), look_at(questions, task)
    return replace(rows, path=path, format=DOCUMENTS, dataset=documents.dataset, queries=questions)


def _name(path: Path) -> str:
    return NAME.sub("-", path.name if path.is_dir() else path.stem).strip("-._")[:MOST_NAME] or "data"


def look_at(path: Path, task: str | None) -> FoundData:
    """Find out what lies at a path of a known format.

    Raises:
        DataError: it is of none.
    """
    kind = _format(path)
    if kind is None:
        raise DataError(f"{path}: holds {_contents(path)}; {NEEDED}")
    train, test = _split_files(path, kind)
    asked = train or test
    rows = list(islice(_rows(asked), LOOKED_AT)) if asked is not None and kind != "beir" else []
    found, why = (task, "as you said") if task else _task_of(rows, path, kind)
    return FoundData(
        path=path,
        format=kind,
        dataset=_name(path),
        task=found,
        why=why,
        train_rows=_about_rows(train) if train is not None else 0,
        has_test=test is not None,
        has_answers=any(row.get("answers") or row.get("text") or row.get("choices") for row in rows),
        has_positives=kind == "beir" or any(row.get(key) for row in rows for key in ("pos", "pos_ids", "pos_index")),
    )


def _format(path: Path) -> Format | None:
    """The format of a folder or file; None for one that is no source by itself."""
    if path.is_dir():
        if (path / "queries.jsonl").is_file() and (path / "qrels").is_dir():
            return "beir"
        if any((path / f"{split}.jsonl").is_file() for split in ("train", "test")):
            rows = list(islice(_rows(path / "train.jsonl"), 1)) if (path / "train.jsonl").is_file() else []
            return "reference" if any("pos_index" in row or "teacher_scores" in row for row in rows) else "layout"
    elif path.name.endswith((".jsonl", ".json", ".jsonl.gz", ".json.gz")):
        # Else it is a table or a description of tools, which are documents.
        try:
            return "reference" if any("query" in row for row in islice(_rows(path), 1)) else None
        except DataError:  # it is in UTF-16, which documents may be
            return None
    return None


NEEDED = (
    "give a folder with corpus.jsonl and train.jsonl (docs/data.md), a BEIR folder (corpus.jsonl, queries.jsonl, "
    "qrels/), a JSON Lines file of rows with query and answers or pos, or documents (docs/documents.md)"
)


def _contents(path: Path) -> str:
    if path.is_file():
        return f"a file of the kind {path.suffix or '(no ending)'}"
    names = sorted(each.name + ("/" if each.is_dir() else "") for each in islice(path.iterdir(), 1000))
    return f"{', '.join(names[:5])}{' ...' if len(names) > 5 else ''}" if names else "nothing"


def _split_files(path: Path, kind: Format) -> tuple[Path | None, Path | None]:
    """The file of training rows, and the one to test on."""
    if path.is_file():
        return path, None
    folder, ending = (path / "qrels", "tsv") if kind == "beir" else (path, "jsonl")
    train, test = folder / f"train.{ending}", folder / f"test.{ending}"
    return train if train.is_file() else None, test if test.is_file() else None


def _rows(path: Path) -> Iterator[Row]:
    """The objects of a file, without the lines that are none: the job `prepare` tells of those."""
    for line in read_text_lines(path):
        try:
            yield parse_object(line.text)
        except RowError:
            continue


def _task_of(rows: list[Row], path: Path, kind: Format) -> tuple[str, str]:
    """The task that the fields of the rows speak for, and which these are."""
    for folder in (path, path.parent):
        if folder.name in BUILTIN_TASKS:
            return folder.name, "its folder has the task's name"
    named = {str(row["task"]) for row in rows if row.get("task")}
    if len(named) == 1 and named <= BUILTIN_TASKS.keys():
        return named.pop(), "rows name it"
    fields = {key for row in rows for key, value in row.items() if value}
    if "history" in fields:
        return "chat", "rows have `history`"
    if "text" in fields and "query" not in fields:
        return "lrlm", "rows are whole texts"
    if "options" in fields or (path / "labels.json").is_file():
        corpus = path / "corpus.jsonl"
        examples = corpus.is_file() and any(row.get("answer") for row in islice(_rows(corpus), LOOKED_AT))
        return ("icl", "a choice of labels, and worked examples") if examples else ("qa", "a choice of options")
    if "conversation_id" in fields:
        return "convsearch", "rows have `conversation_id`"
    if kind == "beir" or "answers" not in fields:
        return "qa", "queries with right passages"
    return "qa", "queries with answers"


def _about_rows(path: Path) -> int:
    """Rows of a file, counted in its beginning."""
    size = path.stat().st_size
    is_packed = path.suffix == ".gz"
    with gzip.open(path) if is_packed else path.open("rb") as file:
        head = file.read(LARGEST_COUNTED if is_packed else 2**20)
    # What lies behind so many bytes of a compressed file is not known.
    size = len(head) if is_packed else size
    lines = head.count(b"\n") + (not head.endswith(b"\n"))
    return lines if size <= len(head) else round(lines * size / max(len(head), 1))
