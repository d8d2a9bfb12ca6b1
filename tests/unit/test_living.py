"""The mutable collection against a dictionary and brute force; what kills, damage and other processes do to it."""

from __future__ import annotations

import json
import os
import threading
import zlib

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from embedder.errors import BundleError, DataError
from embedder.index import living as living_module
from embedder.index.compaction import write_compacted
from embedder.index.documents import Document
from embedder.index.exact import pair_scores
from embedder.index.filters import equals
from embedder.index.log import Log
from tests.unit.index_cases import NO_CHOICE, WIDTH, documents_of, ids, mutable, unit

IDS = st.sampled_from([f"p{i}" for i in range(12)])
DATASETS = st.sampled_from(["", "d"])
TAGS = st.sampled_from(["x", "y"])
NAMES = st.tuples(IDS, DATASETS)
VECTORS = unit(np.random.default_rng(5), 6)
"""Few, so that documents tie."""


class CollectionMachine(RuleBasedStateMachine):
    """Writes, deletions, compactions and restarts in any order; a second reader follows at its own pace."""

    folder = None

    @initialize(names=st.lists(NAMES, unique=True, max_size=6), choice=st.integers(0, 5))
    def build(self, names, choice):
        self.model = {}
        documents = [Document(id=name, dataset=dataset, text="base", metadata={"tag": "x"}) for name, dataset in names]
        vectors = VECTORS[[(choice + i) % 6 for i in range(len(names))]]
        self.path = CollectionMachine.folder.mktemp("collection")
        self.index = mutable(self.path, documents, vectors, lexical=False)
        self.other = mutable(self.path, [], VECTORS[:0])
        self.model = {one.name: ("base", "x", vector) for one, vector in zip(documents, vectors, strict=True)}

    @rule(written=st.lists(st.tuples(NAMES, TAGS, st.integers(0, 5)), min_size=1, max_size=4), by_other=st.booleans())
    def upsert(self, written, by_other):
        documents = [
            Document(id=name, dataset=dataset, text=f"{tag}{place}", metadata={"tag": tag})
            for (name, dataset), tag, place in written
        ]
        vectors = VECTORS[[place for _, _, place in written]]
        (self.other if by_other else self.index).upsert(documents, vectors)
        for one, vector in zip(documents, vectors, strict=True):
            self.model[one.name] = (one.text, one.metadata["tag"], vector)

    @rule(names=st.lists(NAMES, min_size=1, max_size=3))
    def delete(self, names):
        present = {name for name in names if name in self.model}
        assert self.index.delete(names) == len(present)
        for name in present:
            del self.model[name]

    @rule(by_other=st.booleans())
    def compact(self, by_other):
        (self.other if by_other else self.index).compact()

    @rule()
    def adopt(self):
        self.other.adopt()

    @rule()
    def restart(self):
        self.index = mutable(self.path, [], VECTORS[:0])

    @invariant()
    def answers_are_those_of_brute_force(self):
        if not hasattr(self, "model"):
            return
        query = VECTORS[:1] + np.float32(0.1)
        for tag in (None, "x", "y"):
            wanted = [(name, one) for name, one in self.model.items() if tag in (None, one[1])]
            scores = [float(pair_scores(query, vector[None])[0]) for _, (_, _, vector) in wanted]
            best = sorted(zip(scores, wanted, strict=True), key=lambda pair: (-pair[0], pair[1][0]))[:5]
            expected = [(name[0], name[1], score, text) for score, (name, (text, _, _)) in best]
            for index in (self.index, self.other):
                found = index.search(query, 5, NO_CHOICE, None if tag is None else equals("tag", tag))
                assert [(hit.id, hit.dataset, hit.score, hit.text) for hit in found.hits()[0]] == expected
        assert self.index.stats().documents == len(self.model)


@pytest.fixture(scope="module")
def machine_folder(tmp_path_factory):
    CollectionMachine.folder = tmp_path_factory


