"""The data layout: a folder with corpus.jsonl and train.jsonl, dev.jsonl, test.jsonl.

A row that brings its own `history` takes its candidates from there; a row that is a whole `text` is cut into chunks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar

from embedder.config.prepare import Source
from embedder.config.tasks import TaskSpec
from embedder.data.fields import (
    Row,
    RowError,
    gold_positions,
    optional_id,
    optional_ids,
    optional_scores,
    optional_text,
    optional_texts,
    options_of,
    refuse_other_names,
    required_text,
)
from embedder.data.formats.long_texts import LongTexts
from embedder.data.formats.merging import FACTS, contradicting_fact, merge_line
from embedder.data.formats.reader import SourceReader
from embedder.data.json_lines import read_json
from embedder.data.records import Split
from embedder.data.rows import FieldNames, Prepared, passage_row, query_row, read_lines
from embedder.errors import DataError
from embedder.hashing import content_id

NOTES = {
    "ignored": "teacher_scores of {} rows not used; `label` gives its own rewards",
    "repeated": "{} candidates left out with their scores, since they repeat an earlier text of their row",
    "elsewhere": "{} rows left out, since they name another dataset",
    "strangers": "{} rows have a `pos` that is not in their history, and is not used",
    "both": "{} passages are positive and negative in one row; they count as positive",
    "added": "{} texts of rows are not in the corpus and were added to it",
}
"""Notes about the rows of a file, made where there are any such rows."""
KNOWN = frozenset({"query", "query_id", "task", "answers", "pos", "neg", "history", "gold_history", "conversation_id"})
Line = list[Row]
"""The queries of one line."""


class LayoutReader(SourceReader):
    """Reads a folder of the data layout."""

    needs = "train.jsonl nor test.jsonl"
    query_fields: ClassVar[frozenset[str]] = KNOWN | {"pos_ids", "neg_ids", "options", "category", "subject"}
    """Fields of a row of the split files that are read."""
    mines_negatives: ClassVar[bool] = False
    """True: where there is a corpus, the negatives are sought in it, and `neg` is not read."""

    def __init__(self, source: Source, task: TaskSpec) -> None:
        super().__init__(source, task)
        self._long_texts = LongTexts(source)
        self._corpus_texts: dict[str, str] | None = None
        """Ids of the corpus by text, made when a row first names a passage by its text."""
        self._counts: Counter[str] = Counter()
        """What `NOTES` tells of the split that is read."""
        self._continues = task.template is not None and task.template.continues

    def _split_files(self, split: Split) -> list[Path]:
        return [self.path / f"{split}.jsonl"]

    def _layout_row(self, row: Row) -> Row:
        """A row of the split files as the layout has it; other formats translate theirs."""
        return row

    def _labels(self) -> list[str] | None:
        """The answers there are to choose from in the whole dataset, from its labels.json.

        Raises:
            DataError: the file is no list of texts.
        """
        path = self.path / "labels.json"
        if not path.is_file():
            return None
        try:
            labels = optional_texts({"labels.json": read_json(path)}, "labels.json")
        except RowError as error:
            raise DataError(f"{path}: {error}; give a list of answers") from error
        return labels or None

    def read_queries(self, prepared: Prepared) -> dict[Split, list[Line]]:
        """The checked queries of each line, by split.

        Raises:
            DataError: labels.json is no list of texts.
        """
        labels = self._labels()
        return {split: self._read_split(split, labels, prepared) for split in self.splits}

    def _read_split(self, split: Split, labels: list[str] | None, prepared: Prepared) -> list[Line]:
        """`labels` are the options of a row that has none of its own."""
        path, scored = self.splits[split], self.source.teacher_scores and split == "train"
        known: dict[str, Line] = {}
        counts = self._counts = Counter()
        names = FieldNames(self.query_fields | ({"teacher_scores", "dataset"} if scored else {"teacher_scores"}))
        rejected = prepared.rejected_of.total()
        for number, raw in read_lines(path, prepared):
            # The title of a long text goes with its chunks; that of a query is not read.
            long = raw.get("text") is not None and not scored
            names.see(raw.keys() - {"text", "title"} if long else raw)
            try:
                if scored and raw.get("dataset") is not None and required_text(raw, "dataset") != self.source.dataset:
                    counts["elsewhere"] += 1
                    continue
                row = self._layout_row({**raw, "options": raw.get("options") or labels})
                queries = self._queries(row, split, prepared, scored)
                if not long and optional_id(raw, "query_id") is None:
                    self._name_apart(queries[0], known, scored)
                name = queries[0]["query_id"]
                if name in known:
                    merge_line(known[name], queries, in_time=bool(raw.get("history")))
                    prepared.merged += 1
            except RowError as error:
                prepared.set_aside(path, number, str(error), raw)
                continue
            known.setdefault(name, queries)
            scores = raw.get("teacher_scores")
            counts["ignored"] += bool(scores) and not scored
            counts["repeated"] += len(scores) - len(queries[0]["teacher_scores"]) if scores and scored else 0
            # Of a long text nobody has looked at the types of other fields.
            history = [] if long else raw.get("history") or []
            counts["strangers"] += bool(history) and not _stripped(raw.get("pos") or []) <= _stripped(history)
        if counts["elsewhere"] and not known and prepared.rejected_of.total() == rejected:
            raise DataError(f"{path}: no row of dataset {self.source.dataset!r}; its rows name other datasets")
        prepared.left_out += counts["elsewhere"]
        prepared.notes += [f"{path.name}: {NOTES[name].format(counts[name])}" for name in NOTES if counts[name]]
        prepared.notes += names.notes(path)
        return list(known.values())

    def _queries(self, row: Row, split: Split, prepared: Prepared, scored: bool) -> Line:
        """The queries of one row, checked.

        `scored`: its candidates are what the row's `teacher_scores` are for, and these are kept.
        """
        if row.get("text") is None or scored:
            query = self._query(row, prepared, scored)
            self._check(query, row, scored)
            return [query]
        if row.get("query") is not None:
            raise RowError("`query` and `text` in one row; `query` asks, `text` is a long document to be cut")
        return self._long_texts.queries(row, split, prepared)

    def _check(self, query: Row, row: Row, scored: bool) -> None:
        """Refuse a query that the rest of the run could not use."""
        name = f"tasks.{self.source.task}"
        if scored and query["teacher_scores"] is None and self.task.loss != "contrastive":
            raise RowError(f"no teacher_scores, but {name}.loss is {self.task.loss!r} and needs them")
        if not scored and self.task.needs_answers and not query["answers"]:
            refuse_other_names(row, "answers")
            raise RowError(
                f"no answers, but {name}.reward is {self.task.reward!r} and needs one ('own_answers' needs none)"
            )

    def _query(self, row: Row, prepared: Prepared, scored: bool) -> Row:
        """One query with its positives and, where the row brings its own candidates, its pool."""
        query = required_text(row, "query")
        for side in ("pos", "neg"):
            if row.get(side) is None and row.get(f"{side}_ids") is None:
                refuse_other_names(row, side, f"{side}_ids")
        answers = optional_texts(row, "answers", strip=not self._continues)
        if self._continues:
            # White space between the two is part of the text, on whichever side the row has it.
            given = str(row["query"])
            answers = [given[len(given.rstrip()) :] + answer for answer in answers]
        positives, pool = self._candidates(row, prepared, scored)
        scores = None
        if scored:
            pool, scores = self._scored_pool(row, pool or [], prepared)
        origin = optional_id(row, "conversation_id")
        # Without an id a query is its content: the same words after another history are another query.
        context = [pool, origin] if row.get("history") else []
        return query_row(
            self.source,
            optional_id(row, "query_id") or content_id(self.source.dataset, query, *context),
            query,
            answers=answers,
            positive_ids=list(dict.fromkeys(positives)),
            pool_ids=None if pool is None else list(dict.fromkeys(pool)),
            teacher_scores=scores,
            options=options_of(row, answers),
            category=optional_text(row, "category") or optional_text(row, "subject"),
            origin=origin,
        )

    def _name_apart(self, query: Row, known: Mapping[str, Line], scored: bool) -> None:
        """Name a query without an id by more than its text, where that text is known as another query.

        Another one has other options, another subject or conversation. With scores, which are for the candidates of
        their row, it has other candidates.
        """
        first = known.get(query["query_id"], [query])[0]
        if contradicting_fact(first, query) or (scored and first["pool_ids"] != query["pool_ids"]):
            context = [query["pool_ids"] if scored else None, *(query[name] for name in FACTS)]
            query["query_id"] = content_id(self.source.dataset, query["query"], context)

    def _candidates(self, row: Row, prepared: Prepared, scored: bool) -> tuple[list[str], list[str] | None]:
        """Ids of the known positives, and of all candidates of a row that brings its own, in the row's order."""
        if history := optional_texts(row, "history"):
            if self.corpus and (row.get("pos_ids") or row.get("neg_ids")):
                raise RowError("`history` and ids of passages in one row; its candidates are of the one or the other")
            pool = self._add_passages(history, prepared)
            texts = [content_id(text) for text in optional_texts(row, "pos")]
            gold = [pool[i] for i in gold_positions(row, len(pool))]
            return gold + [passage_id for passage_id in texts if passage_id in pool], pool
        gold_positions(row, 0)
        positives, negatives = (self._named(row, side, prepared, scored) for side in ("pos", "neg"))
        if self.corpus and not negatives and not scored:
            return positives, None
        self._counts["both"] += 0 if scored else len(set(positives) & set(negatives))
        if not positives and not negatives:
            refuse_other_names(row, "history")
            where = "with scores" if scored else "without a corpus"
            raise RowError(f"no candidates; {where} a row needs pos, neg or history")
        return positives, positives + negatives

    def _named(self, row: Row, side: str, prepared: Prepared, scored: bool) -> list[str]:
        """Ids of the passages that a row names on one side (pos, neg): by id, or else by text."""
        ids = optional_ids(row, f"{side}_ids")
        missing = [passage_id for passage_id in ids if passage_id not in prepared.passages]
        if missing:
            raise RowError(f"{side}_ids {missing[:3]} are not in the corpus")
        only_ids = self.mines_negatives and self.corpus is not None and (scored or side == "neg")
        # Scores are for the one list or the other, and the reference's ids stand for its texts.
        if only_ids or (ids and (scored or self.mines_negatives)):
            return ids
        return ids + self._find(optional_texts(row, side), prepared)

    def _find(self, texts: list[str], prepared: Prepared) -> list[str]:
        """Ids of passages that a row brings as texts: those of the corpus, or else of new ones."""
        if self.corpus is None or not texts:
            return self._add_passages(texts, prepared)
        if self._corpus_texts is None:
            # By hash, since the texts of a large corpus would fill the memory.
            self._corpus_texts = {}
            for passage_id, passage in prepared.passages.items():
                title, text = passage["title"], passage["text"]
                self._corpus_texts.setdefault(content_id(text), passage_id)
                # Rows of other tools hold the text without its title.
                if title is not None:
                    self._corpus_texts.setdefault(content_id(text.removeprefix(f"{title} ")), passage_id)
        known, before = self._corpus_texts, len(prepared.passages)
        found = [known.get(content_id(text)) or self._add_passages([text], prepared)[0] for text in texts]
        self._counts["added"] += len(prepared.passages) - before
        return found

    def _scored_pool(self, row: Row, pool: list[str], prepared: Prepared) -> tuple[list[str], list[float] | None]:
        """The candidates of a scored row and their scores; one whose text repeats an earlier one is left out."""
        by_id = row.get("pos_ids") or row.get("neg_ids")
        keys = ["history"] if row.get("history") else ["pos_ids", "neg_ids"] if by_id else ["pos", "neg"]
        scores = optional_scores(row, len(pool), ", ".join(f"{key} {len(row.get(key) or [])}" for key in keys))
        # Copies of one text would repel each other in the losses, each as the other's negative.
        first: dict[str, int] = {}
        for i, passage_id in enumerate(pool):
            first.setdefault(prepared.passages[passage_id]["text"], i)
        kept = list(first.values())
        return [pool[i] for i in kept], scores and [scores[i] for i in kept]

    def _add_passages(self, texts: list[str], prepared: Prepared) -> list[str]:
        """Enter texts that rows bring along into the corpus; their id is the hash of the text."""
        ids = []
        for text in texts:
            passage_id = content_id(text)
            prepared.passages.setdefault(passage_id, passage_row(self.source, passage_id, text))
            ids.append(passage_id)
        return ids


def _stripped(texts: Iterable[object]) -> set[str]:
    # Numbers are taken for texts.
    return {str(text).strip() for text in texts}
