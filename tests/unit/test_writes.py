"""What is written through any version of an index: one log, against dictionaries, over compactions and folds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.config.index import SearchParameters
from embedder.data.rows import untitled
from embedder.errors import BundleError, ConfigError, DataError
from embedder.index.documents import Document
from embedder.index.living import MutableCollection
from embedder.index.metadata_change import MetadataChange
from embedder.index.writes import StoredWrites, Write
from tests.unit.index_cases import mutable, unit
from tests.unit.judges import quick

NAMES = ["a", "b", "c"]
TEXTS = ["first", "second", "third"]
SPACES = ["s", "s", "other"]
"""Of three versions, so that the last one needs vectors of its own for what the others write."""
CORPUS = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(TEXTS), max_size=3)
VERSION = st.sampled_from(range(3))
WRITE = st.tuples(VERSION, st.sampled_from(NAMES), st.one_of(st.none(), st.sampled_from(TEXTS)))
REST = st.tuples(VERSION, st.sampled_from(["compact", "open", "encode", "fold"]))
RANDOM = np.random.default_rng(0)


def opened(folder: Path, texts: dict[str, str], version: int = 0) -> MutableCollection:
    """A version whose log lies beside the folders of all versions."""
    documents = [document(name, text) for name, text in texts.items()]
    return mutable(folder, documents, unit(RANDOM, len(documents)), folder.parent, SPACES[version])


def document(name: str, text: str) -> Document:
    """Of which the title says that it is not the only field that counts."""
    return Document(id=name, text=text, dataset="d", title=None if text == "first" else "t", metadata={"n": len(text)})


def texts_of(collection: MutableCollection) -> dict[str, str]:
    (hits,) = collection.search(unit(RANDOM, 1), 100, SearchParameters()).hits()
    return {hit.id: untitled(hit.title, hit.text) for hit in hits}


def encode(collection: MutableCollection) -> list[str]:
    """Give what waits its vectors; returns the names."""
    waiting = [(name, one.number) for name, one in collection.waiting(100)]
    if waiting:
        collection.put_vectors(waiting, unit(RANDOM, len(waiting)))
    return sorted(name for (name, _), _ in waiting)


@dataclass
class Operation:
    """A write, or for None a deletion, with what the writer's corpus holds and the spaces that it has vectors of."""

    name: str
    text: str | None
    replaced: str | None
    spaces: set[str] = field(default_factory=set)


@dataclass
class Model:
    """The log, and what a version with a corpus and a space should show."""

    log: list[Operation] = field(default_factory=list)

    def shown(self, corpus: dict[str, str], space: str | None) -> tuple[dict[str, str], list[Operation]]:
        """The texts, and the operations that wait; with None as if all vectors were there."""
        texts, counted, waiting = dict(corpus), set[str](), dict[str, Operation]()
        for one in self.log:
            if one.name not in counted and corpus.get(one.name) != one.replaced:
                continue
            counted.add(one.name)
            waiting.pop(one.name, None)
            if one.text is None:
                texts.pop(one.name, None)
            elif space is None or space in one.spaces:
                texts[one.name] = one.text
            else:
                waiting[one.name] = one
                texts.pop(one.name, None)
        return texts, list(waiting.values())


@quick
@given(corpora=st.tuples(CORPUS, CORPUS, CORPUS), steps=st.lists(st.one_of(WRITE, WRITE, REST), max_size=14))
def test_versions_show_what_the_order_of_the_log_and_their_corpus_say(tmp_path_factory, corpora, steps) -> None:
    folder, model = tmp_path_factory.mktemp("versions"), Model()
    versions = [opened(folder / str(i), texts, i) for i, texts in enumerate(corpora)]
    for step in steps:
        match step:
            case (int(i), "compact"):
                versions[i].compact()
            case (int(i), "open"):
                versions[i] = opened(folder / str(i), {}, i)
            case (int(i), "fold"):
                versions[i].fold(at_once=True)
            case (int(i), "encode"):
                encode(versions[i])
                for one in model.shown(corpora[i], SPACES[i])[1]:
                    one.spaces.add(SPACES[i])
            case (int(i), name, None):
                # What is not there cannot be deleted.
                if versions[i].delete([(name, "d")]):
                    assert name in model.shown(corpora[i], None)[0]
                    model.log.append(Operation(name, None, corpora[i].get(name)))
                else:
                    assert name not in model.shown(corpora[i], SPACES[i])[0]
            case (int(i), name, text):
                versions[i].upsert([document(name, text)], unit(RANDOM, 1))
                model.log.append(Operation(name, text, corpora[i].get(name), {SPACES[i]}))
        expected = [model.shown(corpus, space)[0] for corpus, space in zip(corpora, SPACES, strict=True)]
        assert [texts_of(version) for version in versions] == expected
    assert [texts_of(opened(folder / str(i), {}, i)) for i in range(3)] == [texts_of(version) for version in versions]