def test_mutable_collection_is_a_dictionary_with_brute_force(machine_folder):
    CollectionMachine.TestCase.settings = settings(
        max_examples=12, stateful_step_count=15, deadline=None, database=None, derandomize=True
    )
    CollectionMachine.TestCase("runTest").runTest()


def test_upsert_is_found_at_once_and_everywhere(tmp_path):
    one, other = (mutable(tmp_path, documents_of("ab"), VECTORS[:2]) for _ in range(2))
    one.upsert(documents_of("c"), VECTORS[2:3])
    assert ids(other.search(VECTORS[2:3], 1, NO_CHOICE)) == [["c"]]
    other.delete([("c", "d")])
    assert "c" not in ids(one.search(VECTORS[2:3], 9, NO_CHOICE))[0]


def test_upsert_can_bring_a_deleted_id_back(tmp_path):
    one = mutable(tmp_path, documents_of("ab"), VECTORS[:2])
    assert one.delete([("a", "d"), ("a", "d"), ("zz", "d")]) == 1
    assert one.delete([("a", "d")]) == 0
    one.upsert([Document(id="a", dataset="d", text="again")], VECTORS[:1])
    hit = one.search(VECTORS[:1], 9, NO_CHOICE).hits()[0][0]
    assert (hit.id, hit.text) == ("a", "again")
    assert one.stats().documents == 2


def test_upsert_of_one_name_twice_in_a_batch_keeps_the_last(tmp_path):
    one = mutable(tmp_path, [], VECTORS[:0])
    one.upsert([Document(id="a", text="first"), Document(id="b", text="b"), Document(id="a", text="last")], VECTORS[:3])
    assert sorted((hit.id, hit.text) for hit in one.search(VECTORS[2:3], 9, NO_CHOICE).hits()[0]) == [
        ("a", "last"),
        ("b", "b"),
    ]


@pytest.mark.parametrize("vectors", [VECTORS[:1], VECTORS[:2, :4], np.full((2, WIDTH), np.nan), np.zeros(2)])
def test_upsert_of_vectors_that_do_not_fit_is_refused_and_nothing_is_written(tmp_path, vectors):
    one = mutable(tmp_path, documents_of("ab"), VECTORS[:2])
    with pytest.raises(DataError, match="nothing was written"):
        one.upsert(documents_of("cd"), vectors)
    assert one.stats() == mutable(tmp_path, [], VECTORS[:0]).stats()


def test_upsert_of_too_many_different_fields_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("embedder.index.living.MAX_FIELDS", 3)
    one = mutable(tmp_path, documents_of("a", year=1), VECTORS[:1])
    one.upsert(documents_of("b", month=1), VECTORS[:1])
    with pytest.raises(DataError, match="4 different fields; at most 3"):
        one.upsert(documents_of("c", day=1), VECTORS[:1])


def test_compaction_takes_in_all_and_readers_go_on_until_they_adopt(tmp_path):
    one, reader = (mutable(tmp_path, documents_of("abc"), VECTORS[:3]) for _ in range(2))
    one.upsert(documents_of("d"), VECTORS[3:4])
    one.delete([("a", "d")])
    before = ids(reader.search(VECTORS[:2], 9, NO_CHOICE))
    assert one.compact()
    assert not one.compact()
    assert (one.stats().generation, one.stats().uncompacted) == (1, 0)
    assert (reader.stats().generation, reader.stats().uncompacted) == (0, 2)
    assert ids(reader.search(VECTORS[:2], 9, NO_CHOICE)) == before
    assert reader.adopt()
    assert not reader.adopt()
    assert ids(reader.search(VECTORS[:2], 9, NO_CHOICE)) == before == ids(one.search(VECTORS[:2], 9, NO_CHOICE))


