"""What was written to a version, made in other ones: against dictionaries, over compactions, in any order."""

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
from embedder.errors import BundleError, DataError
from embedder.index.documents import Document
from embedder.index.living import MutableCollection
from embedder.index.writes import WRITES, StoredWrites, Write, lacking
from tests.unit.index_cases import WIDTH, mutable, unit
from tests.unit.judges import quick

NAMES = ["a", "b", "c"]
TEXTS = ["first", "second", "third"]
VERSIONS = range(3)
CORPUS = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(TEXTS), max_size=3)
VERSION = st.sampled_from(VERSIONS)
WRITE = st.tuples(VERSION, st.sampled_from(NAMES), st.one_of(st.none(), st.sampled_from(TEXTS)))
REPLAY = st.tuples(VERSION, VERSION)
REST = st.tuples(VERSION, st.sampled_from(["compact", "open"]))
RANDOM = np.random.default_rng(0)


def opened(folder: Path, texts: dict[str, str]) -> MutableCollection:
    documents = [document(name, text) for name, text in texts.items()]
    return mutable(folder, documents, unit(RANDOM, len(documents)))


def document(name: str, text: str) -> Document:
    """Of which the title says that it is not the only field that counts."""
    return Document(id=name, text=text, dataset="d", title=None if text == "first" else "t", metadata={"n": len(text)})


def texts_of(collection: MutableCollection) -> dict[str, str]:
    (hits,) = collection.search(unit(RANDOM, 1), 100, SearchParameters()).hits()
    return {hit.id: untitled(hit.title, hit.text) for hit in hits}


def replay(old: MutableCollection, new: MutableCollection) -> list[str]:
    """Replay as the service does; returns the names that were asked about."""
    names = lacking(old.writes(), new.writes())
    changes = old.changes(names)
    pending = new.pending_changes(changes)
    assert new.apply_changes(changes, unit(RANDOM, len(changes))) == pending
    assert new.pending_changes(changes) == []
    return [name for name, _ in names]


@dataclass
class Model:
    """What a version should hold."""

    texts: dict[str, str | None]
    writes: dict[str, tuple[int, str | None]] = field(default_factory=dict)
    """When, and what the first write found."""

    def write(self, name: str, text: str | None, time: int) -> None:
        if text is None and self.texts.get(name) is None:
            return  # what is not there cannot be deleted
        self.put(name, text, time)

    def put(self, name: str, text: str | None, time: int) -> None:
        found = self.writes[name][1] if name in self.writes else self.texts.get(name)
        self.writes[name] = (time, found)
        self.texts[name] = text

    def replay(self, other: Model) -> None:
        for name, (time, found) in self.writes.items():
            here, then = other.texts.get(name), self.texts[name]
            if other.writes[name][0] < time if name in other.writes else here == found != then:
                other.put(name, then, time)

    @property
    def live(self) -> dict[str, str]:
        return {name: text for name, text in self.texts.items() if text is not None}


@quick
@given(corpora=st.tuples(CORPUS, CORPUS, CORPUS), steps=st.lists(st.one_of(WRITE, WRITE, REPLAY, REST), max_size=14))
def test_write_that_is_later_counts_in_every_version_that_has_been_told(tmp_path_factory, corpora, steps) -> None:
    folder = tmp_path_factory.mktemp("versions")
    versions = [opened(folder / str(i), texts) for i, texts in enumerate(corpora)]
    models = [Model(dict(texts)) for texts in corpora]
    for time, step in enumerate(steps):
        match step:
            case (int(i), "compact"):
                versions[i].compact()
            case (int(i), "open"):
                versions[i] = opened(folder / str(i), {})
            case (int(i), int(j)):
                replay(versions[i], versions[j])
                models[i].replay(models[j])
            case (int(i), name, None):
                versions[i].delete([(name, "d")])
                models[i].write(name, None, time)
            case (int(i), name, text):
                versions[i].upsert([document(name, text)], unit(RANDOM, 1))
                models[i].write(name, text, time)
        assert [texts_of(version) for version in versions] == [model.live for model in models]


