"""Search by words: BM25 (Lucene's variant) by bm25s over a collection, and the same formula over the memtable.

bm25s scores a collection when it is built. Documents that are written later change neither its word frequencies nor its
mean length until the next compaction. Documents of the memtable are scored at once, with the frequencies of both
together. Each shard counts for itself: scores of two shards compare as well as their frequencies agree, and ids are
spread by hash.
"""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import bm25s
import numpy as np
from numpy.typing import NDArray

from embedder.errors import BundleError, DataError
from embedder.index.exact import Ranked
from embedder.index.filters import Mask
from embedder.index.manifest import REMEDY
from embedder.words import passage_words, query_words, tokenized

K1, B = 1.5, 0.75
MAX_QUERY_WORDS = 1024
"""Distinct words of a query that are looked for; those that come first count."""
MAX_QUERY_CHARACTERS = 16_384
"""Characters of a query in which they are looked for, since splitting takes time for each."""
MAX_REQUEST_WORDS = 16_384
"""Distinct words of all queries of a request together."""

QueryWords = Mapping[str, int]
"""How often each word stands in a query."""
NEVER = math.inf
"""A deadline that does not come, by `time.monotonic()`."""


def write_lexical(texts: Sequence[str], folder: Path) -> float:
    """Index texts into a folder, which is left out if they hold no words; returns the mean number of words."""
    tokens = tokenized(texts)
    if not tokens.vocab:
        return 0.0
    index = bm25s.BM25(k1=K1, b=B, method="lucene")
    index.index(tokens, show_progress=False)
    index.save(folder, show_progress=False)
    return float(np.mean([len(ids) for ids in tokens.ids]))


def words_of(queries: Sequence[str], stop_words: str | None, deadline: float = NEVER) -> list[QueryWords]:
    """The words of each query.

    Raises:
        DataError: they are too many together.
        TimeoutError: the deadline has passed.
    """
    words: list[QueryWords] = []
    left = MAX_REQUEST_WORDS
    for query in queries:
        _in_time(deadline)
        words.append(
            dict(islice(Counter(query_words(query[:MAX_QUERY_CHARACTERS], stop_words)).items(), MAX_QUERY_WORDS))
        )
        left -= len(words[-1])
        if left < 0:
            raise DataError(f"queries of more than {MAX_REQUEST_WORDS} distinct words together; send fewer at a time")
    return words


class StoredWords:
    """The words of a collection, left on disk but for the vocabulary."""

    def __init__(self, folder: Path, num_rows: int, mean_words: float) -> None:
        self.num_rows, self.mean_words = num_rows, mean_words
        self._index: bm25s.BM25 | None = None
        if folder.is_dir():
            try:
                self._index = bm25s.BM25.load(folder, mmap=True, allow_pickle=False)
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise BundleError(f"{folder}: not readable ({error}); {REMEDY}") from error

    def frequency(self, word: str) -> int:
        """Rows with that word."""
        first, last = self._extent(word)
        return last - first

    def rank(self, queries: Sequence[QueryWords], k: int, allowed: Mask | None, deadline: float = NEVER) -> Ranked:
        """The k best of the allowed rows that share a word with the query.

        Raises:
            TimeoutError: the deadline has passed.
        """
        return ranked((self._scores(words, allowed) for words in _in_turn(queries, deadline)), len(queries), k)

    def _extent(self, word: str) -> tuple[int, int]:
        """Where the rows of a word begin and end."""
        if self._index is None or word not in self._index.vocab_dict:
            return 0, 0
        word_id = self._index.vocab_dict[word]
        first, last = self._index.scores["indptr"][word_id : word_id + 2]
        return int(first), int(last)

    def _scores(self, words: QueryWords, allowed: Mask | None) -> NDArray[np.float32]:
        scores = np.zeros(self.num_rows, dtype=np.float32)
        if self._index is None:
            return scores
        data, rows = self._index.scores["data"], self._index.scores["indices"]
        # Not by bm25s, which would add a word again for each time that it stands in the query.
        for word, count in words.items():
            first, last = self._extent(word)
            scores[rows[first:last]] += np.float32(count) * data[first:last]
        return scores if allowed is None else np.where(allowed, scores, np.float32(0))


