"""BM25 (Lucene's variant, k1 1.5, b 0.75) over parts of a corpus, with the frequencies of the whole.

Each part counts the words that queries ask for; the counts are added up; each part then weighs its words with the sum
and ranks its passages. So a score is that of one index of all passages, to the last bit, and nothing but the counts of
words has the size of the whole.

P passages of a part, W words of the queries, N postings (a word in a passage), Q queries, K results.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.sparse import csr_array

from embedder.index.lexical import K1, B
from embedder.mining.ranking import Found, Ranking
from embedder.words import passage_words, query_words

QUERIES_AT_ONCE = 32
"""Queries whose scores are held at once, of 80,000 passages 20 MB."""
QueryNumbers = list[int]
"""The words of a query as numbers, in their order; one that stands there twice is there twice."""


@dataclass(frozen=True)
class WordCounts:
    """Counts that BM25 needs of all passages together."""

    num_passages: int
    num_words: int
    holders_W: NDArray[np.int64]
    """Passages that hold each word."""

    def __add__(self, other: WordCounts) -> WordCounts:
        return WordCounts(
            self.num_passages + other.num_passages,
            self.num_words + other.num_words,
            self.holders_W + other.holders_W,
        )


@dataclass(frozen=True)
class Postings:
    """Which passages of a part hold which word, and how often, or with which weight."""

    ids: pa.Array
    """Of the passages, ascending: equal scores go by place."""
    length_P: NDArray[np.int64]
    first_W: NDArray[np.int64]
    """Where the postings of each word begin, and at the end their number (W + 1)."""
    passage_N: NDArray[np.int32]
    value_N: NDArray[np.float32]
    """How often the word stands in the passage; after `weighed` what it adds to the score."""


def query_vocabulary(queries: Iterable[str], stop_words: str | None) -> list[str]:
    """The distinct words of queries, ascending."""
    return sorted({word for query in queries for word in query_words(query, stop_words)})


def query_numbers(queries: Iterable[str], stop_words: str | None, vocabulary: Mapping[str, int]) -> list[QueryNumbers]:
    """The words of each query as numbers; those that the vocabulary lacks are left out."""
    return [_numbers(query_words(query, stop_words), vocabulary) for query in queries]


def _numbers(words: Iterable[str], vocabulary: Mapping[str, int]) -> list[int]:
    return [number for number in map(vocabulary.get, words) if number is not None]


def count_words(ids: pa.Array, texts: Iterable[str], vocabulary: Mapping[str, int]) -> tuple[Postings, WordCounts]:
    """Count the words of a part's passages; only those of the vocabulary get postings."""
    order = pc.sort_indices(ids).to_numpy()
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    length_P = np.zeros(len(order), dtype=np.int64)
    keys = []
    for number, text in zip(place.tolist(), texts, strict=True):
        words = passage_words(text)
        length_P[number] = len(words)
        keys.append(np.array(_numbers(words, vocabulary), dtype=np.int64) * len(order) + number)
    # By word and then by passage, as a search reads them.
    key_N, count_N = np.unique(np.concatenate(keys) if keys else np.empty(0, dtype=np.int64), return_counts=True)
    word_N, passage_N = np.divmod(key_N, max(1, len(order)))
    first_W = np.searchsorted(word_N, np.arange(len(vocabulary) + 1))
    counts = WordCounts(len(order), int(length_P.sum()), np.diff(first_W))
    sorted_ids = ids.take(pa.array(order))
    return Postings(sorted_ids, length_P, first_W, passage_N.astype(np.int32), count_N.astype(np.float32)), counts


def weighed(postings: Postings, total: WordCounts) -> Postings:
    """The same postings with what each adds to a score, by the counts of all parts."""
    weight_W = _idf(total)
    mean = total.num_words / max(1, total.num_passages)
    # In float64 and in this order, as bm25s does: the scores are then its own to the last bit.
    norm_P = K1 * ((1 - B) + B * postings.length_P / (mean or 1))
    count_N = postings.value_N
    share_N = count_N / (norm_P[postings.passage_N] + count_N)
    value_N = np.repeat(weight_W, np.diff(postings.first_W)) * share_N
    return Postings(postings.ids, postings.length_P, postings.first_W, postings.passage_N, value_N.astype(np.float32))


