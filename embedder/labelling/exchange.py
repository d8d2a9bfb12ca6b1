"""Rewards made elsewhere in, labelled groups out: JSON Lines as FlagEmbedding's `research/llm_embedder` reads them.

A line holds `query`, `pos`, `neg` (or `history`, whose texts are then the candidates), `teacher_scores` (one a
candidate: pos, then neg; or as the history), `task`, and optionally `dataset`, `query_id`, `answers`, `gold_history`,
and `pos_index` and `neg_index` (ids of the candidates; `pos_ids` and `neg_ids` mean the same and come first). A file
whose name ends in `.gz` is compressed.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import BinaryIO, NamedTuple

from embedder.config.tasks import TaskSpec
from embedder.data.ledger import Ledger
from embedder.data.records import LABELLED, group_id
from embedder.data.rows import (
    KEPT_CHARACTERS,
    Rejected,
    Row,
    RowError,
    gold_positions,
    optional_texts,
    parse_object,
    query_id_of,
    required_text,
)
from embedder.errors import DataError, LabelError
from embedder.hashing import content_id, file_sha256
from embedder.storage.object_store import AnyPath, replacing

MAX_LINE_BYTES = 16 * 2**20
"""A longer line is rejected and never held in memory."""
FLOAT32_MAX = 3.4028234663852886e38
"""Rewards are stored as float32; a larger score would become infinite."""


@dataclass(frozen=True)
class Imported:
    """One usable line of an import."""

    line: int
    row: Row
    """A row of records.LABELLED without its `label_fingerprint`."""
    repeated: int
    """Candidates left out, with their scores, because their text repeats an earlier candidate."""


@dataclass(frozen=True)
class ImportSummary:
    """What became of the lines of an import: `rows_in` = `imported` + `imported_before` + `rejected`."""

    rows_in: int
    imported: int
    """Committed by this run."""
    imported_before: int
    """Found committed by an earlier run."""
    rejected: int
    first_rejected: Rejected | None
    unrewarded: int
    """Usable rows without scores, of tasks whose loss needs none; they count in `imported` or `imported_before`."""
    repeated_candidates: int
    """Left out of usable rows because their text repeats an earlier candidate."""


@dataclass(frozen=True)
class ExportSummary:
    """What was written: `rows` = `rewarded` + `failed` + `plain`; every row given is written."""

    rows: int
    rewarded: int
    failed: int
    """Rows with an `error`, written without `teacher_scores`."""
    plain: int
    """Rows of tasks without a reward, written without `teacher_scores`."""


def fingerprint_of_import(path: AnyPath) -> str:
    """16 hexadecimal digits that depend on what an import makes: the file, and the dataset its name stands for.

    Raises:
        DataError: there is no such file, or it is unreadable.
    """
    _check_file(path)
    try:
        return content_id("imported", dataset_of(path), file_sha256(path))[:16]
    except OSError as error:
        raise DataError(f"{path}: not readable ({error}); copy the file again") from error


def dataset_of(path: AnyPath) -> str:
    """The dataset of rows that name none: the file's name without .jsonl, .json and .gz."""
    return re.sub(r"(?<=.)(\.jsonl?)?(\.gz)?$", "", path.name)


def import_into(
    ledger: Ledger,
    path: AnyPath,
    tasks: dict[str, TaskSpec],
    fingerprint: str,
    block_rows: int,
    rejected_folder: AnyPath,
) -> ImportSummary:
    """Commit the rows of a file that no block holds yet, `block_rows` at a time, in the order of the file.

    Rejected rows are written to `rejected_folder/<file name>.jsonl` (file, line, reason, row), which is removed where
    there are none. Memory holds one block, and an id for each row of the file and of the ledger.

    Raises:
        DataError: the file is missing, unreadable, empty, or has no usable row.
        LabelError: the counts do not add up.
    """
    done = ledger.done()
    counts: Counter[str] = Counter()
    first_rejected: Rejected | None = None
    block: list[Row] = []
    lines_read = 0
    rejected_path = rejected_folder / f"{path.name}.jsonl"
    with replacing(rejected_path) as rejected_file:
        for entry in read_teacher_scores(path, tasks):
            lines_read = entry.line
            if isinstance(entry, Rejected):
                first_rejected = first_rejected or entry
                counts["rejected"] += 1
                rejected_file.write(_json_line(asdict(entry)))
                continue
            counts["unrewarded"] += entry.row["rewards"] is None
            counts["repeated"] += entry.repeated
            if entry.row["row_id"] in done:
                counts["before"] += 1
                continue
            block.append({**entry.row, "label_fingerprint": fingerprint})
            if len(block) == block_rows:
                ledger.commit(block)
                counts["imported"] += len(block)
                block = []
    if block:
        ledger.commit(block)
        counts["imported"] += len(block)
    if not counts["rejected"]:
        rejected_path.unlink()
    summary = ImportSummary(
        lines_read,
        counts["imported"],
        counts["before"],
        counts["rejected"],
        first_rejected,
        counts["unrewarded"],
        counts["repeated"],
    )
    _check_summary(summary, path)
    return summary


