"""Readers of source files: rows of a dataset in, checked rows and rejected ones out.

Formats: `layout` (a folder with corpus.jsonl and train.jsonl, dev.jsonl, test.jsonl), `reference` (files of
FlagEmbedding's llm_embedder) and `beir`; the last two are told apart in `source_formats`. A task whose rows bring their
own `history` takes its candidates from there; a row that is a whole `text` is cut into chunks.
"""

from __future__ import annotations

import json
import re
from math import ceil
from pathlib import Path

from embedder.config.prepare import Source
from embedder.config.tasks import TaskSpec
from embedder.data.records import Split
from embedder.data.rows import (
    Prepared,
    Row,
    RowError,
    gold_positions,
    optional_metadata,
    optional_text,
    optional_texts,
    options_of,
    passage_row,
    query_id_of,
    query_row,
    read_lines,
    required_text,
)
from embedder.data.source_formats import SPLITS, common_row, corpus_row, read_beir, source_files
from embedder.errors import DataError
from embedder.hashing import content_id, row_seed
from embedder.storage.fetched import local_copy

WORD = re.compile(r"\S+")
DEV_SHARE = 0.2
"""Of the documents, conversations and single queries from which a dev split is cut."""


def read_source(source: Source, task: TaskSpec, seed: int) -> Prepared:
    """Read, check and choose the rows of one source.

    Raises:
        DataError: a file is missing, or no passage is left.
    """
    files = source_files(source)
    prepared = Prepared()
    if files.corpus is not None:
        _read_corpus(files.corpus, source, prepared)
    documents = len(prepared.passages)
    lines: dict[Split, list[list[Row]]] = {}
    if source.format == "beir":
        lines = read_beir(source, files, prepared)
    else:
        labels = _labels(source)
        for split, file in files.splits.items():
            lines[split] = _read_queries(file, source, task, prepared, (files.corpus is not None, labels))
    if source.dev_queries is not None and "dev" not in lines:
        lines["dev"], lines["train"] = cut_dev(lines.get("train", []), seed)
    limits = {"train": source.train_queries, "dev": source.dev_queries, "test": source.test_queries}
    for split in SPLITS:
        if split in lines:
            prepared.queries[split] = _choose(lines[split], limits[split], seed, prepared)
    _keep_passages(source, prepared, seed, documents)
    if not prepared.passages:
        raise DataError(
            f"source {source.dataset}: no passage in {source.path}; give a corpus.jsonl or rows with candidates"
        )
    return prepared


def cut_dev(lines: list[list[Row]], seed: int) -> tuple[list[list[Row]], list[list[Row]]]:
    """Lines of a dev split, and those that are left to train on.

    A seeded fifth of the documents and conversations goes to dev as a whole, so that no text of theirs is trained on; a
    query without an origin stands for itself. Depends on neither the order of the lines nor on limits.
    """
    origins = sorted({_origin(queries) for queries in lines}, key=lambda origin: row_seed(seed, "dev", origin))
    chosen = set(origins[: ceil(DEV_SHARE * len(origins))])
    dev = [queries for queries in lines if _origin(queries) in chosen]
    return dev, [queries for queries in lines if _origin(queries) not in chosen]


def _origin(queries: list[Row]) -> str:
    return str(queries[0]["origin"] or queries[0]["query_id"])


def _labels(source: Source) -> list[str] | None:
    """The answers there are to choose from in a whole dataset of the layout, from its labels.json.

    Raises:
        DataError: the file is no list of texts.
    """
    path = local_copy(source.path) / "labels.json"
    if source.format != "layout" or not path.is_file():
        return None
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); give a list of answers") from error
    if not isinstance(labels, list) or not all(isinstance(label, str) and label.strip() for label in labels):
        raise DataError(f"{path}: holds {labels!r:.100}; give a list of answers")
    return [label.strip() for label in labels]