def test_write_counts_in_every_version_and_a_later_one_wins(tmp_path: Path) -> None:
    one, two = (opened(tmp_path / name, {"a": "first"}) for name in ("one", "two"))
    one.upsert([document("b", "first"), document("c", "first")], unit(RANDOM, 2))
    two.upsert([document("b", "second")], unit(RANDOM, 1))
    one.delete([("c", "d"), ("a", "d")])
    two.compact()
    assert texts_of(one) == texts_of(two) == {"b": "second"}


def test_write_to_a_document_whose_corpus_has_changed_does_not_count(tmp_path: Path) -> None:
    one, other = opened(tmp_path / "one", {"a": "first", "b": "first"}), opened(tmp_path / "other", {"a": "second"})
    one.upsert([document("a", "third"), document("b", "second"), document("c", "third")], unit(RANDOM, 3))
    assert texts_of(other) == {"a": "second", "c": "third"}
    other.upsert([document("a", "first")], unit(RANDOM, 1))
    one.upsert([document("a", "second")], unit(RANDOM, 1))
    assert texts_of(one)["a"] == texts_of(other)["a"] == "second"


def test_write_waits_for_a_vector_of_the_versions_own_space(tmp_path: Path) -> None:
    one, other = opened(tmp_path / "one", {"a": "first"}), opened(tmp_path / "other", {"a": "first"}, version=2)
    one.upsert([document("a", "second"), document("b", "second")], unit(RANDOM, 2))
    assert texts_of(other) == {}
    with pytest.raises(ConfigError, match="not encoded for this version yet"):
        other.freeze()
    with pytest.raises(DataError, match="is being encoded"):
        other.change([("b", "d")], MetadataChange(set={"n": 1}))
    assert other.compact() == 0 and other.delete([("b", "d")]) == 1
    assert encode(other) == ["a"] and encode(other) == []
    assert texts_of(other) == texts_of(one) == {"a": "second"}
    assert other.compact() == 1 and texts_of(opened(tmp_path / "other", {}, version=2)) == {"a": "second"}


def test_text_that_a_model_fails_on_is_not_in_the_version(tmp_path: Path) -> None:
    one, other = opened(tmp_path / "one", {"a": "first"}), opened(tmp_path / "other", {"a": "first"}, version=2)
    one.upsert([document("a", "second"), document("b", "second")], unit(RANDOM, 2))
    waiting = [(name, one.number) for name, one in other.waiting(9)]
    other.put_vectors(waiting, np.full((2, 8), np.nan))
    assert texts_of(other) == {} and not other.waiting(9)
    one.fold(at_once=True)
    again = opened(tmp_path / "other", {}, version=2)
    assert texts_of(again) == {} and not again.waiting(9)
    one.upsert([document("a", "third")], unit(RANDOM, 1))
    assert encode(again) == ["a"] and texts_of(again) == {"a": "third"}


def test_changes_made_at_once_by_two_processes_are_both_kept(tmp_path: Path, monkeypatch) -> None:
    """A change is made of what is there; where another one came first, it is made again of that."""
    one, other = opened(tmp_path / "one", {"a": "first"}), opened(tmp_path / "other", {"a": "first"})
    append, raced = one._log.append_next, []

    def after_the_other(*arguments):
        if not raced:
            raced.append(other.change([("a", "d")], MetadataChange(set={"theirs": 1})))
        return append(*arguments)

    monkeypatch.setattr(one._log, "append_next", after_the_other)
    assert one.change([("a", "d")], MetadataChange(set={"mine": 1})) == 1 and raced == [1]
    (hit,) = one.search(unit(RANDOM, 1), 1, SearchParameters()).hits()[0]
    assert hit.metadata == {"n": 5, "theirs": 1, "mine": 1}


def test_stored_writes_are_found_and_damage_is_told(tmp_path: Path) -> None:
    stored = StoredWrites(
        StoredWrites.open(tmp_path / "none").updated({("b", "e"): Write(None), ("b", "d"): Write("x")})
    )
    assert stored.table["dataset"].to_pylist() == ["d", "e"]
    assert (stored.find(("b", "d")), stored.find(("b", "f")), stored.find(("b", "e"))) == (
        Write("x"),
        None,
        Write(None),
    )
    damaged, other = tmp_path / "damaged.arrow", tmp_path / "other.arrow"
    damaged.write_bytes(b"rubbish")
    table = pa.table({"id": ["a"]})
    with pa.OSFile(str(other), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    for path in (damaged, other):
        with pytest.raises(BundleError, match=path.name):
            StoredWrites.open(path)
