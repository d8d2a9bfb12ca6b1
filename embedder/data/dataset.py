"""One source to one checked dataset: its reader, a dev split, and the limits on queries and passages."""

from __future__ import annotations

from heapq import nsmallest
from itertools import islice
from math import ceil

from embedder.config.prepare import Source
from embedder.config.tasks import TaskSpec
from embedder.data.fields import Row
from embedder.data.formats.beir import BeirReader
from embedder.data.formats.document_source import DocumentReader
from embedder.data.formats.layout import LayoutReader
from embedder.data.formats.reader import SPLITS, SourceReader
from embedder.data.formats.reference import ReferenceReader
from embedder.data.rows import Prepared
from embedder.data.worked_examples import link_examples
from embedder.errors import DataError
from embedder.hashing import row_seed

READERS: dict[str, type[SourceReader]] = {
    "layout": LayoutReader,
    "reference": ReferenceReader,
    "beir": BeirReader,
    "documents": DocumentReader,
}
DEV_SHARE = 0.2
"""Share of the documents, conversations and single queries from which a dev split is cut."""


def open_source(source: Source, task: TaskSpec) -> SourceReader:
    """The reader of a source's format, which has found its files.

    Raises:
        DataError: a file is missing.
    """
    return READERS[source.format](source, task)


def read_source(source: Source, task: TaskSpec, seed: int, prepared: Prepared | None = None) -> Prepared:
    """Read, check and choose the rows of one source.

    `prepared`: filled and returned; whoever gives it has the rejected rows also when the source is refused.

    Raises:
        DataError: a file is missing or damaged, or no passage is left.
    """
    reader = open_source(source, task)
    prepared = Prepared() if prepared is None else prepared
    # Passages come first because queries name them, and because those that rows bring along are counted with the rows.
    reader.read_passages(prepared)
    documents = len(prepared.passages)
    lines = reader.read_queries(prepared)
    if task.queries_are_examples:
        link_examples((query for split in lines.values() for line in split for query in line), prepared.passages)
    if source.dev_queries is not None and "dev" not in lines:
        lines["dev"], lines["train"] = cut_dev(lines.get("train", []), seed)
    for split in SPLITS:
        if split in lines:
            prepared.queries[split] = _choose(lines[split], source.query_limits[split], seed, prepared)
    _note_repeated(prepared)
    _keep_passages(source, prepared, seed, documents)
    if not prepared.passages:
        raise DataError(
            f"source {source.dataset}: no passage in {source.path} can be used; give a corpus.jsonl or rows with "
            f"candidates{prepared.first_reason()}"
        )
    return prepared


def cut_dev(lines: list[list[Row]], seed: int) -> tuple[list[list[Row]], list[list[Row]]]:
    """Lines of a dev split, and those that are left to train on.

    A seeded fifth of the documents and conversations goes to dev as a whole, so that no text of theirs is trained on; a
    query without an origin stands for itself. Depends on neither the order of the lines nor on limits.
    """
    origins = {_origin(queries) for queries in lines}
    order = sorted(origins, key=lambda origin: (row_seed(seed, "dev", origin[0]), origin))
    chosen = set(order[: ceil(DEV_SHARE * len(order))])
    dev = [queries for queries in lines if _origin(queries) in chosen]
    return dev, [queries for queries in lines if _origin(queries) not in chosen]


def _origin(queries: list[Row]) -> tuple[str, bool]:
    """The name of a line's document, conversation or single query, and whether it is that of a query."""
    origin, query_id = queries[0]["origin"], queries[0]["query_id"]
    # Both, because a conversation and a query of one name are two things.
    return (query_id, True) if origin is None else (origin, False)


def _choose(lines: list[list[Row]], limit: int | None, seed: int, prepared: Prepared) -> list[Row]:
    """Keep `limit` queries, evenly over the lines, by a seeded order that does not depend on their number."""
    turns: list[tuple[int, int, int, int]] = []
    for line, queries in enumerate(lines):
        order = sorted((row_seed(seed, query["query_id"]), i) for i, query in enumerate(queries))
        turns.extend((turn, key, line, i) for turn, (key, i) in enumerate(order))
    kept = sorted(turns)[:limit]
    kept_lines = {line for _, _, line, _ in kept}
    prepared.rows_out += len(kept_lines)
    prepared.left_out += len(lines) - len(kept_lines)
    return sorted((lines[line][i] for _, _, line, i in kept), key=lambda query: str(query["query_id"]))


def _note_repeated(prepared: Prepared) -> None:
    """Tell of queries to evaluate on that are trained on too."""
    train = {_content(query) for query in prepared.queries.get("train", [])}
    for split in SPLITS[1:]:
        if repeated := sum(_content(query) in train for query in prepared.queries.get(split, [])):
            prepared.notes.append(f"{repeated:,} {split} queries, answers included, are training queries too")


def _content(query: Row) -> tuple[str, tuple[str, ...]]:
    return query["query"], tuple(query["answers"])


def _keep_passages(source: Source, prepared: Prepared, seed: int, documents: int) -> None:
    """Reduce the corpus to `source.passages`, and to those of kept queries where rows bring their own candidates."""
    needed: set[str] = set()
    for rows in prepared.queries.values():
        for query in rows:
            needed.update(query["positive_ids"], query["pool_ids"] or [])
    passages = prepared.passages
    kept_own = documents
    if source.passages is None:
        # Passages that rows brought along come behind those of the corpus.
        dropped = [passage_id for passage_id in islice(passages, documents, None) if passage_id not in needed]
    else:
        own_needed = sum(passage_id in needed for passage_id in islice(passages, documents))
        spare = ((row_seed(seed, each), each) for each in islice(passages, documents) if each not in needed)
        chosen = nsmallest(max(0, source.passages - own_needed), spare)
        kept = needed.union(passage_id for _, passage_id in chosen)
        dropped = [passage_id for passage_id in passages if passage_id not in kept]
        kept_own = own_needed + len(chosen)
    for passage_id in dropped:
        del passages[passage_id]
    prepared.rows_out += kept_own
    prepared.left_out += documents - kept_own