def _read_corpus(path: Path, source: Source, prepared: Prepared) -> None:
    """Fill `prepared.passages` by id."""
    for number, row in read_lines(path, prepared):
        try:
            known = corpus_row(row, number, source.format)
            passage_id, text = required_text(known, "id"), required_text(known, "text")
            metadata = optional_metadata(known)
            if passage_id in prepared.passages:
                raise RowError(f"id {passage_id!r} was seen before")
        except RowError as error:
            prepared.set_aside(path, number, str(error), row)
            continue
        prepared.passages[passage_id] = passage_row(source, passage_id, text, known.get("title"), metadata)


def _read_queries(
    path: Path, source: Source, task: TaskSpec, prepared: Prepared, known: tuple[bool, list[str] | None]
) -> list[list[Row]]:
    """The checked queries of each line of a file; a long document gives many, any other line one.

    `known`: whether the dataset has a corpus, and its labels.
    """
    seen: set[str] = set()
    kept: list[list[Row]] = []
    ignored_scores = 0
    for number, raw in read_lines(path, prepared):
        try:
            row = common_row(raw, source.format, *known)
            queries = _chunk_queries(row, source, prepared) if "text" in row else [_query(row, source, prepared)]
            for query in queries:
                if task.reward != "none" and not query["answers"]:
                    raise RowError(f"no answers, but tasks.{source.task}.reward is {task.reward!r} and needs one")
                if query["query_id"] in seen:
                    raise RowError(f"query_id {query['query_id']!r} was seen before")
            seen.update(query["query_id"] for query in queries)
        except RowError as error:
            prepared.set_aside(path, number, str(error), raw)
            continue
        for query in queries:
            # A training row that stands in the corpus under its own id is a worked example (icl).
            if query["query_id"] in prepared.passages and query["answers"]:
                prepared.passages[query["query_id"]]["answer"] = query["answers"][0]
        kept.append(queries)
        ignored_scores += bool(raw.get("teacher_scores"))
    if ignored_scores:
        prepared.notes.append(
            f"{path.name}: teacher_scores of {ignored_scores} rows not used; `label` gives its own rewards"
        )
    return kept


def _query(row: Row, source: Source, prepared: Prepared) -> Row:
    """One query with its positives and, where the row brings its own candidates, its pool."""
    query = required_text(row, "query")
    answers = optional_texts(row, "answers")
    pool: list[str] | None = None
    if row.get("history"):
        pool = _add_passages(optional_texts(row, "history"), source, prepared)
        positives = [pool[i] for i in gold_positions(row, len(pool))]
        positives += [content_id(text) for text in optional_texts(row, "pos") if content_id(text) in pool]
    elif row.get("pos_ids") is not None:
        positives = optional_texts(row, "pos_ids")
        missing = [passage_id for passage_id in positives if passage_id not in prepared.passages]
        if missing:
            raise RowError(f"pos_ids {missing[:3]} are not in the corpus")
    else:
        positives = _add_passages(optional_texts(row, "pos"), source, prepared)
        pool = positives + _add_passages(optional_texts(row, "neg"), source, prepared)
    return query_row(
        source,
        query_id_of(row, source.dataset, query),
        query,
        answers=answers,
        positive_ids=list(dict.fromkeys(positives)),
        pool_ids=None if pool is None else list(dict.fromkeys(pool)),
        options=options_of(row, answers),
        category=optional_text(row, "category") or optional_text(row, "subject"),
        origin=optional_text(row, "conversation_id"),
    )


def _add_passages(texts: list[str], source: Source, prepared: Prepared) -> list[str]:
    """Enter texts that rows bring along into the corpus; their id is the hash of the text."""
    ids = []
    for text in texts:
        passage_id = content_id(text)
        prepared.passages.setdefault(passage_id, passage_row(source, passage_id, text))
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
            prepared.passages.setdefault(passage_id, passage_row(source, passage_id, pair, row.get("title")))
            pool.append(passage_id)
        query = text[slice(*chunks[j])]
        answers = [text[slice(*chunks[j + 1])]]
        known = {"answers": answers, "pool_ids": pool, "origin": document}
        queries.append(query_row(source, f"{document}#{j}", query, **known))
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
