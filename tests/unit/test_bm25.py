"""BM25 over parts of a corpus against one bm25s index of all of it."""

from __future__ import annotations

from functools import reduce
from operator import add

import bm25s
import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from embedder.mining.bm25 import count_words, query_numbers, query_vocabulary, search_words, weighed
from embedder.mining.ranking import best, merge_found
from embedder.words import query_words, tokenized
from tests.unit.judges import quick

WORDS = ["red", "fox", "river", "dog", "os.path.join", "北京", "utf-8", "a", "the", "of"]


def one_index(passages, queries, pools, depth):
    """The rankings of a single bm25s index."""
    tokens = tokenized(passages.values())
    index = bm25s.BM25()
    if tokens.vocab:
        index.index(tokens, show_progress=False)
    rankings = []
    for query, pool in zip(queries, pools, strict=True):
        known = [word for word in query_words(query) if word in tokens.vocab]
        scores = index.get_scores(known).tolist() if known else [0.0] * len(passages)
        scored = dict(zip(passages, scores, strict=True))
        if pool is None:
            rankings.append(best([entry for entry in scored.items() if entry[1] > 0], depth))
        else:
            rankings.append(best([(name, scored[name]) for name in pool], depth))
    return rankings


def in_parts(passages, queries, pools, depth, parts):
    """The rankings of parts, each with the counts of all."""
    names = np.array(list(passages), dtype=object)
    vocabulary = {word: number for number, word in enumerate(query_vocabulary(queries, None))}
    counted = [
        count_words(pa.array(part, pa.string()), [passages[name] for name in part], vocabulary)
        for part in (names[n::parts].tolist() for n in range(parts))
    ]
    total = reduce(add, (counts for _, counts in counted))
    numbers = query_numbers(queries, None, vocabulary)
    found = [search_words(weighed(postings, total), numbers, pools, depth) for postings, _ in counted]
    # As tasks merge them: two at a time.
    return reduce(lambda left, right: merge_found([left, right], depth), found).rankings()


@quick
@given(seed=st.integers(0, 10**6), passages=st.integers(1, 60), parts=st.integers(1, 7), depth=st.integers(1, 30))
def test_parts_give_the_very_scores_and_rankings_of_one_index(seed, passages, parts, depth):
    random = np.random.default_rng(seed)

    def text(longest):
        return " ".join(random.choice(WORDS, random.integers(0, longest)))

    # Ids whose order differs between numbers and texts, and outside of ASCII.
    texts = {f"{random.choice(['z', 'é', 'a'])}{number}": text(25) for number in range(passages)}
    queries = [text(8) for _ in range(12)]
    pools = [
        random.choice(list(texts), random.integers(0, passages), replace=False).tolist() if number % 4 == 0 else None
        for number in range(12)
    ]
    assert in_parts(texts, queries, pools, depth, parts) == one_index(texts, queries, pools, depth)


def test_parts_without_a_word_that_is_asked_for_find_nothing():
    assert in_parts({"a": "red", "b": "fox", "c": ""}, ["zebra", ""], [None, None], 5, 3) == [[], []]


def test_ties_at_the_cut_go_by_id_across_parts():
    texts = {f"p{number:03}": "red fox" for number in reversed(range(90))}
    (found,) = in_parts(texts, ["fox"], [None], 4, 5)
    assert [name for name, _ in found] == ["p000", "p001", "p002", "p003"]
