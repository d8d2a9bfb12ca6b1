"""What was written to a version, made in another one: against dictionaries, over folds, in any order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.errors import DataError
from embedder.index.changes import Change
from embedder.index.documents import Document
from embedder.index.living import LivingCollection
from embedder.index.settings import SearchParameters
from tests.unit.index_cases import WIDTH, living, unit
from tests.unit.judges import quick

NAMES = ["a", "b", "c", "d", "e"]
TEXTS = ["first", "second", "third"]
Texts = dict[str, str]
CORPUS = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(TEXTS), max_size=4)
STEP = st.tuples(st.sampled_from(NAMES), st.one_of(st.none(), st.sampled_from(TEXTS)))
STEPS = st.lists(st.one_of(STEP, st.just("fold")), max_size=8)
RANDOM = np.random.default_rng(0)


def opened(folder: Path, texts: Texts) -> LivingCollection:
    documents = [document(name, text) for name, text in texts.items()]
    return living(folder, documents, unit(RANDOM, len(documents)))


def document(name: str, text: str) -> Document:
    """Of which the title says that it is not the only field that counts."""
    return Document(id=name, text=text, dataset="d", title=None if text == "first" else "t", metadata={"n": len(text)})


def write(collection: LivingCollection, texts: Texts, steps: list) -> None:
    """Do what the steps say to the collection, and to a dictionary."""
    for step in steps:
        if step == "fold":
            collection.fold()
            continue
        name, text = step
        if text is None:
            collection.delete([(name, "d")])
            texts.pop(name, None)
        else:
            collection.upsert([document(name, text)], unit(RANDOM, 1))
            texts[name] = text


def texts_of(collection: LivingCollection) -> Texts:
    found = collection.search(unit(RANDOM, 1), 100, SearchParameters())
    return {hit.id: hit.text for hit in found.hits()[0]}


def carry(old: LivingCollection, new: LivingCollection, told: dict) -> list[Change]:
    changes = old.changes(told)
    new.carry(changes, unit(RANDOM, len(changes)))
    told.update({change.name: change.after for change in changes})
    return changes


@quick
@given(old=CORPUS, new=CORPUS, steps=STEPS, more=STEPS)
def test_changes_are_made_where_nobody_else_has_changed_the_document(tmp_path_factory, old, new, steps, more) -> None:
    folder = tmp_path_factory.mktemp("carried")
    one, other = opened(folder / "old", old), opened(folder / "new", new)
    now, expected, told = dict(old), dict(new), {}
    for each in (steps, more):
        before = dict(now)
        write(one, now, each)
        expects = {name: old.get(name) for name in NAMES} if each is steps else before
        for name in NAMES:
            if now.get(name) != expects.get(name) and expected.get(name) == expects.get(name):
                expected = {**expected, name: now[name]} if name in now else without(expected, name)
        carry(one, other, told)
        assert texts_of(other) == expected
    assert one.changes(told) == []
    assert texts_of(LivingCollection(folder / "new" / "bundled", folder / "new" / "state", other.place)) == expected


def without(texts: Texts, name: str) -> Texts:
    return {key: text for key, text in texts.items() if key != name}


def test_what_was_written_in_the_new_version_stays(tmp_path: Path) -> None:
    one, other = opened(tmp_path / "old", {"a": "first"}), opened(tmp_path / "new", {"a": "first"})
    one.upsert([document("a", "second"), document("b", "second"), document("c", "second")], unit(RANDOM, 3))
    other.upsert([document("b", "third")], unit(RANDOM, 1))
    told: dict = {}
    assert [change.name[0] for change in carry(one, other, told)] == ["a", "b", "c"]
    assert texts_of(other) == {"a": "second", "b": "third", "c": "second"}
    other.delete([("c", "d")])
    one.upsert([document("a", "third")], unit(RANDOM, 1))
    assert [change.name[0] for change in carry(one, other, told)] == ["a"]
    assert texts_of(other) == {"a": "third", "b": "third"}


def test_vectors_that_do_not_fit_change_nothing(tmp_path: Path) -> None:
    one, other = opened(tmp_path / "old", {"a": "first"}), opened(tmp_path / "new", {"a": "first"})
    one.upsert([document("b", "second")], unit(RANDOM, 1))
    one.delete([("a", "d")])
    for vectors in (unit(RANDOM, 2, WIDTH + 1), np.full((2, WIDTH), np.nan, dtype=np.float32)):
        with pytest.raises(DataError, match="nothing was written"):
            other.carry(one.changes({}), vectors)
    assert texts_of(other) == {"a": "first"}
