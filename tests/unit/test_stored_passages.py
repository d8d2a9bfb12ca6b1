"""Passages in a file while a source is read: as a dict, in the same order."""

from __future__ import annotations

from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.data.stored_passages import StoredPassages
from embedder.errors import StorageError
from tests.unit.judges import quick

IDS = st.sampled_from(["a", "é", "7", "a b", "\U0001f98a"])
ROWS = st.fixed_dictionaries({"text": st.text(st.characters(exclude_categories=["Cs"])), "title": st.none()})
CHANGES = st.lists(st.tuples(st.sampled_from(["first", "set", "delete"]), IDS, ROWS), max_size=30)


@quick
@given(changes=CHANGES)
def test_stored_passages_are_those_of_a_dict(tmp_path_factory, changes):
    stored, expected = StoredPassages(tmp_path_factory.mktemp("stored") / "nq.sqlite"), {}
    for change, key, row in changes:
        if change == "first":
            is_new = key not in expected
            found = stored.setdefault(key, row)
            assert found == expected.setdefault(key, row)
            assert (found is row) == is_new
        elif change == "set":
            stored[key] = expected[key] = row
        elif key in expected:
            del stored[key], expected[key]
        assert (key in stored, stored.get(key)) == (key in expected, expected.get(key))
    assert list(stored.items()) == list(expected.items())
    assert (len(stored), bool(stored)) == (len(expected), bool(expected))
    stored.close()


def test_stored_passages_of_a_killed_process_are_not_found_and_the_file_is_removed(tmp_path):
    StoredPassages(tmp_path / "nq.sqlite")["a"] = {"text": "left behind"}
    stored = StoredPassages(tmp_path / "nq.sqlite")
    assert list(stored) == []
    stored.close()
    assert list(tmp_path.iterdir()) == []


def test_stored_passages_on_a_full_disk_are_one_line_with_the_place(tmp_path):
    stored = StoredPassages(tmp_path / "nq.sqlite")
    stored._rows.execute("PRAGMA max_page_count = 20")
    with pytest.raises(StorageError, match=r"nq\.sqlite: database or disk is full; make room"):
        for number in range(1000):
            stored[str(number)] = {"text": "red fox " * 100}


def test_stored_passages_lack_what_was_never_there(tmp_path):
    stored = StoredPassages(tmp_path / "nq.sqlite")
    with pytest.raises(KeyError):
        stored["a"]
    with pytest.raises(KeyError):
        del stored["a"]


@pytest.mark.parametrize("name", ["a#b", "what?", "50%25", "ä b"])
def test_file_lies_where_its_path_says(tmp_path, name):
    path = tmp_path / name / "d.sqlite"
    with closing(StoredPassages(path)) as passages:
        passages["p"] = {"text": "x"}
        assert path.is_file() and list(tmp_path.iterdir()) == [path.parent]
