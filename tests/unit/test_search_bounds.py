"""What one search may cost: words of its queries, time, bytes of its hits; and that nothing waits for it meanwhile."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from embedder.errors import DataError
from embedder.index import lexical
from embedder.index.documents import Document
from embedder.index.filters import Filter
from embedder.index.lexical import MAX_QUERY_WORDS, MAX_REQUEST_WORDS, StoredWords, words_of
from embedder.index.metadata_index import MemtableMetadata, StoredMetadata
from embedder.index.results import ROWS_AT_ONCE, Shown
from tests.unit.index_cases import NO_CHOICE, WIDTH, documents_of, ids, mutable, unit

LETTERS = str.maketrans("0123456789", "abcdefghij")


def different_words(count, first=0):
    # Of letters alone, since `w1` would be two words.
    return " ".join(f"{i:06}".translate(LETTERS) for i in range(first, first + count))


@pytest.fixture
def collection(tmp_path):
    """Two documents that are stored and one that was written."""
    vectors = unit(np.random.default_rng(0), 3)
    made = mutable(tmp_path, documents_of("ab"), vectors[:2])
    made.upsert([Document(id="c", text="text of c", metadata={"year": 1})], vectors[2:])
    return made


def test_query_is_searched_for_its_first_words_and_a_request_for_so_many_in_all(collection):
    (words,) = words_of([different_words(MAX_QUERY_WORDS + 10)], None)
    assert list(words) == different_words(MAX_QUERY_WORDS).split()
    assert words_of(["a b a"], None) == [{"a": 2, "b": 1}]
    assert ids(collection.search_words([f"{different_words(MAX_QUERY_WORDS - 1)} text"], 5)) == [["a", "b", "c"]]
    assert ids(collection.search_words([f"{different_words(MAX_QUERY_WORDS)} text"], 5)) == [[]]
    full = [different_words(MAX_QUERY_WORDS, first=1000 * i) for i in range(MAX_REQUEST_WORDS // MAX_QUERY_WORDS)]
    assert len(collection.search_words(full, 5).hits()) == len(full)
    with pytest.raises(DataError, match="send fewer at a time"):
        collection.search_words([*full, "one"], 5)


def test_search_by_words_looks_at_its_deadline_before_each_query(collection, monkeypatch):
    with pytest.raises(TimeoutError):
        collection.search_words(["text"], 5, deadline=time.monotonic() - 1)
    clock = iter(range(100))
    # In place of the module, since other threads of this process look at the true clock meanwhile.
    monkeypatch.setattr(lexical, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    # Three looks while the queries are split, then one before each that is ranked.
    with pytest.raises(TimeoutError):
        collection.search_words(["text"] * 3, 5, deadline=4)
    assert next(clock) == 6


@pytest.mark.parametrize("filtered", [True, False], ids=["filter", "words"])
def test_search_holds_no_lock_while_it_filters_and_ranks(collection, monkeypatch, filtered):
    done = threading.Event()

    def looks(method):
        def slow(self, *arguments):
            # Writes and health checks of another thread go on in the middle of a search.
            threading.Thread(target=lambda: (collection.upsert(new, vector), collection.stats(), done.set())).start()
            assert done.wait(30)
            return method(self, *arguments)

        return slow

    new, vector = documents_of("d"), np.ones((1, WIDTH), dtype=np.float32)
    owner, name = (StoredMetadata, "equal") if filtered else (StoredWords, "_scores")
    monkeypatch.setattr(owner, name, looks(getattr(owner, name)))
    year = Filter.model_validate({"must_not": [{"key": "year", "match": {"value": 2}}]}) if filtered else None
    # What was written meanwhile is in the next search, not in half of this one.
    assert ids(collection.search_words(["text"], 5, year)) == [["a", "b", "c"]]
    assert done.is_set()
    monkeypatch.undo()
    assert ids(collection.search_words(["text"], 5)) == [["a", "b", "c", "d"]]


def test_memtable_is_searched_while_others_write_to_it(tmp_path):
    collection = mutable(tmp_path, [], np.empty((0, WIDTH), dtype=np.float32))
    is_done = threading.Event()
    wanted = Filter.model_validate(
        {"should": [{"key": "n", "range": {"gte": 0}}, {"key": "m", "match": {"except": [1]}}]}
    )

    def write():
        for i in range(150):
            row = Document(id=f"{i:03}", text=f"text {i}", metadata={"n": i, f"m{i}": i})
            collection.upsert([row], unit(np.random.default_rng(i), 1))
        is_done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = 0
    while not is_done.is_set():
        (found,) = ids(collection.search_words(["text"], 200, wanted))
        assert found == sorted(found) == [f"{i:03}" for i in range(len(found))] and len(found) >= seen
        seen = len(found)
    writer.join()
    assert len(ids(collection.search_words(["text"], 200, wanted))[0]) == 150


def test_memtable_metadata_of_the_first_rows_stays_as_it_was():
    memtable = MemtableMetadata()
    memtable.add("a", "", '{"f":1}')
    first = memtable.first(1)
    memtable.add("b", "", '{"f":1,"g":2}')
    assert (first.equal("f", 1).tolist(), first.having("f").tolist(), first.having("g").tolist()) == ([0], [0], [])
    assert memtable.equal("f", 1).tolist() == [0, 1]


@pytest.mark.parametrize("written", [True, False], ids=["memtable", "stored"])
def test_hits_are_fetched_up_to_a_number_of_bytes_or_by_name_alone(tmp_path, written):
    rows = [Document(id=f"{i:03}", text="x" * 1000, title="t", metadata={"a": 1}) for i in range(2 * ROWS_AT_ONCE)]
    vectors = unit(np.random.default_rng(0), len(rows))
    collection = mutable(tmp_path, [] if written else rows, vectors[: 0 if written else None])
    if written:
        collection.upsert(rows, vectors)
    query = vectors[:1]
    whole = collection.search(query, len(rows), NO_CHOICE)
    assert whole.table.equals(collection.search(query, len(rows), NO_CHOICE, shown=Shown(max_bytes=10**6)).table)
    with pytest.raises(DataError, match=r"serve\.max_answer_bytes; ask for less: fewer queries, a smaller k or limit"):
        collection.search(query, len(rows), NO_CHOICE, shown=Shown(max_bytes=100_000))
    bare = collection.search(query, len(rows), NO_CHOICE, shown=Shown(payload=False, max_bytes=100_000))
    assert bare.table.select(["query", "score", "id", "dataset"]).equals(
        whole.table.select(["query", "score", "id", "dataset"])
    )
    assert {(hit.text, hit.title or "", str(hit.metadata)) for hit in bare.hits()[0]} == {("", "", "{}")}
