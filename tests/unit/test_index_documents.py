"""Documents read and changed without a query: by name, counted, in order page by page, their metadata changed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.errors import DataError
from embedder.index.documents import Document
from embedder.index.filters import Filter
from embedder.index.metadata_change import MetadataChange
from embedder.index.results import EVERYTHING, Shown, stored_documents
from tests.unit.index_cases import NO_CHOICE, documents_of, ids, mutable, unit
from tests.unit.judges import quick

NAMES = [(f"d{i}", "ab"[i % 2]) for i in range(9)] + [("d1", "a"), ("ä", "b"), ("\uffff", "a"), ("𝔘", "a")]
NAME = st.sampled_from(NAMES)
OLD = Filter.model_validate({"must": [{"key": "age", "range": {"gte": 5}}]})


def made(folder, stored, written, gone):
    """A collection with stored documents, others written on top of them, and some deleted; and what it must hold."""
    random = np.random.default_rng(0)
    rows = {name: Document(id=name[0], dataset=name[1], text="old", metadata={"age": 1}) for name in stored}
    vectors = {name: unit(random, 1)[0] for name in NAMES}
    collection = mutable(folder, list(rows.values()), np.array([vectors[name] for name in rows]).reshape(-1, 8))
    for i, name in enumerate(written):
        rows[name] = Document(id=name[0], dataset=name[1], text="new", metadata={"age": i})
        vectors[name] = unit(random, 1)[0]
        collection.upsert([rows[name]], vectors[name][None])
    collection.delete(gone)
    return collection, {name: (row, vectors[name]) for name, row in sorted(rows.items()) if name not in gone}


@quick
@given(
    st.lists(NAME, unique=True, min_size=1),
    st.lists(NAME, max_size=8),
    st.lists(NAME, max_size=3),
    st.integers(1, 4),
    st.sampled_from([None, OLD]),
)
def test_pages_hold_every_document_once_in_the_order_of_names(tmp_path_factory, stored, written, gone, limit, wanted):
    collection, rows = made(tmp_path_factory.mktemp("pages"), stored, written, gone)
    expected = {name: one for name, one in rows.items() if wanted is None or one[0].metadata["age"] >= 5}
    shown = Shown(vectors=True)
    found, after = [], None
    while page := stored_documents(collection.page(after, limit, wanted, shown)):
        assert len(page) <= limit
        found += page
        after = (page[-1].id, page[-1].dataset)
    assert [(one.id, one.dataset) for one in found] == list(expected)
    assert [(one.text, one.metadata) for one in found] == [(row.text, row.metadata) for row, _ in expected.values()]
    for one, (_, vector) in zip(found, expected.values(), strict=True):
        assert np.array_equal(np.float32(one.vector), vector)
    assert collection.stats(wanted).documents == len(expected)
    named = stored_documents(collection.documents(NAMES, wanted, shown))
    assert [(one.id, one.dataset) for one in named] == [name for name in NAMES if name in expected]
    assert all(np.array_equal(np.float32(one.vector), expected[one.id, one.dataset][1]) for one in named)


def test_page_goes_on_after_a_document_that_is_gone_and_shows_what_was_written_behind_it(tmp_path):
    collection = mutable(tmp_path, documents_of("aceg"), unit(np.random.default_rng(0), 4))

    def page(after):
        return [one.id for one in stored_documents(collection.page(after, 2, None, Shown(payload=False)))]

    assert page(None) == ["a", "c"]
    collection.delete([("c", "d")])
    collection.upsert(documents_of("bf"), unit(np.random.default_rng(1), 2))
    assert page(("c", "d")) == ["e", "f"] and page(("f", "d")) == ["g"] and page(("g", "d")) == []


def test_page_of_too_many_bytes_is_refused(tmp_path):
    collection = mutable(tmp_path, documents_of("abc"), unit(np.random.default_rng(0), 3))
    for shown in (Shown(max_bytes=40), Shown(payload=False, vectors=True, max_bytes=60)):
        with pytest.raises(DataError, match="max_answer_bytes"):
            collection.page(None, 3, None, shown)
        with pytest.raises(DataError, match="max_answer_bytes"):
            collection.documents([(name, "d") for name in "abc"], None, shown)
    (one,) = stored_documents(collection.documents([("a", "d")], None, Shown(payload=False, max_bytes=1000)))
    assert (one.id, one.text, one.vector) == ("a", "", None)


def test_metadata_is_set_removed_and_overwritten_and_vectors_stay(tmp_path):
    vectors = unit(np.random.default_rng(0), 3)
    collection = mutable(tmp_path, documents_of("abc", kind="old", year=1), vectors)
    names = [(name, "d") for name in "abx"]
    assert collection.change(names, MetadataChange(set={"kind": "new"}, remove=["year"])) == 2
    assert collection.change([("c", "d")], MetadataChange(set={"only": True}, overwrite=True)) == 1
    rows = stored_documents(collection.page(None, 9, None, Shown(vectors=True)))
    assert [row.metadata for row in rows] == [{"kind": "new"}, {"kind": "new"}, {"only": True}]
    assert np.array_equal(np.float32([row.vector for row in rows]), vectors)
    assert ids(collection.search(vectors[:1], 1, NO_CHOICE)) == [["a"]]
    new = Filter.model_validate({"must": [{"key": "kind", "match": {"value": "new"}}]})
    assert collection.stats(new).documents == 2
    # What changes nothing is counted and not written again.
    operations = collection.stats().uncompacted
    assert collection.change(names, MetadataChange(set={"kind": "new"})) == 2
    assert collection.stats().uncompacted == operations
    assert collection.compact() and collection.stats(new).documents == 2


def test_fields_within_objects_are_found_stored_written_changed_and_compacted(tmp_path):
    ada, grace = {"name": "Ada"}, {"name": "Grace"}
    vectors = unit(np.random.default_rng(0), 4)
    collection = mutable(tmp_path, [*documents_of("a", by=ada), *documents_of("b", by=[ada, grace])], vectors[:2])
    collection.upsert([*documents_of("c", by={"name": ["Ada", "Alan"]}), *documents_of("d", by=grace)], vectors[2:])

    def found(name):
        wanted = Filter.model_validate({"must": [{"key": "by[].name", "match": {"value": name}}]})
        return [one.id for one in stored_documents(collection.page(None, 9, wanted, Shown(payload=False)))]

    for _ in range(2):
        assert (found("Ada"), found("Grace"), found("Alan")) == (["a", "b", "c"], ["b", "d"], ["c"])
        collection.compact()
    assert collection.change([("a", "d"), ("c", "d")], MetadataChange(set={"by": grace})) == 2
    for _ in range(2):
        assert (found("Ada"), found("Grace"), found("Alan")) == (["b"], ["a", "b", "c", "d"], [])
        collection.compact()


def test_change_and_deletion_leave_what_does_not_fit_or_belongs_to_others(tmp_path):
    rows = [*documents_of("a", who="me"), *documents_of("b", who="you"), *documents_of("c", who=["me", "you"])]
    collection = mutable(tmp_path, rows, unit(np.random.default_rng(0), 3))
    names, mine = [(name, "d") for name in "abc"], {"who": "me"}
    late = Filter.model_validate({"must": [{"key": "state", "match": {"value": "late"}}]})
    assert collection.change(names, MetadataChange(set={"state": "late"}), mine) == 1
    assert collection.change(names, MetadataChange(set={"state": "later"}), None, late) == 1
    assert collection.delete(names, mine, late) == 0 and collection.delete(names, None, late) == 0
    later = Filter.model_validate({"must": [{"key": "state", "match": {"value": "later"}}]})
    assert collection.delete(names, {"who": "you"}, later) == 0 and collection.delete(names, mine, later) == 1
    assert [one.id for one in stored_documents(collection.page(None, 9, None, EVERYTHING))] == ["b", "c"]


def test_change_that_leaves_too_many_fields_writes_nothing(tmp_path):
    collection = mutable(
        tmp_path, documents_of("ab", **{f"f{i}": i for i in range(63)}), unit(np.random.default_rng(0), 2)
    )
    with pytest.raises(DataError, match=r"document .a.: .*nothing was written"):
        collection.change([("a", "d"), ("b", "d")], MetadataChange(set={"x": 1, "y": 2}))
    assert collection.stats().uncompacted == 0
    assert json.loads(collection.page(None, 1, None, EVERYTHING)["metadata"][0].as_py()).keys() == {
        f"f{i}" for i in range(63)
    }