class MemtableWords:
    """The words of documents in memory, to which rows are added.

    A row that was added never changes, so that the first rows can be searched while others are added.
    """

    def __init__(self, stored: StoredWords) -> None:
        self.stored = stored
        self._texts: list[str] = []
        self._lock = threading.Lock()
        self._rows_of: dict[str, tuple[list[int], list[int]]] = {}
        """The rows of each word, ascending, and how often it stands in each."""
        self._totals = [0]
        """Words of the first 0, 1, 2, ... rows."""

    def add(self, text: str) -> None:
        """Take in the text of the next row; its words are looked at when they are first asked for."""
        self._texts.append(text)

    def scores(
        self, queries: Sequence[QueryWords], allowed: Mask, deadline: float = NEVER
    ) -> Iterator[NDArray[np.float32]]:
        """The scores of the first rows for each query; 0 for a row that is not allowed.

        Every row counts for the frequencies, replaced ones too, as it does for bm25s until the next compaction.

        Raises:
            TimeoutError: the deadline has passed.
        """
        self._look_at(len(allowed), deadline)
        num_rows = self.stored.num_rows + len(allowed)
        total = self.stored.num_rows * self.stored.mean_words + self._totals[len(allowed)]
        length_R = np.diff(self._totals[: len(allowed) + 1]) * (num_rows / max(total, 1))
        for words in _in_turn(queries, deadline):
            scores = np.zeros(len(allowed), dtype=np.float32)
            for word, count in words.items():
                rows, counts = self._rows_of.get(word, ((), ()))
                written = bisect_left(rows, len(allowed))
                frequency = self.stored.frequency(word) + written
                weight = count * math.log(1 + (num_rows - frequency + 0.5) / (frequency + 0.5))
                row, times = np.array(rows[:written], dtype=np.int64), np.array(counts[:written])
                scores[row] += weight * times / (K1 * (1 - B + B * length_R[row]) + times)
            yield np.where(allowed, scores, np.float32(0))

    def _look_at(self, num_rows: int, deadline: float) -> None:
        """Count the words of the first rows, of those that nobody has asked for yet."""
        # A lock of its own: writes and other searches of the collection go on meanwhile.
        with self._lock:
            for row in range(len(self._totals) - 1, num_rows):
                _in_time(deadline)
                words = passage_words(self._texts[row])
                for word, count in Counter(words).items():
                    rows, counts = self._rows_of.setdefault(word, ([], []))
                    # The count first, because a search that goes on sees the row as soon as it is there.
                    counts.append(count)
                    rows.append(row)
                self._totals.append(self._totals[-1] + len(words))


def _in_turn(queries: Sequence[QueryWords], deadline: float) -> Iterator[QueryWords]:
    """The queries, as long as there is time for another one."""
    for words in queries:
        _in_time(deadline)
        yield words


def _in_time(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise TimeoutError


def ranked(scores: Iterable[NDArray[np.float32]], num_queries: int, k: int) -> Ranked:
    """The k rows of each query with the highest scores above 0, ties by row."""
    score_QK = np.full((num_queries, k), -np.inf, dtype=np.float32)
    row_QK = np.full(score_QK.shape, -1, dtype=np.int64)
    # One query after the other: the scores of all rows for all queries would fill the memory.
    for i, row_scores in enumerate(scores):
        rows = np.flatnonzero(row_scores)
        if len(rows) > k:
            # A partition first, since most rows share some word with a query; ties with the last one must stay in.
            last = np.partition(row_scores[rows], len(rows) - k)[len(rows) - k]
            rows = rows[row_scores[rows] >= last]
        rows = rows[np.lexsort((rows, -row_scores[rows]))][:k]
        score_QK[i, : len(rows)], row_QK[i, : len(rows)] = row_scores[rows], rows
    return Ranked(score_QK, row_QK)