def _check_summary(summary: ImportSummary, path: AnyPath) -> None:
    """Refuse an import that lost rows or has none."""
    usable = summary.imported + summary.imported_before
    if summary.rows_in != usable + summary.rejected:
        raise LabelError(f"{path}: {summary.rows_in} rows in, but {summary}; this is a defect of the reader")
    first = summary.first_rejected
    if not usable:
        reason = f"line {first.line}: {first.reason}" if first else "it is empty"
        raise DataError(f"{path}: no usable row ({reason}); label.imported needs JSON Lines with teacher_scores")


def read_teacher_scores(path: AnyPath, tasks: dict[str, TaskSpec]) -> Iterator[Imported | Rejected]:
    """One entry a line, in the order of the file: a labelled row, or why there is none.

    Candidates stand in the file's order: pos, then neg; or the history. A candidate whose text repeats an earlier one
    is left out together with its score. A row without scores is usable only where the task's loss needs none.

    Raises:
        DataError: the file is missing or unreadable.
    """
    seen: set[str] = set()
    for number, line in _lines(path):
        try:
            row, repeated = _labelled(_parse(line), dataset_of(path), tasks)
            key = content_id(row["task"], row["dataset"], row["query_id"])
            if key in seen:
                raise RowError(f"query_id {row['query_id']!r} of dataset {row['dataset']!r} was seen before")
        except RowError as error:
            yield Rejected(str(path), number, str(error)[:KEPT_CHARACTERS], _head(line))
            continue
        seen.add(key)
        yield Imported(number, row, repeated)


def _check_file(path: AnyPath) -> None:
    if not path.is_file():
        raise DataError(f"{path}: no such file; correct label.imported")


def _lines(path: AnyPath) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their numbers from 1; one over MAX_LINE_BYTES is cut to one byte more than that."""
    _check_file(path)
    number = 0
    with path.open("rb") as stored, gzip.open(stored) if path.suffix == ".gz" else nullcontext(stored) as file:
        while line := _next_line(file, f"{path}:{number + 1}"):
            number += 1
            yield number, line


def _next_line(file: BinaryIO | gzip.GzipFile, place: str) -> bytes:
    """The next line with its end; empty at the end of the file."""
    try:
        line = piece = file.readline(MAX_LINE_BYTES + 1)
        while len(piece) > MAX_LINE_BYTES and not piece.endswith(b"\n"):
            piece = file.readline(MAX_LINE_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{place}: not readable ({error}); copy the file again") from error
    return line


def _head(line: bytes) -> str:
    """The characters of a rejected line that are kept; one takes at most 4 bytes."""
    return line[: 4 * KEPT_CHARACTERS].decode("utf-8", errors="replace")[:KEPT_CHARACTERS]


def _parse(line: bytes) -> Row:
    if len(line) > MAX_LINE_BYTES:
        raise RowError(f"a line of more than {MAX_LINE_BYTES:,} bytes")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowError(f"not UTF-8: {error}") from error
    return parse_object(text)


class _Candidates(NamedTuple):
    """Candidates of a row in the file's order."""

    ids: list[str]
    texts: list[str]
    known: set[str]
    """Texts of the known positives."""
    fields: str
    """The fields they stand in with their lengths, for messages."""


def _labelled(row: Row, dataset: str, tasks: dict[str, TaskSpec]) -> tuple[Row, int]:
    """The labelled row of a source row, and how many repeated candidates were left out.

    Raises:
        RowError: a field is missing or wrong.
    """
    task = required_text(row, "task")
    if task not in tasks:
        raise RowError(f"task {task!r} is unknown; known are {sorted(tasks)}")
    if row.get("dataset") is not None:
        dataset = required_text(row, "dataset")
    query = required_text(row, "query")
    candidates = _candidates(row)
    scores = _scores(row, candidates)
    if scores is None and tasks[task].loss != "contrastive":
        raise RowError(f"no teacher_scores, but tasks.{task}.loss is {tasks[task].loss!r} and needs them")
    kept = _distinct(candidates)
    labelled: Row = {
        **dict.fromkeys(LABELLED.names),
        "task": task,
        "dataset": dataset,
        "query_id": query_id_of(row, dataset, query),
        "query": query,
        "answers": optional_texts(row, "answers"),
        "candidate_ids": [candidates.ids[i] for i in kept],
        "candidate_texts": [candidates.texts[i] for i in kept],
        "relevance": [int(candidates.texts[i] in candidates.known) for i in kept],
        "rewards": scores and [scores[i] for i in kept],
        "reward": "imported" if scores else "none",
    }
    return {**labelled, "row_id": group_id(labelled)}, len(candidates.texts) - len(kept)


