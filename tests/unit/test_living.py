"""The mutable collection against a dictionary and brute force; what damage, folds and other processes do to it."""

from __future__ import annotations

import os
import shutil
import threading
import zlib
from concurrent.futures import Future

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from embedder.errors import BundleError, DataError, StorageError
from embedder.index import shard as shard_module
from embedder.index import task_log
from embedder.index.collection import CollectionInfo
from embedder.index.compaction import write_compacted
from embedder.index.documents import Document
from embedder.index.exact import pair_scores
from embedder.index.filters import equals
from embedder.index.living import CollectionStats
from embedder.index.operations import OPERATIONS, operations_of
from embedder.storage.durable import UNFINISHED
from embedder.storage.numbered import MARK_BYTES
from tests.unit.index_cases import NO_CHOICE, WIDTH, documents_of, ids, mutable, unit
from tests.waiting import wait_until

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

    @rule(by_other=st.booleans())
    def fold(self, by_other):
        (self.other if by_other else self.index).fold(at_once=True)

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
    monkeypatch.setattr("embedder.index.open_shards.MAX_FIELDS", 3)
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
    assert (one.stats().generation, one.stats().uncompacted) == (2, 0)
    assert (reader.stats().generation, reader.stats().uncompacted) == (0, 2)
    assert ids(reader.search(VECTORS[:2], 9, NO_CHOICE)) == before
    assert reader.adopt()
    assert not reader.adopt()
    assert ids(reader.search(VECTORS[:2], 9, NO_CHOICE)) == before == ids(one.search(VECTORS[:2], 9, NO_CHOICE))


def test_compaction_that_fails_leaves_nothing_and_the_next_one_takes_in_all(tmp_path, monkeypatch):
    index, full = mutable(tmp_path, documents_of("c"), VECTORS[:1]), [True]

    def write(*arguments):
        if full[0]:
            raise OSError(28, "no space left on device")
        write_compacted(*arguments)

    monkeypatch.setattr(shard_module, "write_compacted", write)
    index.upsert(documents_of("a"), VECTORS[:1])
    for _ in range(3):
        with pytest.raises(OSError, match="No space"):
            index.compact()
    assert not list(generations_of(tmp_path).iterdir())
    index.upsert(documents_of("b"), VECTORS[1:2])
    full[0] = False
    assert index.compact() and not index.compact()
    assert mutable(tmp_path, [], VECTORS[:0]).stats().documents == index.stats().documents == 3


def test_compaction_that_another_process_is_at_is_left_to_it_for_a_while(tmp_path, monkeypatch):
    index = mutable(tmp_path, documents_of("c"), VECTORS[:1])
    index.upsert(documents_of("a"), VECTORS[:1])
    begun = generations_of(tmp_path) / f"{UNFINISHED}1.x"
    begun.mkdir(parents=True)
    assert not index.compact() and begun.exists()
    monkeypatch.setattr(shard_module, "BUILDING_S", 0.0)
    assert index.compact() and not begun.exists()


def test_reader_that_slept_through_many_compactions_catches_up(tmp_path):
    one, reader = (mutable(tmp_path, documents_of("a"), VECTORS[:1]) for _ in range(2))
    for i in range(4):
        one.upsert(documents_of([f"n{i}"]), VECTORS[i : i + 1])
        one.compact()
    assert len(list(generations_of(tmp_path).iterdir())) == 2
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


def commits_of(folder):
    return sorted((folder / "state" / "writes" / "qa" / "log").iterdir())


def generations_of(folder):
    return folder / "state" / "generations"


def test_log_on_a_full_disk_loses_nothing_that_was_acknowledged(tmp_path, monkeypatch):
    one = mutable(tmp_path, documents_of("a"), VECTORS[:1])
    one.upsert(documents_of("b"), VECTORS[1:2])

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("embedder.storage.folder_store.os.fsync", full)
        with pytest.raises(StorageError, match="the disk is full"):
            one.upsert(documents_of("c"), VECTORS[2:3])
    assert one.stats().documents == 2
    one.upsert(documents_of("e"), VECTORS[2:3])
    assert ids(mutable(tmp_path, [], VECTORS[:0]).search(VECTORS[2:3], 9, NO_CHOICE))[0][0] == "e"


