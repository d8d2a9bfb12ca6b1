"""Stores that keep a name's first content, and numbers that are given once: in a folder, S3 and Azure."""

from __future__ import annotations

import threading

import pytest

from embedder.errors import ConfigError, StorageError
from embedder.storage.connect import check_conditions, open_store
from embedder.storage.folder_store import FolderStore
from embedder.storage.numbered import NumberedObjects
from tests.object_store import SECRET, proxy


@pytest.fixture
def store(any_store):
    return any_store


def test_put_if_absent_keeps_what_was_put_first(store):
    assert store.put_if_absent("log/a", b"first") is True
    assert store.put_if_absent("log/a", b"second") is False
    assert store.get("log/a") == b"first" and store.get("log/b") is None
    store.remove("log/a")
    store.remove("log/a")
    assert store.get("log/a") is None


def test_entries_are_those_right_below_a_folder_in_order(store):
    for name in ("log/b", "log/c", "log/a", "log/deep/d", "logs/e"):
        store.put_if_absent(name, b"")
    assert [entry.name for entry in store.entries("log")] == ["a", "b", "c"]
    assert [entry.name for entry in store.entries("log", "a")] == ["b", "c"]
    assert store.entries("none") == []
    stored = [entry.stored_s for entry in store.entries("log")]
    assert max(stored) - min(stored) < 60


def test_number_is_given_to_one_of_many_who_ask_at_once(store):
    given: list[tuple[int, int]] = []

    def take(who: int) -> None:
        mine = NumberedObjects(store, "log", ".json")
        for number in range(1, 9):
            if mine.put(number, b"the same content"):
                given.append((number, who))

    threads = [threading.Thread(target=take, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(number for number, _ in given) == list(range(1, 9))


def test_numbers_are_listed_after_one_and_other_files_passed_over(store):
    log = NumberedObjects(store, "log", ".json")
    assert log.latest() == 0 and log.numbers() == []
    for number in (2, 1, 10):
        assert log.put(number, b"x")
    store.put_if_absent("log/000000000099.json.old", b"")
    assert (log.numbers(), log.numbers(2), log.latest(), log.get(10), log.get(3)) == ([1, 2, 10], [10], 10, b"x", None)


def test_put_whose_answer_was_lost_is_known_as_ones_own(object_store, tmp_path):
    class Forgetful(FolderStore):
        lost = 0

        def put_if_absent(self, name: str, content: bytes) -> bool:
            is_stored = super().put_if_absent(name, content)
            if self.lost < 2:
                self.lost += 1
                raise StorageError("the answer is lost")
            return is_stored

    log = NumberedObjects(Forgetful(tmp_path), "log", ".json")
    assert log.put(1, b"mine") is True and log.put(1, b"mine") is False


def test_store_that_ignores_conditions_is_refused(tmp_path):
    class Replacing(FolderStore):
        def put_if_absent(self, name: str, content: bytes) -> bool:
            self.remove(name)
            return super().put_if_absent(name, content)

    with pytest.raises(ConfigError, match=r"ignores the condition .*; use a store"):
        check_conditions(Replacing(tmp_path))


def test_store_that_refuses_is_an_error_of_one_line_without_the_secret(object_store):
    with (
        proxy(object_store, lambda *_: True) as (endpoint, _),
        pytest.raises(StorageError, match=r"s3://bucket/run/probes/.*: cannot be written") as caught,
    ):
        open_store(object_store.path("run", endpoint=endpoint))
    assert SECRET not in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_parameter_is_an_error_of_one_line(object_store):
    from embedder.storage.object_store import ObjectPath

    with pytest.raises(ConfigError, match="regoin") as caught:
        open_store(ObjectPath.parse(object_store.uri("run") + "&regoin=eu"))
    assert SECRET not in str(caught.value) and "\n" not in str(caught.value)
