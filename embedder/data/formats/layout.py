"""The data layout: a folder with corpus.jsonl and train.jsonl, dev.jsonl, test.jsonl.

A row that brings its own `history` takes its candidates from there; a row that is a whole `text` is cut into chunks.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

from embedder.data.formats.reader import SourceReader
from embedder.data.records import Split
from embedder.data.rows import (
    Prepared,
    Row,
    RowError,
    gold_positions,
    optional_scores,
    optional_text,
    optional_texts,
    options_of,
    passage_row,
    query_id_of,
    query_row,
    read_lines,
    required_text,
)
from embedder.errors import DataError
from embedder.hashing import content_id

WORD = re.compile(r"\S+")
NOTES = {
    "ignored": "teacher_scores of {} rows not used; `label` gives its own rewards",
    "repeated": "{} candidates left out with their scores, since they repeat an earlier text of their row",
    "elsewhere": "{} rows left out, since they name another dataset",
}
"""Notes about the rows of a file, made where there are any such rows."""


class LayoutReader(SourceReader):
    """Reads a folder of the data layout."""

    needs = "train.jsonl nor test.jsonl"

    def _split_files(self, split: Split) -> list[Path]:
        return [self.path / f"{split}.jsonl"]

    def _corpus_row(self, row: Row, number: int) -> Row:
        return row

    def _layout_row(self, row: Row) -> Row:
        """A row of the split files as the layout has it; other formats translate theirs."""
        if self.corpus and not row.get("pos") and not row.get("neg"):
            return {"pos_ids": [], **row}
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
            labels = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{path}: not JSON ({error}); give a list of answers") from error
        if not isinstance(labels, list) or not all(isinstance(label, str) and label.strip() for label in labels):
            raise DataError(f"{path}: holds {labels!r:.100}; give a list of answers")
        return [label.strip() for label in labels]

    def read_queries(self, prepared: Prepared) -> dict[Split, list[list[Row]]]:
        """The checked queries of each line, by split.

        Raises:
            DataError: labels.json is no list of texts.
        """
        labels = self._labels()
        return {split: self._read_split(split, labels, prepared) for split in self.splits}

    def _read_split(self, split: Split, labels: list[str] | None, prepared: Prepared) -> list[list[Row]]:
        """`labels` are the options of a row that has none of its own."""
        path, scored = self.splits[split], self.source.teacher_scores and split == "train"
        seen: set[str] = set()
        lines: list[list[Row]] = []
        counts: Counter[str] = Counter()
        for number, raw in read_lines(path, prepared):
            try:
                if scored and raw.get("dataset") is not None and required_text(raw, "dataset") != self.source.dataset:
                    counts["elsewhere"] += 1
                    continue
                row = self._layout_row({"options": labels, **raw})
                whole_text = "text" in row and not scored
                queries = self._chunk_queries(row, prepared) if whole_text else [self._query(row, prepared, scored)]
                for query in queries:
                    self._check(query, seen, scored)
            except RowError as error:
                prepared.set_aside(path, number, str(error), raw)
                continue
            seen.update(query["query_id"] for query in queries)
            for query in queries:
                # A training row that stands in the corpus under its own id is a worked example (icl).
                if query["query_id"] in prepared.passages and query["answers"]:
                    prepared.passages[query["query_id"]]["answer"] = query["answers"][0]
            lines.append(queries)
            scores = raw.get("teacher_scores")
            counts["ignored"] += bool(scores) and not scored
            counts["repeated"] += len(scores) - len(queries[0]["teacher_scores"]) if scores and scored else 0
        if counts["elsewhere"] and not lines and not prepared.rejected:
            raise DataError(f"{path}: no row of dataset {self.source.dataset!r}; its rows name other datasets")
        prepared.left_out += counts["elsewhere"]
        prepared.notes += [f"{path.name}: {NOTES[name].format(counts[name])}" for name in NOTES if counts[name]]
        return lines

    def _check(self, query: Row, seen: set[str], scored: bool) -> None:
        """Refuse a query that the rest of the run could not use."""
        name = f"tasks.{self.source.task}"
        if scored and query["teacher_scores"] is None and self.task.loss != "contrastive":
            raise RowError(f"no teacher_scores, but {name}.loss is {self.task.loss!r} and needs them")
        if not scored and self.task.reward != "none" and not query["answers"]:
            raise RowError(f"no answers, but {name}.reward is {self.task.reward!r} and needs one")
        if query["query_id"] in seen:
            raise RowError(f"query_id {query['query_id']!r} was seen before")

    def _query(self, row: Row, prepared: Prepared, scored: bool) -> Row:
        """One query with its positives and, where the row brings its own candidates, its pool.

        `scored`: the pool is what the row's `teacher_scores` are for, and these are kept.
        """
        query = required_text(row, "query")
        answers = optional_texts(row, "answers")
        positives, pool = self._candidates(row, prepared)
        scores = None
        if scored:
            pool, scores = self._scored_pool(row, pool or [], prepared)
        return query_row(
            self.source,
            query_id_of(row, self.source.dataset, query),
            query,
            answers=answers,
            positive_ids=list(dict.fromkeys(positives)),
            pool_ids=None if pool is None else list(dict.fromkeys(pool)),
            teacher_scores=scores,
            options=options_of(row, answers),
            category=optional_text(row, "category") or optional_text(row, "subject"),
            origin=optional_text(row, "conversation_id"),
        )

    def _candidates(self, row: Row, prepared: Prepared) -> tuple[list[str], list[str] | None]:
        """Ids of the known positives, and of all candidates of a row that brings its own, in the row's order."""
        pool: list[str] | None = None
        if row.get("history"):
            pool = self._add_passages(optional_texts(row, "history"), prepared)
            positives = [pool[i] for i in gold_positions(row, len(pool))]
            positives += [content_id(text) for text in optional_texts(row, "pos") if content_id(text) in pool]
        elif row.get("pos_ids") is not None:
            positives = self._known_ids(row, "pos_ids", prepared)
            if row.get("neg_ids") is not None:
                pool = positives + self._known_ids(row, "neg_ids", prepared)
        else:
            positives = self._add_passages(optional_texts(row, "pos"), prepared)
            pool = positives + self._add_passages(optional_texts(row, "neg"), prepared)
        return positives, pool

    def _known_ids(self, row: Row, key: str, prepared: Prepared) -> list[str]:
        ids = optional_texts(row, key)
        missing = [passage_id for passage_id in ids if passage_id not in prepared.passages]
        if missing:
            raise RowError(f"{key} {missing[:3]} are not in the corpus")
        return ids

    def _scored_pool(self, row: Row, pool: list[str], prepared: Prepared) -> tuple[list[str], list[float] | None]:
        """The candidates of a scored row and their scores; one whose text repeats an earlier one is left out."""
        if not pool:
            raise RowError("no candidates; pos, neg or history is needed")
        by_id = row.get("pos_ids") is not None
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

    def _chunk_queries(self, row: Row, prepared: Prepared) -> list[Row]:
        """Queries of one long document: chunk j asks, chunk j+1 is the desired output.

        Candidates are the `history_chunks` latest earlier chunks that end before chunk j, each with its continuation:
        C_i = v_i + v_{i+1} with i + 1 < j (paper, section on memory).
        """
        document, text = required_text(row, "query_id"), required_text(row, "text")
        spans = [match.span() for match in WORD.finditer(text)]
        size = self.source.chunk_words
        chunks = [(spans[i][0], spans[min(i + size, len(spans)) - 1][1]) for i in range(0, len(spans), size)]
        if len(chunks) < 5:
            raise RowError(f"only {len(chunks)} chunks of {size} words; a long text needs at least 5")
        if f"{document}#0" in prepared.passages:
            raise RowError(f"query_id {document!r} was seen before")
        queries = []
        for j in range(3, len(chunks) - 1):
            pool = []
            for i in range(max(0, j - 1 - self.source.history_chunks), j - 1):
                passage_id = f"{document}#{i}"
                pair = text[chunks[i][0] : chunks[i + 1][1]]
                prepared.passages.setdefault(passage_id, passage_row(self.source, passage_id, pair, row.get("title")))
                pool.append(passage_id)
            query = text[slice(*chunks[j])]
            answers = [text[slice(*chunks[j + 1])]]
            known = {"answers": answers, "pool_ids": pool, "origin": document}
            queries.append(query_row(self.source, f"{document}#{j}", query, **known))
        return queries