def _idf(total: WordCounts) -> NDArray[np.float32]:
    holders, where = np.unique(total.holders_W, return_inverse=True)
    # By `math`, which rounds otherwise than NumPy in a few cases.
    weights = [math.log(1 + (total.num_passages - count + 0.5) / (count + 0.5)) for count in holders.tolist()]
    return np.array(weights, dtype=np.float32)[where]


def search_words(
    postings: Postings, queries: Sequence[QueryNumbers], pools: Sequence[Sequence[str] | None], depth: int
) -> Found:
    """The `depth` best passages of a part for each query; a pool limits them to its ids, and keeps scores of 0."""
    score_QK = np.full((len(queries), depth), -np.inf, dtype=np.float32)
    row_QK = np.full(score_QK.shape, -1, dtype=np.int64)
    for query, (places, scores) in enumerate(_each_score(postings, queries)):
        pool = pools[query]
        if pool is not None:
            # A query's own passages are candidates even if they share no word with it; those of a corpus are not.
            own = pc.index_in(pa.array(pool, pa.string()), postings.ids).drop_null().unique().to_numpy()
            score_P = np.zeros(len(postings.ids), dtype=np.float32)
            score_P[places] = scores
            places, scores = own, score_P[own]
        elif len(scores) > depth:
            # A partition first, since most passages share some word; ties with the last one must stay in.
            kept = scores >= np.partition(scores, len(scores) - depth)[len(scores) - depth]
            places, scores = places[kept], scores[kept]
        order = np.lexsort((places, -scores))[:depth]
        score_QK[query, : len(order)], row_QK[query, : len(order)] = scores[order], places[order]
    return Found(score_QK, row_QK, postings.ids).compact()


def _each_score(
    postings: Postings, queries: Sequence[QueryNumbers]
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float32]]]:
    """For each query the passages that share a word with it, in any order, and their scores."""
    shape = (len(postings.first_W) - 1, len(postings.ids))
    value_WP = csr_array((postings.value_N, postings.passage_N, postings.first_W.astype(np.int32)), shape=shape)
    for first in range(0, len(queries), QUERIES_AT_ONCE):
        own = queries[first : first + QUERIES_AT_ONCE]
        words = np.array([number for numbers in own for number in numbers], dtype=np.int32)
        ends = np.cumsum([0, *map(len, own)], dtype=np.int32)
        # A word that stands twice in a query is there twice. The product adds up word by word, as the query has them,
        # which is the order of bm25s; sums of float32 depend on it.
        count_QW = csr_array((np.ones(len(words), dtype=np.float32), words, ends), shape=(len(own), shape[0]))
        score_QP = count_QW @ value_WP
        for begin, end in pairwise(score_QP.indptr.tolist()):
            yield score_QP.indices[begin:end], score_QP.data[begin:end]


class LexicalIndex:
    """All passages as one part, for searches in one process."""

    def __init__(self, ids: Sequence[str], texts: Sequence[str], stop_words: str | None = None) -> None:
        self.stop_words = stop_words
        words = sorted({word for text in texts for word in passage_words(text)})
        self._vocabulary = {word: number for number, word in enumerate(words)}
        self._postings = weighed(*count_words(pa.array(ids, pa.string()), texts, self._vocabulary))

    def search(self, queries: Sequence[str], pools: Sequence[list[str] | None], depth: int) -> list[Ranking]:
        """The `depth` best passages of each query; a pool limits them to its ids, and keeps scores of 0."""
        numbers = query_numbers(queries, self.stop_words, self._vocabulary)
        return search_words(self._postings, numbers, pools, depth).rankings()