def test_compaction_that_fails_leaves_one_segment_and_the_next_one_takes_in_all(tmp_path, monkeypatch):
    index, full = mutable(tmp_path, documents_of("c"), VECTORS[:1]), [True]

    def write(*arguments):
        if full[0]:
            raise OSError(28, "no space left on device")
        write_compacted(*arguments)

    monkeypatch.setattr(living_module, "write_compacted", write)
    index.upsert(documents_of("a"), VECTORS[:1])
    for _ in range(3):
        with pytest.raises(OSError, match="No space"):
            index.compact()
    assert len(list((tmp_path / "state" / "log").iterdir())) == 2
    index.upsert(documents_of("b"), VECTORS[1:2])
    full[0] = False
    assert index.compact() and not index.compact()
    assert mutable(tmp_path, [], VECTORS[:0]).stats().documents == index.stats().documents == 3


def test_log_is_on_the_disk_with_its_end_before_it_gets_a_successor(tmp_path, monkeypatch):
    """Only the last segment is recovered: one whose end a power cut took back would lose what was acknowledged."""
    index, order = mutable(tmp_path, documents_of("c"), VECTORS[:1]), []
    index.upsert(documents_of("a"), VECTORS[:1])
    fsync, create = os.fsync, Log.create
    monkeypatch.setattr(os, "fsync", lambda file: (order.append(os.readlink(f"/proc/self/fd/{file}")), fsync(file)))
    monkeypatch.setattr(Log, "create", lambda *arguments: (order.append("create"), create(*arguments)))
    assert index.compact()
    assert order[:2] == [str(log_of(tmp_path)), "create"]


def test_reader_that_slept_through_many_compactions_catches_up(tmp_path):
    one, reader = (mutable(tmp_path, documents_of("a"), VECTORS[:1]) for _ in range(2))
    for i in range(4):
        one.upsert(documents_of([f"n{i}"]), VECTORS[i : i + 1])
        one.compact()
    assert len(list((tmp_path / "state" / "generations").iterdir())) == 2
    assert reader.stats().documents == 5


def test_compaction_lets_writes_and_searches_go_on(tmp_path):
    one = mutable(tmp_path, documents_of([f"b{i}" for i in range(300)]), unit(np.random.default_rng(0), 300))
    errors, stop = [], threading.Event()

    def search():
        while not stop.is_set():
            found = ids(one.search(VECTORS[:1], 2000, NO_CHOICE))[0]
            if len(found) != len(set(found)) or len(found) < 300:
                errors.append(len(found))

    searching = threading.Thread(target=search)
    searching.start()
    compacting = None
    for i in range(60):
        one.upsert(documents_of([f"w{i}"]), VECTORS[i % 6 : i % 6 + 1])
        if i % 20 == 10:
            compacting = threading.Thread(target=one.compact)
            compacting.start()
    compacting.join()
    stop.set()
    searching.join()
    assert errors == []
    assert one.stats().documents == 360
    assert mutable(tmp_path, [], VECTORS[:0]).stats().documents == 360