def test_write_that_is_last_counts_over_two_versions_and_back(tmp_path: Path) -> None:
    one, two, three = (opened(tmp_path / name, {"a": "first"}) for name in ("one", "two", "three"))
    one.upsert([document("b", "first"), document("c", "first")], unit(RANDOM, 2))
    replay(one, two)
    two.upsert([document("b", "second")], unit(RANDOM, 1))
    replay(two, three)
    three.delete([("c", "d"), ("a", "d")])
    three.compact()
    replay(three, one)
    assert texts_of(one) == {"b": "second"}
    assert replay(one, three) == replay(three, one) == []


def test_write_is_later_than_all_before_it_whatever_the_clock_says(tmp_path: Path, monkeypatch) -> None:
    one, other = opened(tmp_path / "one", {}), opened(tmp_path / "other", {})
    monkeypatch.setattr("time.time_ns", lambda: 10**18)
    one.upsert([document("a", "first")], unit(RANDOM, 1))
    replay(one, other)
    monkeypatch.setattr("time.time_ns", lambda: 10**17)
    for version in (other, one):
        version.upsert([document("a", "second")], unit(RANDOM, 1))
        assert [write["written_ns"] for write in version.writes().to_pylist()] == [10**18 + 1]
        version.compact()
        version.delete([("a", "d")])
        assert version.writes()["written_ns"].to_pylist() == [10**18 + 2]


def test_change_of_a_document_whose_corpus_has_changed_is_not_applied(tmp_path: Path) -> None:
    one, other = opened(tmp_path / "one", {"a": "first", "b": "first"}), opened(tmp_path / "other", {"a": "second"})
    one.upsert([document("a", "third"), document("b", "second"), document("c", "third")], unit(RANDOM, 3))
    assert replay(one, other) == ["a", "b", "c"]
    assert texts_of(other) == {"a": "second", "c": "third"}


def test_change_with_a_vector_that_does_not_fit_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    one, other = opened(tmp_path / "one", {"a": "first"}), opened(tmp_path / "other", {"a": "first"})
    one.upsert([document("b", "second")], unit(RANDOM, 1))
    one.delete([("a", "d")])
    changes = one.changes([("b", "d"), ("a", "d"), ("never", "d")])
    assert [change.name[0] for change in changes] == ["b", "a"]
    for vectors in (unit(RANDOM, 2, WIDTH + 1), np.full((2, WIDTH), np.nan, dtype=np.float32)):
        with pytest.raises(DataError, match="nothing was written"):
            other.apply_changes(changes, vectors)
    assert texts_of(other) == {"a": "first"}


def test_stored_writes_are_found_and_damage_is_told(tmp_path: Path) -> None:
    stored = StoredWrites(
        StoredWrites.open(tmp_path / "none").updated({("b", "e"): Write(2, None), ("b", "d"): Write(1, "x")})
    )
    assert stored.table["dataset"].to_pylist() == ["d", "e"] and stored.latest_ns == 2
    assert (stored.find(("b", "d")), stored.find(("b", "f")), stored.find(("a", "d"))) == (Write(1, "x"), None, None)
    damaged, other = tmp_path / "damaged.arrow", tmp_path / "other.arrow"
    damaged.write_bytes(b"rubbish")
    table = pa.table({"id": ["a"]})
    with pa.OSFile(str(other), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    for path in (damaged, other):
        with pytest.raises(BundleError, match=path.name):
            StoredWrites.open(path)


def test_lacking_documents_are_those_written_later_there() -> None:
    def table(**written: int) -> pa.Table:
        rows = [{"id": name, "dataset": "d", "written_ns": at} for name, at in written.items()]
        return pa.Table.from_pylist(rows, schema=WRITES)

    assert lacking(table(c=3, b=2, a=1), table(b=2, a=0, d=9)) == [("a", "d"), ("c", "d")]
    assert lacking(table(), table(a=1)) == []
