"""Readers of source files: rows of a dataset in, checked rows and rejected ones out.

Formats: `layout` (a folder with corpus.jsonl, train.jsonl and test.jsonl) and `reference` (one JSON Lines file of
training rows with query, pos, neg, history and answers, as FlagEmbedding's llm_embedder reads it). A task whose rows
bring their own `history` takes its candidates from there; a row that is a whole `text` is cut into chunks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from embedder.config import Source
from embedder.errors import DataError
from embedder.records import Split, content_id, row_seed
from embedder.source_rows import (
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
from embedder.tasks import TaskSpec

WORD = re.compile(r"\S+")


@dataclass
class Prepared:
    """A dataset after reading: `rows_in` = queries and passages kept + `left_out` + rejected."""

    queries: dict[Split, list[Row]] = field(default_factory=dict)
    passages: dict[str, Row] = field(default_factory=dict)
    rejected: list[Rejected] = field(default_factory=list)
    rows_in: int = 0
    rows_out: int = 0
    left_out: int = 0
    notes: list[str] = field(default_factory=list)


def source_files(source: Source) -> list[Path]:
    """The files of a source, all of which must exist.

    Raises:
        DataError: the path is missing, or a folder of the layout has neither train.jsonl nor test.jsonl.
    """
    if source.format == "reference":
        if not source.path.is_file():
            raise DataError(
                f"source {source.dataset}: {source.path} is no file; `format: reference` reads one .jsonl file"
            )
        return [source.path]
    if not source.path.is_dir():
        raise DataError(f"source {source.dataset}: {source.path} is no folder; correct prepare.sources.path")
    files = [source.path / name for name in ("train.jsonl", "test.jsonl") if (source.path / name).is_file()]
    if not files:
        raise DataError(f"source {source.dataset}: {source.path} has neither train.jsonl nor test.jsonl")
    corpus = source.path / "corpus.jsonl"
    if corpus.is_file() and corpus.stat().st_size == 0:
        raise DataError(f"source {source.dataset}: {corpus} is empty; a corpus needs at least one passage")
    return files


def read_source(source: Source, task: TaskSpec, seed: int) -> Prepared:
    """Read, check and choose the rows of one source.

    Raises:
        DataError: a file is missing, or no passage is left.
    """
    files = source_files(source)
    prepared = Prepared()
    corpus = source.path / "corpus.jsonl"
    if source.format == "layout" and corpus.is_file():
        _read_corpus(corpus, source, prepared)
    documents = len(prepared.passages)
    for file in files:
        split: Split = "test" if file.stem == "test" and source.format == "layout" else "train"
        limit = source.train_queries if split == "train" else source.test_queries
        rows = _read_queries(file, source, task, prepared)
        prepared.queries[split] = _choose(rows, limit, seed, prepared)
    _keep_passages(source, prepared, seed, documents)
    if not prepared.passages:
        raise DataError(
            f"source {source.dataset}: no passage in {source.path}; give a corpus.jsonl or rows with candidates"
        )
    return prepared


def _lines(path: Path, prepared: Prepared) -> Iterator[tuple[int, Row]]:
    """The JSON objects of a file with their line numbers; other lines are rejected."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            prepared.rows_in += 1
            try:
                row = parse_object(line)
            except RowError as error:
                _reject(prepared, path, number, str(error), line)
                continue
            yield number, row


def _reject(prepared: Prepared, path: Path, number: int, reason: str, row: object) -> None:
    text = row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)
    prepared.rejected.append(Rejected(str(path), number, reason, text[:KEPT_CHARACTERS]))


def _passage(source: Source, passage_id: str, text: str, title: object) -> Row:
    return {
        "task": source.task,
        "dataset": source.dataset,
        "id": passage_id,
        "text": text,
        "title": title if isinstance(title, str) else None,
        "answer": None,
    }


def _read_corpus(path: Path, source: Source, prepared: Prepared) -> None:
    """Fill `prepared.passages` by id."""
    for number, row in _lines(path, prepared):
        try:
            passage_id, text = required_text(row, "id"), required_text(row, "text")
            if passage_id in prepared.passages:
                raise RowError(f"id {passage_id!r} was seen before")
        except RowError as error:
            _reject(prepared, path, number, str(error), row)
            continue
        prepared.passages[passage_id] = _passage(source, passage_id, text, row.get("title"))


def _read_queries(path: Path, source: Source, task: TaskSpec, prepared: Prepared) -> list[list[Row]]:
    """The checked queries of each line of a file; a long document gives many, any other line one."""
    seen: set[str] = set()
    kept: list[list[Row]] = []
    ignored_scores = 0
    for number, row in _lines(path, prepared):
        try:
            queries = _chunk_queries(row, source, prepared) if "text" in row else [_query(row, source, prepared)]
            for query in queries:
                if task.reward != "none" and not query["answers"]:
                    raise RowError(f"no answers, but tasks.{source.task}.reward is {task.reward!r} and needs one")
                if query["query_id"] in seen:
                    raise RowError(f"query_id {query['query_id']!r} was seen before")
            seen.update(query["query_id"] for query in queries)
        except RowError as error:
            _reject(prepared, path, number, str(error), row)
            continue
        for query in queries:
            # A training row that stands in the corpus under its own id is a worked example (icl).
            if query["query_id"] in prepared.passages and query["answers"]:
                prepared.passages[query["query_id"]]["answer"] = query["answers"][0]
        kept.append(queries)
        ignored_scores += bool(row.get("teacher_scores"))
    if ignored_scores:
        prepared.notes.append(
            f"{path.name}: teacher_scores of {ignored_scores} rows not used; `label` gives its own rewards"
        )
    return kept