def _candidates(row: Row) -> _Candidates:
    """History before pos and neg, as the reference and the reader of `prepare` have it.

    An id is the one the row gives, or else the hash of the text, as `prepare` makes it.
    """
    history, positives, negatives = (optional_texts(row, key) for key in ("history", "pos", "neg"))
    if history:
        known = {history[i] for i in gold_positions(row, len(history))} | set(positives)
        return _Candidates([content_id(text) for text in history], history, known, f"history {len(history)}")
    if not positives and not negatives:
        raise RowError("no candidates; pos, neg or history is needed")
    ids = _side_ids(row, "pos", positives) + _side_ids(row, "neg", negatives)
    return _Candidates(ids, positives + negatives, set(positives), f"pos {len(positives)}, neg {len(negatives)}")


def _side_ids(row: Row, side: str, texts: list[str]) -> list[str]:
    """Ids of the texts of `pos` or `neg`."""
    key = next((key for key in (f"{side}_ids", f"{side}_index") if row.get(key) is not None), None)
    if key is None:
        return [content_id(text) for text in texts]
    given = row[key]
    if not isinstance(given, list) or len(given) != len(texts):
        length = len(given) if isinstance(given, list) else repr(given)[:100]
        raise RowError(f"{key} does not fit: {length} for {len(texts)} texts of {side}; a list of as many is needed")
    for i, value in enumerate(given):
        if isinstance(value, bool) or not isinstance(value, (int, str)) or not str(value).strip():
            raise RowError(f"{key}[{i}] is {value!r:.100}; a text or whole number is needed")
    return [str(value) for value in given]


def _scores(row: Row, candidates: _Candidates) -> list[float] | None:
    """One finite score a candidate; None where the row has none."""
    given = row.get("teacher_scores")
    if given is None:
        return None
    if not isinstance(given, list):
        raise RowError(f"teacher_scores is {given!r:.100}; a list of numbers is needed")
    if len(given) != len(candidates.texts):
        raise RowError(
            f"teacher_scores has {len(given)} entries for {len(candidates.texts)} candidates ({candidates.fields})"
        )
    for i, value in enumerate(given):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= FLOAT32_MAX:
            raise RowError(f"teacher_scores[{i}] is {value!r:.100}; a finite number of at most 3.4e38 is needed")
    return [float(value) for value in given]


def _distinct(candidates: _Candidates) -> list[int]:
    """Positions of the candidates whose text repeats no earlier one: copies would repel each other in the losses.

    Raises:
        RowError: one id stands for two texts.
    """
    first: dict[str, int] = {}
    texts: dict[str, str] = {}
    for i, (candidate_id, text) in enumerate(zip(candidates.ids, candidates.texts, strict=True)):
        if texts.setdefault(candidate_id, text) != text:
            raise RowError(f"candidate id {candidate_id!r} stands for two texts")
        first.setdefault(text, i)
    return list(first.values())


def write_reference(rows: Iterable[Row], path: AnyPath) -> ExportSummary:
    """Write labelled groups, one a line, and put the file in place when all are written.

    Candidates are ordered known positives first, otherwise as in the group. Every row is written; one without rewards
    has no `teacher_scores`, which its summary counts.

    Raises:
        DataError: a reward is not finite, or there is not one for each candidate.
    """
    counts: Counter[str] = Counter()
    with replacing(path) as file:
        packed = gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) if path.suffix == ".gz" else None
        with packed or nullcontext(file) as sink:
            for row in rows:
                try:
                    sink.write(_json_line(_reference_row(row)))
                except ValueError as error:
                    raise DataError(
                        f"{path}: group {row['query_id']!r} of dataset {row['dataset']!r} cannot be written ({error}); "
                        "label it again"
                    ) from error
                kind = "rewarded" if row["rewards"] is not None else "failed" if row["error"] else "plain"
                counts[kind] += 1
    return ExportSummary(counts.total(), counts["rewarded"], counts["failed"], counts["plain"])


def _reference_row(group: Row) -> Row:
    """The reference's row of a labelled group."""
    known = [i for i, relevance in enumerate(group["relevance"]) if relevance]
    others = [i for i, relevance in enumerate(group["relevance"]) if not relevance]
    ids, texts, rewards = group["candidate_ids"], group["candidate_texts"], group["rewards"]
    row = {
        **{name: group[name] for name in ("task", "dataset", "query_id", "query", "answers")},
        "pos": [texts[i] for i in known],
        "neg": [texts[i] for i in others],
        "pos_index": [ids[i] for i in known],
        "neg_index": [ids[i] for i in others],
    }
    if rewards is None:
        return row
    if len(rewards) != len(texts):
        raise ValueError(f"{len(rewards)} rewards for {len(texts)} candidates")
    return {**row, "teacher_scores": [rewards[i] for i in known + others]}


def _json_line(value: Row) -> bytes:
    """One line of JSON; ValueError for a number or text that JSON and UTF-8 cannot hold."""
    return (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode()
