"""Search by words: BM25 (Lucene's variant) by bm25s over a collection, and the same formula over the memtable.

bm25s scores a collection when it is built. Documents that are written later change neither its word frequencies nor its
mean length until the next compaction. Documents of the memtable are scored at once, with the frequencies of both
together. Each shard counts for itself: scores of two shards compare as well as their frequencies agree, and ids are
spread by hash.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import bm25s
import numpy as np
from numpy.typing import NDArray

from embedder.errors import BundleError
from embedder.index.exact import Ranked
from embedder.index.filters import Mask
from embedder.index.manifest import REMEDY
from embedder.words import passage_words, tokenized

K1, B = 1.5, 0.75


def write_lexical(texts: Sequence[str], folder: Path) -> float:
    """Index texts into a folder, which is left out if they hold no words; returns the mean number of words."""
    tokens = tokenized(texts)
    if not tokens.vocab:
        return 0.0
    index = bm25s.BM25(k1=K1, b=B, method="lucene")
    index.index(tokens, show_progress=False)
    index.save(folder, show_progress=False)
    return float(np.mean([len(ids) for ids in tokens.ids]))


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
        if self._index is None or word not in self._index.vocab_dict:
            return 0
        word_id = self._index.vocab_dict[word]
        first, last = self._index.scores["indptr"][word_id : word_id + 2]
        return int(last - first)

    def rank(self, queries: list[list[str]], k: int, allowed: Mask | None) -> Ranked:
        """The k best of the allowed rows that share a word with the query."""
        return _ranked([self._scores(words, allowed) for words in queries], k)

    def _scores(self, words: list[str], allowed: Mask | None) -> NDArray[np.float32]:
        known = [word for word in words if self.frequency(word)]
        if self._index is None or not known:
            return np.zeros(self.num_rows, dtype=np.float32)
        scores: NDArray[np.float32] = self._index.get_scores(known)
        return scores if allowed is None else np.where(allowed, scores, np.float32(0))


class MemtableWords:
    """The words of documents in memory, to which rows are added."""

    def __init__(self, stored: StoredWords) -> None:
        self.stored = stored
        self._waiting: list[str] = []
        self._counts: dict[str, dict[int, int]] = defaultdict(dict)
        self._lengths: list[int] = []

    def add(self, text: str) -> None:
        """Take in the text of the next row; its words are looked at when they are first asked for."""
        self._waiting.append(text)

    def rank(self, queries: list[list[str]], k: int, allowed: Mask) -> Ranked:
        """The k best of the allowed rows."""
        for words in map(passage_words, self._waiting):
            for word, count in Counter(words).items():
                self._counts[word][len(self._lengths)] = count
            self._lengths.append(len(words))
        self._waiting = []
        return _ranked([self._scores(words, allowed) for words in queries], k)

    def _scores(self, words: list[str], allowed: Mask) -> NDArray[np.float32]:
        """Every row that was ever added counts for the frequencies, as it does for bm25s until the next compaction."""
        scores = np.zeros(len(allowed), dtype=np.float32)
        num_rows = self.stored.num_rows + len(self._lengths)
        total = self.stored.num_rows * self.stored.mean_words + sum(self._lengths)
        for word in words:
            rows = self._counts.get(word, {})
            frequency = self.stored.frequency(word) + len(rows)
            weight = math.log(1 + (num_rows - frequency + 0.5) / (frequency + 0.5))
            for row, count in rows.items():
                if allowed[row]:
                    length = self._lengths[row] * num_rows / total
                    scores[row] += weight * count / (K1 * (1 - B + B * length) + count)
        return scores


def _ranked(scores: list[NDArray[np.float32]], k: int) -> Ranked:
    """The k rows of each query with the highest scores above 0, ties by row."""
    score_QK = np.full((len(scores), k), -np.inf, dtype=np.float32)
    row_QK = np.full(score_QK.shape, -1, dtype=np.int64)
    for i, row_scores in enumerate(scores):
        rows = np.flatnonzero(row_scores)
        if len(rows) > k:
            # A partition first, since most rows share some word with a query; ties with the last one must stay in.
            last = np.partition(row_scores[rows], len(rows) - k)[len(rows) - k]
            rows = rows[row_scores[rows] >= last]
        rows = rows[np.lexsort((rows, -row_scores[rows]))][:k]
        score_QK[i, : len(rows)], row_QK[i, : len(rows)] = row_scores[rows], rows
    return Ranked(score_QK, row_QK)
