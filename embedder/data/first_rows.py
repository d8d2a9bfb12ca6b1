"""Reads the first rows of a source as `prepare` would, so that a run that cannot succeed is refused before its work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from embedder.config.prepare import Source
from embedder.config.tasks import TaskSpec
from embedder.data.dataset import open_source
from embedder.data.fields import Row
from embedder.data.formats.reader import SourceReader
from embedder.data.records import Split
from embedder.data.rows import Prepared
from embedder.errors import DataError

Lines = dict[Split, list[list[Row]]]
"""The checked queries of each line, by split."""
MOST_ROWS = (100, 10_000)
"""Rows of each file that are read, and how many before a file is refused of which no row was of use until then."""


SAMPLE = 64
"""Prompts of long texts that are kept to be measured."""


@dataclass(frozen=True)
class ContinuedText:
    """A query that its output continues, with its longest candidate: what the LLM reads at once."""

    query: str
    passage: str
    output: str


@dataclass(frozen=True)
class FirstRows:
    """The facts that the first rows of a source tell."""

    splits: frozenset[Split]
    """Splits that will have queries, a dev split that is cut from train included."""
    learns: bool
    """True: the task's loss can learn from a training row among them."""
    notes: list[str] = field(default_factory=list)
    """Lines for the user."""
    continued: list[ContinuedText] = field(default_factory=list)
    """Some of the queries that their outputs continue and that have their own candidates, such as long texts."""


class _EveryPassage(dict[str, Row]):
    """Stands for a corpus of which only the first rows were read: it holds any id."""

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: str) -> Row:
        return {"id": key, "text": key, "answer": None}


def read_first_rows(source: Source, task: TaskSpec) -> FirstRows:
    """The first rows of each file of a source.

    Raises:
        DataError: a file is missing; or none of the first rows of corpus or train can be used: with the first reason,
            and with the settings under which they can, where there are some.
    """
    reader = open_source(source, task)
    corpus = Prepared(most_rows=MOST_ROWS[0])
    reader.read_passages(corpus)
    if reader.corpus is not None and not corpus.passages:
        corpus = Prepared(most_rows=MOST_ROWS[1])
        reader.read_passages(corpus)
        if not corpus.passages:
            raise DataError(_refusal(source, corpus))
    # BEIR's queries and judgements, and rows of several datasets in one file, cannot be judged by the first ones.
    if source.format == "beir" or source.teacher_scores:
        splits = _with_queries(source, set(reader.splits))
        return FirstRows(splits, "train" in splits, _notes(source, corpus))
    prepared, lines = _read_until_useful(reader, task, corpus)
    learns = _learns(task, lines)
    rejected = [row for row in prepared.rejected if row.file == str(reader.splits.get("train"))]
    if not learns and rejected and not lines["train"]:
        raise DataError(_refusal(source, Prepared(rejected=rejected)) + _remedy(source, task))
    notes = _notes(source, corpus, prepared)
    if not learns and lines.get("train"):
        notes.append(
            f"{source.dataset}: none of the first {len(lines['train']):,} training rows names a known positive, from "
            f"which alone tasks.{source.task}.loss 'contrastive' learns; give the rows pos_ids, or the task a reward"
        )
    splits = _with_queries(source, {split for split in lines if lines[split]})
    return FirstRows(splits, learns and "train" in splits, notes, _continued(task, lines, prepared.passages))


def _continued(task: TaskSpec, lines: Lines, passages: Mapping[str, Row]) -> list[ContinuedText]:
    if task.template is None or not task.template.continues:
        return []
    rows = [row for split in lines.values() for queries in split for row in queries if row["pool_ids"]]
    sample = []
    # Evenly over all of them, because neighbours are of one document.
    for i in range(min(SAMPLE, len(rows))):
        row = rows[i * len(rows) // min(SAMPLE, len(rows))]
        texts = [passages[each]["text"] for each in row["pool_ids"]]
        sample += [ContinuedText(row["query"], max(texts, key=len), answer) for answer in row["answers"][:1]]
    return sample


def _read_until_useful(reader: SourceReader, task: TaskSpec, corpus: Prepared) -> tuple[Prepared, Lines]:
    """The first queries; more of them where there are training rows and none of the first is of use."""
    for most in MOST_ROWS:
        # A passage that a row names may be further down in the corpus, so every id is taken for known ...
        passages = dict(corpus.passages) if reader.corpus is None else _EveryPassage()
        prepared, lines = _read_queries(reader, passages, most)
        if _learns(task, lines) or "train" not in reader.splits:
            break
        # ... but a row may be refused just because an id is known: then what was read is taken for all.
        narrow = _read_queries(reader, dict(corpus.passages), most)
        if _learns(task, narrow[1]):
            return narrow
    return prepared, lines


def _read_queries(reader: SourceReader, passages: dict[str, Row], most: int) -> tuple[Prepared, Lines]:
    prepared = Prepared(passages=passages, most_rows=most)
    return prepared, reader.read_queries(prepared)


def _learns(task: TaskSpec, lines: Lines) -> bool:
    rows = (query for queries in lines.get("train", []) for query in queries)
    return any(task.loss != "contrastive" or row["positive_ids"] for row in rows)


def _with_queries(source: Source, splits: set[Split]) -> frozenset[Split]:
    """The splits that are left of those with rows when limits and the cut of a dev split are applied."""
    cut: set[Split] = {"dev"} if source.dev_queries is not None and "train" in splits else set()
    return frozenset(split for split in splits | cut if source.query_limits[split] != 0)


def _notes(source: Source, *read: Prepared) -> list[str]:
    rejected = [row for prepared in read for row in prepared.rejected]
    if not rejected:
        return []
    rows = sum(prepared.rows_in for prepared in read)
    first = rejected[0]
    return [
        f"{source.dataset}: {len(rejected):,} of the first {rows:,} rows would be rejected; first "
        f"{first.file}:{first.line}: {first.reason}"
    ]


def _refusal(source: Source, prepared: Prepared) -> str:
    if not prepared.rejected:
        return f"source {source.dataset}: {source.path} has a corpus of blank lines alone; it needs a passage"
    first = prepared.rejected[0]
    return (
        f"source {source.dataset}: all of the first {len(prepared.rejected):,} rows of {first.file} would be rejected; "
        f"first line {first.line}: {first.reason}"
    )


def _remedy(source: Source, task: TaskSpec) -> str:
    """The settings with which the rows can be used, as the end of a message; empty where there are none."""
    labelled = task.model_copy(update={"reward": "none", "loss": "contrastive"})
    if task.reward == "none":
        return ""
    lines = _read_queries(open_source(source, labelled), _EveryPassage(), MOST_ROWS[0])[1]
    if not _learns(labelled, lines):
        return ""
    return (
        f"; to learn from their known positives alone set tasks.{source.task}.reward: none and "
        f"tasks.{source.task}.loss: contrastive"
    )