def test_writes_of_many_threads_share_commits_and_are_all_found(tmp_path, monkeypatch):
    one, first, free = mutable(tmp_path, documents_of("a"), VECTORS[:1]), threading.Event(), threading.Event()
    commit = one._log._writer.commit

    def slow(content):
        first.set()
        free.wait(60)
        return commit(content)

    monkeypatch.setattr(one._log._writer, "commit", slow)
    threads = [threading.Thread(target=one.upsert, args=(documents_of([f"n{i}"]), VECTORS[:1])) for i in range(8)]
    threads[0].start()
    first.wait(60)
    for thread in threads[1:]:
        thread.start()
    wait_until(lambda: len(one._log._waiting) == 7)
    free.set()
    for thread in threads:
        thread.join()
    assert len(commits_of(tmp_path)) == 2
    assert one.stats().documents == mutable(tmp_path, [], VECTORS[:0]).stats().documents == 9


def test_writes_that_the_store_refuses_are_refused_to_all_that_waited(tmp_path, monkeypatch):
    one, first, free = mutable(tmp_path, documents_of("a"), VECTORS[:1]), threading.Event(), threading.Event()

    def fails(content):
        first.set()
        free.wait(60)
        raise StorageError("the disk is full")

    monkeypatch.setattr(one._log._writer, "commit", fails)
    refused = []

    def write(name):
        try:
            one.upsert(documents_of([name]), VECTORS[:1])
        except StorageError:
            refused.append(name)

    threads = [threading.Thread(target=write, args=(name,)) for name in "bcd"]
    threads[0].start()
    first.wait(60)
    for thread in threads[1:]:
        thread.start()
    wait_until(lambda: len(one._log._waiting) == 2)
    free.set()
    for thread in threads:
        thread.join()
    assert sorted(refused) == ["b", "c", "d"] and one.stats().documents == 1


def test_commit_with_any_damage_is_refused_by_name(tmp_path):
    one = mutable(tmp_path, documents_of("a"), VECTORS[:1])
    for i in range(3):
        one.upsert(documents_of([f"n{i}"]), VECTORS[i : i + 1])
    path = commits_of(tmp_path)[1]
    whole, random = path.read_bytes(), np.random.default_rng(0)
    # The last bytes tell whose commit it is, and are no part of it.
    content = len(whole) - MARK_BYTES
    for place in [0, 3, *random.integers(0, content, 40).tolist()]:
        spoilt = bytearray(whole)
        spoilt[place] ^= 0xFF
        path.write_bytes(spoilt)
        with pytest.raises(BundleError, match=r"writes/qa/log: object 2 is damaged"):
            mutable(tmp_path, [], VECTORS[:0])
    for length in [0, *random.integers(0, len(whole), 10).tolist()]:
        path.write_bytes(whole[:length])
        with pytest.raises(BundleError, match="object 2 is damaged"):
            mutable(tmp_path, [], VECTORS[:0])
    path.write_bytes(whole)
    assert mutable(tmp_path, [], VECTORS[:0]).stats().documents == 4


def test_commit_of_another_version_of_the_program_is_refused(tmp_path):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, OPERATIONS.remove(0)) as writer:
        writer.write_table(OPERATIONS.remove(0).empty_table())
    body = sink.getvalue().to_pybytes()
    content = zlib.crc32(body).to_bytes(4, "little") + body
    with pytest.raises(BundleError, match="object 7 is of another version of this program"):
        operations_of(content, 7, "log")


def test_generation_that_is_damaged_is_passed_over_and_made_again(tmp_path, caplog):
    one, reader = (mutable(tmp_path, documents_of("ab"), VECTORS[:2]) for _ in range(2))
    one.upsert(documents_of("c"), VECTORS[2:3])
    one.compact()
    path = generations_of(tmp_path) / "1" / "payload.arrow"
    path.write_bytes(path.read_bytes()[:-9])
    assert reader.adopt() == 0 and ids(reader.search(VECTORS[2:3], 1, NO_CHOICE)) == [["c"]]
    late = mutable(tmp_path, [], VECTORS[:0])
    assert late.stats().generation == 0 and ids(late.search(VECTORS[2:3], 1, NO_CHOICE)) == [["c"]]
    assert "payload.arrow: SHA-256 differs" in caplog.text
    # Under its own number, though nothing was written since.
    assert late.compact() and mutable(tmp_path, [], VECTORS[:0]).stats().generation == 1
    late.upsert(documents_of("d"), VECTORS[3:4])
    assert late.compact() and mutable(tmp_path, [], VECTORS[:0]).stats().generation == 2