def test_log_on_a_full_disk_loses_nothing_that_was_acknowledged(tmp_path, monkeypatch):
    one = mutable(tmp_path, documents_of("a"), VECTORS[:1])
    one.upsert(documents_of("b"), VECTORS[1:2])

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("embedder.index.log.os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            one.upsert(documents_of("c"), VECTORS[2:3])
    assert one.stats().documents == 2
    one.upsert(documents_of("e"), VECTORS[2:3])
    assert ids(mutable(tmp_path, [], VECTORS[:0]).search(VECTORS[2:3], 9, NO_CHOICE))[0][0] == "e"


def log_of(folder):
    return folder / "state" / "log" / "0.log"


def test_log_drops_a_write_cut_short_at_any_byte_and_keeps_what_was_acknowledged(tmp_path):
    one = mutable(tmp_path, documents_of("a"), VECTORS[:1])
    one.upsert(documents_of("b"), VECTORS[1:2])
    before = log_of(tmp_path).read_bytes()
    one.upsert(documents_of("c"), VECTORS[2:3])
    after = log_of(tmp_path).read_bytes()
    for length in range(len(before), len(after), 23):
        log_of(tmp_path).write_bytes(before[:28] + after[28:length])
        assert mutable(tmp_path, [], VECTORS[:0]).stats().documents == 2
        assert log_of(tmp_path).read_bytes() == before
    log_of(tmp_path).write_bytes(before[:28] + after[28:])
    assert mutable(tmp_path, [], VECTORS[:0]).stats().documents == 3


def test_log_refuses_any_damage_to_acknowledged_writes(tmp_path):
    one = mutable(tmp_path, documents_of("a"), VECTORS[:1])
    for i in range(3):
        one.upsert(documents_of([f"n{i}"]), VECTORS[i : i + 1])
    whole = log_of(tmp_path).read_bytes()
    random = np.random.default_rng(0)
    for width in (1, 8):
        for place in random.integers(0, len(whole) - width, 60).tolist():
            spoilt = bytearray(whole)
            for i in range(width):
                spoilt[place + i] ^= 0xFF
            log_of(tmp_path).write_bytes(spoilt)
            with pytest.raises(BundleError, match=r"0\.log"):
                mutable(tmp_path, [], VECTORS[:0])
    for length in [0, *random.integers(0, len(whole), 10).tolist()]:
        log_of(tmp_path).write_bytes(whole[:length])
        with pytest.raises(BundleError, match=r"0\.log"):
            mutable(tmp_path, [], VECTORS[:0])
    log_of(tmp_path).write_bytes(whole)
    assert mutable(tmp_path, [], VECTORS[:0]).stats().documents == 4


@pytest.mark.parametrize("field", ["task", "shard", "num_shards", "encoder_fingerprint", "dimension", "format"])
def test_log_of_elsewhere_or_of_a_later_format_is_refused(tmp_path, field):
    one = mutable(tmp_path, documents_of("a"), VECTORS[:1])
    one.upsert(documents_of("b"), VECTORS[:1])
    raw = log_of(tmp_path).read_bytes()
    length = int.from_bytes(raw[20:24], "little")
    header = json.loads(raw[28 : 28 + length])
    header[field] = 1 if field == "format" else "9" if isinstance(header[field], str) else 9
    changed = json.dumps(header, sort_keys=True).encode().ljust(length)
    crc = zlib.crc32(changed).to_bytes(4, "little")
    log_of(tmp_path).write_bytes(raw[:24] + crc + changed + raw[28 + length :])
    with pytest.raises(BundleError, match=r"0\.log"):
        mutable(tmp_path, [], VECTORS[:0])


def test_generation_that_is_damaged_is_refused_and_the_old_one_goes_on_being_searched(tmp_path):
    one, reader = (mutable(tmp_path, documents_of("ab"), VECTORS[:2]) for _ in range(2))
    one.upsert(documents_of("c"), VECTORS[2:3])
    one.compact()
    path = tmp_path / "state" / "generations" / "1" / "payload.arrow"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(BundleError, match=r"payload\.arrow: SHA-256 differs"):
        reader.adopt()
    assert ids(reader.search(VECTORS[2:3], 1, NO_CHOICE)) == [["c"]]
    with pytest.raises(BundleError, match=r"payload\.arrow: SHA-256 differs"):
        mutable(tmp_path, [], VECTORS[:0])


@pytest.mark.parametrize("content", ["", "1", "x y", "1 0123", "7 abc"])
def test_generation_pointer_that_is_damaged_is_refused(tmp_path, content):
    one = mutable(tmp_path, documents_of("ab"), VECTORS[:2])
    one.upsert(documents_of("c"), VECTORS[2:3])
    one.compact()
    (tmp_path / "state" / "CURRENT").write_text(content)
    with pytest.raises(BundleError):
        mutable(tmp_path, [], VECTORS[:0])


def test_log_that_is_gone_is_missed(tmp_path):
    one = mutable(tmp_path, documents_of("ab"), VECTORS[:2])
    one.upsert(documents_of("c"), VECTORS[2:3])
    one.compact()
    (tmp_path / "state" / "log" / "1.log").unlink()
    with pytest.raises(BundleError, match=r"1\.log: missing"):
        mutable(tmp_path, [], VECTORS[:0])
