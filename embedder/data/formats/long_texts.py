"""Cuts a long document into queries: recent text asks, the next chunk is the output, older chunks are candidates."""

from __future__ import annotations

from dataclasses import dataclass, field

from embedder.config.prepare import Source
from embedder.data.fields import Row, RowError, optional_id, optional_text, required_text
from embedder.data.records import Split
from embedder.data.rows import Prepared, passage_row, query_row
from embedder.hashing import content_id
from embedder.words import COUNTED_WORD

FEWEST_CANDIDATES = 2
"""Candidates of the first query of a document; between fewer there is nothing to choose."""


@dataclass
class LongTexts:
    """Makes the queries of the documents of one source."""

    source: Source
    _names: dict[str, tuple[str, Split]] = field(default_factory=dict)
    """The hash of each document's text and its split, by the name that its chunks have."""

    def queries(self, row: Row, split: Split, prepared: Prepared) -> list[Row]:
        """Queries of one long document: chunk j and the `recent_chunks` before it ask, chunk j+1 is the desired output.

        The recent text is always in the LLM's prompt, so candidates are what it cannot see: the `history_chunks` latest
        chunks that end before it, each with its continuation, C_i = v_i + v_{i+1} (paper, section on memory). All are
        slices of the document, and the output begins with the white space that stands before it there, so that query
        and output together are one too.

        Raises:
            RowError: the document is too short, or has the id of another one of its split.
        """
        text, title = required_text(row, "text"), optional_text(row, "title")
        given = optional_id(row, "query_id")
        chunks = self._chunks(text)
        recent = self.source.recent_chunks
        document = self._name(given, text, split, prepared)
        pairs = []
        for i in range(len(chunks) - recent - 3):
            passage_id = f"{document}#{i}"
            pair = text[chunks[i][0] : chunks[i + 1][1]]
            prepared.passages.setdefault(passage_id, passage_row(self.source, passage_id, pair, title))
            pairs.append(passage_id)
        queries = []
        for j in range(recent + FEWEST_CANDIDATES + 1, len(chunks) - 1):
            first = j - recent
            query = text[chunks[first][0] : chunks[j][1]]
            pool = pairs[max(0, first - 1 - self.source.history_chunks) : first - 1]
            answers = [text[chunks[j][1] : chunks[j + 1][1]]]
            known = {"answers": answers, "pool_ids": pool, "origin": document}
            queries.append(query_row(self.source, f"{document}#{j}", query, **known))
        return queries

    def _chunks(self, text: str) -> list[tuple[int, int]]:
        """Beginning and end of each chunk; the last one may have fewer words.

        Raises:
            RowError: they are too few for a single query.
        """
        spans = [match.span() for match in COUNTED_WORD.finditer(text)]
        size, recent = self.source.chunk_words, self.source.recent_chunks
        chunks = [(spans[i][0], spans[min(i + size, len(spans)) - 1][1]) for i in range(0, len(spans), size)]
        # Older chunks for the candidates, the recent ones, the one that asks and the next.
        least = FEWEST_CANDIDATES + 1 + recent + 2
        if len(chunks) < least:
            raise RowError(
                f"only {len(chunks)} chunks of {size} words; with {recent} recent chunks a long text needs at least "
                f"{least}: lower chunk_words or recent_chunks of the source, or leave the text out"
            )
        return chunks

    def _name(self, given: str | None, text: str, split: Split, prepared: Prepared) -> str:
        """The name of a document's chunks: its id, or its content where that id is taken by another table's row."""
        content = content_id(text)
        name = given or content
        known, of_split = self._names.get(name, (content, split))
        if known != content and of_split == split:
            raise RowError(f"query_id {name!r} was seen before, with another text")
        if known != content or (name not in self._names and f"{name}#0" in prepared.passages):
            name = content
        self._names.setdefault(name, (content, split))
        return name