def _query(row: Row, source: Source, prepared: Prepared) -> Row:
    """One query with its positives and, where the row brings its own candidates, its pool."""
    query = required_text(row, "query")
    query_id = query_id_of(row, source.dataset, query)
    pool: list[str] | None = None
    if row.get("history"):
        pool = _add_passages(optional_texts(row, "history"), source, prepared)
        positives = [pool[i] for i in gold_positions(row, len(pool))]
        positives += [content_id(text) for text in optional_texts(row, "pos") if content_id(text) in pool]
    elif source.format == "layout" and row.get("pos_ids") is not None:
        positives = optional_texts(row, "pos_ids")
        missing = [passage_id for passage_id in positives if passage_id not in prepared.passages]
        if missing:
            raise RowError(f"pos_ids {missing[:3]} are not in the corpus")
    else:
        positives = _add_passages(optional_texts(row, "pos"), source, prepared)
        pool = positives + _add_passages(optional_texts(row, "neg"), source, prepared)
    return {
        "task": source.task,
        "dataset": source.dataset,
        "query_id": query_id,
        "query": query,
        "answers": optional_texts(row, "answers"),
        "positive_ids": list(dict.fromkeys(positives)),
        "pool_ids": None if pool is None else list(dict.fromkeys(pool)),
    }


def _add_passages(texts: list[str], source: Source, prepared: Prepared) -> list[str]:
    """Enter texts that rows bring along into the corpus; their id is the hash of the text."""
    ids = []
    for text in texts:
        passage_id = content_id(text)
        prepared.passages.setdefault(passage_id, _passage(source, passage_id, text, None))
        ids.append(passage_id)
    return ids


def _chunk_queries(row: Row, source: Source, prepared: Prepared) -> list[Row]:
    """Queries of one long document: chunk j asks, chunk j+1 is the desired output.

    Candidates are the `history_chunks` latest earlier chunks that end before chunk j, each with its continuation:
    C_i = v_i + v_{i+1} with i + 1 < j (paper, section on memory).
    """
    document, text = required_text(row, "query_id"), required_text(row, "text")
    spans = [match.span() for match in WORD.finditer(text)]
    size = source.chunk_words
    chunks = [(spans[i][0], spans[min(i + size, len(spans)) - 1][1]) for i in range(0, len(spans), size)]
    if len(chunks) < 5:
        raise RowError(f"only {len(chunks)} chunks of {size} words; a long text needs at least 5")
    if f"{document}#0" in prepared.passages:
        raise RowError(f"query_id {document!r} was seen before")
    queries = []
    for j in range(3, len(chunks) - 1):
        pool = []
        for i in range(max(0, j - 1 - source.history_chunks), j - 1):
            passage_id = f"{document}#{i}"
            pair = text[chunks[i][0] : chunks[i + 1][1]]
            prepared.passages.setdefault(passage_id, _passage(source, passage_id, pair, row.get("title")))
            pool.append(passage_id)
        queries.append(
            {
                "task": source.task,
                "dataset": source.dataset,
                "query_id": f"{document}#{j}",
                "query": text[slice(*chunks[j])],
                "answers": [text[slice(*chunks[j + 1])]],
                "positive_ids": [],
                "pool_ids": pool,
            }
        )
    return queries


def _choose(lines: list[list[Row]], limit: int | None, seed: int, prepared: Prepared) -> list[Row]:
    """Keep `limit` queries, evenly over the lines, by a seeded order that does not depend on their number."""
    turns: list[tuple[int, int, int, Row]] = []
    for line, queries in enumerate(lines):
        keyed = [(row_seed(seed, query["query_id"]), query) for query in queries]
        keyed.sort(key=lambda pair: pair[0])
        turns.extend((turn, key, line, query) for turn, (key, query) in enumerate(keyed))
    turns.sort(key=lambda entry: entry[:3])
    kept = turns[:limit]
    kept_lines = {line for _, _, line, _ in kept}
    prepared.rows_out += len(kept_lines)
    prepared.left_out += len(lines) - len(kept_lines)
    return sorted((query for *_, query in kept), key=lambda query: str(query["query_id"]))


def _keep_passages(source: Source, prepared: Prepared, seed: int, documents: int) -> None:
    """Reduce the corpus to `source.passages`, and to those of kept queries where rows bring their own candidates."""
    needed: set[str] = set()
    for rows in prepared.queries.values():
        for query in rows:
            needed.update(query["positive_ids"], query["pool_ids"] or [])
    own = list(prepared.passages)[:documents]
    spare = sorted((row_seed(seed, passage_id), passage_id) for passage_id in own if passage_id not in needed)
    if source.passages is not None:
        spare = spare[: max(0, source.passages - len(needed.intersection(own)))]
    keep = needed.union(passage_id for _, passage_id in spare)
    kept_own = sum(passage_id in keep for passage_id in own)
    prepared.rows_out += kept_own
    prepared.left_out += len(own) - kept_own
    prepared.passages = {key: prepared.passages[key] for key in prepared.passages if key in keep}