@pytest.mark.parametrize("name", ["writes.arrow", "payload.arrow", "lexical"])
def test_generation_that_is_removed_while_it_is_opened_is_no_generation(tmp_path, monkeypatch, name):
    one = mutable(tmp_path, documents_of("ab"), VECTORS[:2])
    one.delete([("a", "d")])
    one.compact()
    check, gone = CollectionInfo.check_files, generations_of(tmp_path) / "1" / name

    def removing(info, folder, only=""):
        check(info, folder, only)
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()

    monkeypatch.setattr(CollectionInfo, "check_files", removing)
    late = mutable(tmp_path, [], VECTORS[:0])
    assert late.stats() == CollectionStats(1, 1, 0)


def test_operations_that_were_not_in_the_commit_that_failed_are_written_by_the_next(tmp_path, monkeypatch):
    """A batch that is full leaves out those of the thread that writes it."""
    one = mutable(tmp_path, documents_of("a"), VECTORS[:1])
    log, fails = one._log, [True]
    commit = log._writer.commit

    def once(content):
        if fails.pop() if fails else False:
            raise StorageError("the disk is full")
        return commit(content)

    monkeypatch.setattr(task_log, "COMMIT_BYTES", 0)
    monkeypatch.setattr(log._writer, "commit", once)
    other = Future()
    log._waiting.append((OPERATIONS.empty_table(), other))
    one.upsert(documents_of("b"), VECTORS[1:2])
    assert isinstance(other.exception(0), StorageError) and not log._waiting
    assert mutable(tmp_path, [], VECTORS[:0]).stats().documents == 2


def test_generation_that_is_built_for_long_stays_young(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_module, "BUILDING_S", 0.1)
    os.utime(tmp_path, (0, 0))
    with shard_module.kept_young(tmp_path):
        wait_until(lambda: tmp_path.stat().st_mtime > 1)


def test_generation_that_goes_further_than_the_log_is_of_another_log(tmp_path):
    one = mutable(tmp_path, documents_of("ab"), VECTORS[:2])
    one.upsert(documents_of("c"), VECTORS[2:3])
    one.compact()
    shutil.rmtree(tmp_path / "state" / "writes")
    late = mutable(tmp_path, [], VECTORS[:0])
    assert late.stats() == CollectionStats(2, 0, 0)
    # Nor is it once the log has come to its number again.
    late.upsert(documents_of("x"), VECTORS[3:4])
    assert ids(mutable(tmp_path, [], VECTORS[:0]).search(VECTORS[2:4], 9, NO_CHOICE))[0].count("c") == 0


def test_fold_stands_for_the_commits_that_were_removed(tmp_path, monkeypatch):
    """Who opens then, who slept meanwhile, and who goes on from a generation in between all show the same."""
    one, asleep = (mutable(tmp_path, documents_of("abc"), VECTORS[:3]) for _ in range(2))
    one.upsert(documents_of("d"), VECTORS[3:4])
    one.compact()
    one.delete([("a", "d"), ("d", "d")])
    one.upsert([Document(id="b", text="changed", dataset="d")], VECTORS[4:5])
    assert one.fold(at_once=True) and not one.fold(at_once=True)
    for commit in commits_of(tmp_path):
        commit.unlink()
    # As after a minute, when a position may no longer be relied on.
    asleep._position = asleep._position._replace(since=-1e9)
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path, copy)
    shutil.rmtree(generations_of(copy))
    for index in (one, asleep, mutable(tmp_path, [], VECTORS[:0]), mutable(copy, [], VECTORS[:0])):
        hits = index.search(VECTORS[:1], 9, NO_CHOICE).hits()[0]
        assert {hit.id: hit.text for hit in hits} == {"b": "changed", "c": "text of c"}


def test_fold_is_made_after_many_commits_and_of_two_one_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(task_log, "FOLD_COMMITS", 3)
    one, other = (mutable(tmp_path, [], VECTORS[:0]) for _ in range(2))
    for i in range(4):
        assert not one.fold()
        one.upsert(documents_of([f"n{i}"]), VECTORS[:1])
    other.catch_up()
    assert one.fold() and not other.fold() and not one.fold()
    assert [path.name for path in (tmp_path / "state/writes/qa/snapshots").iterdir()] == ["000000000004.arrow"]
