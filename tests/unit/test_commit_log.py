"""Logs, snapshots and documents in a folder, S3 and Azure."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time

import pytest

from embedder.errors import StorageError
from embedder.storage.commit_log import COMMITS_AT_ONCE, CommitLog
from embedder.storage.connect import store_time
from embedder.storage.folder_store import FolderStore
from embedder.storage.log_writer import Writer
from embedder.storage.position import Position, Retention
from embedder.storage.revisions import Revisions

SHORT = Retention(trusted_s=10.0, kept_s=0.0)
"""For tests in which a folder's clock must not be waited for; no writer sleeps while it is cleaned."""


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def new_writer(log: CommitLog, clock=time.monotonic) -> Writer:
    return Writer(log, log.snapshot()[0], clock, time.sleep, random.random)


def test_writers_of_any_store_share_one_order(any_store):
    def write(who: int) -> None:
        writer = new_writer(CommitLog(any_store, "qa", time.monotonic))
        for number in range(5):
            given[writer.commit(f"{who}-{number}".encode())] = f"{who}-{number}".encode()

    given: dict[int, bytes] = {}
    threads = [threading.Thread(target=write, args=(who,)) for who in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log = CommitLog(any_store, "qa", time.monotonic)
    tail = log.read(log.snapshot()[0])
    assert tail is not None and tail.is_whole and tail.end.number == 15
    assert tail.commits == [given[number] for number in range(1, 16)]
    for who in range(3):
        own = [commit for commit in tail.commits if commit.startswith(b"%d-" % who)]
        assert own == sorted(own), "commits of one writer are in its order"


def test_snapshot_takes_the_place_of_its_commits_in_any_store(any_store, clock):
    log = CommitLog(any_store, "qa", clock, retention=SHORT)
    writer = new_writer(log, clock)
    for name in ("secret one", "two", "three"):
        writer.commit(name.encode())
    log.put_snapshot(2, b"two alone")
    assert log.clean() == 2
    assert [entry.name for entry in any_store.entries("qa/log")] == ["000000000003.arrow"]
    position, content = log.snapshot()
    assert (position.number, content) == (2, b"two alone")
    assert log.read(position).commits == [b"three"]
    assert writer.commit(b"four") == 4
    log.put_snapshot(4, b"all")
    assert log.clean() == 3 and any_store.entries("qa/log") == []
    assert writer.commit(b"five") == 5, "a number is never given again"


def test_commits_of_a_long_log_are_read_part_by_part(tmp_path, clock):
    log = CommitLog(FolderStore(tmp_path), "qa", clock)
    position = log.snapshot()[0]
    for number in range(COMMITS_AT_ONCE + 1):
        position = log.append(b"%d" % number, position)
    first = log.read(Position(0, clock.now))
    assert len(first.commits) == COMMITS_AT_ONCE and not first.is_whole
    assert log.read(first.end) == ([b"%d" % COMMITS_AT_ONCE], Position(COMMITS_AT_ONCE + 1, clock.now), True)


def test_who_slept_below_the_snapshot_is_told_and_writes_nothing(tmp_path, clock):
    log = CommitLog(FolderStore(tmp_path), "qa", clock, retention=SHORT)
    sleeper = log.snapshot()[0]
    writer = new_writer(log, clock)
    for number in range(3):
        writer.commit(b"%d" % number)
    log.put_snapshot(3, b"all")
    log.clean()

    class Slow(FolderStore):
        def put_if_absent(self, name: str, content: bytes) -> bool:
            is_put = super().put_if_absent(name, content)
            clock.now += 60
            return is_put

    slow = CommitLog(Slow(tmp_path), "qa", clock, retention=SHORT)
    with pytest.raises(StorageError, match=r"a commit took longer than 10 s, .* send it again"):
        slow.append(b"late", sleeper)
    assert log.read(sleeper) is None, "what came too late is not read"
    # A writer that starts now goes on above the snapshot, not above the latecomer.
    assert new_writer(log, clock).commit(b"next") == 4
    clock.now += 60
    assert log.append(b"after a sleep", sleeper).number == 5


def test_answer_that_was_lost_is_no_second_commit(tmp_path, clock):
    class Forgetful(FolderStore):
        lost = 0

        def put_if_absent(self, name: str, content: bytes) -> bool:
            is_put = super().put_if_absent(name, content)
            if self.lost < 2:
                self.lost += 1
                raise StorageError("the answer is lost")
            return is_put

    log = CommitLog(Forgetful(tmp_path), "qa", clock)
    assert log.append(b"once", log.snapshot()[0]).number == 1
    assert log.read(Position(0, clock.now)).commits == [b"once"]


def add_to(content: bytes | None, entry: object) -> bytes:
    """A list with one entry more."""
    return json.dumps([*json.loads(content or b"[]"), entry]).encode()


def test_changes_of_a_document_are_never_lost_in_any_store(any_store, clock):
    def add(who: int) -> None:
        document = Revisions(any_store, "catalog", time.monotonic)
        for number in range(4):
            document.change(lambda content, own=(who, number): add_to(content, own))

    threads = [threading.Thread(target=add, args=(who,)) for who in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    document = Revisions(any_store, "catalog", clock, retention=SHORT)
    known, content = document.newest()
    assert known.number == 12 and len(json.loads(content)) == 12
    assert document.clean() == 11 and document.newest() == (known, content)
    assert not document.replace(Position(11, clock.now), b"[]")


def test_store_tells_its_own_time_and_keeps_nothing_of_it(any_store):
    first, second = (store_time(any_store, random.Random(seed).randbytes) for seed in (1, 2))
    assert abs(first - time.time()) < 60 and second >= first - 1
    assert any_store.entries("probes") == []


def test_files_are_as_old_as_their_names(tmp_path):
    """A file that was written long before it was linked is new."""
    import os

    store = FolderStore(tmp_path)
    store.put_if_absent("log/a", b"")
    os.utime(tmp_path / "log" / "a", (0, 0))
    assert abs(store.entries("log")[0].stored_s - time.time()) < 60


def test_listing_leaves_out_only_what_is_removed_meanwhile(tmp_path, monkeypatch):
    import os

    store = FolderStore(tmp_path)
    for name in ("a", "b", "c"):
        store.put_if_absent(f"log/{name}", b"")
    scandir = os.scandir

    def removing(path):
        found = scandir(path)
        (tmp_path / "log" / "b").unlink(missing_ok=True)
        return found

    monkeypatch.setattr(os, "scandir", removing)
    assert [entry.name for entry in store.entries("log")] == ["a", "c"]


KILLED = """
import random, sys, time
from pathlib import Path
from embedder.storage.commit_log import CommitLog
from embedder.storage.folder_store import FolderStore
from embedder.storage.log_writer import Writer
log = CommitLog(FolderStore(Path(sys.argv[1])), "qa", time.monotonic)
writer = Writer(log, log.snapshot()[0], time.monotonic, time.sleep, random.random)
while True:
    content = random.randbytes(8).hex()
    print(writer.commit(content.encode()), content, flush=True)
"""


def test_nothing_acknowledged_is_lost_when_writers_are_killed(tmp_path):
    told: list[str] = []
    for _ in range(3):
        children = [
            subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        for child in children:
            told += [child.stdout.readline() for _ in range(10)]
        for child in children:
            child.kill()
            # The last line may be cut short, and then nobody was told.
            told += [line for line in child.stdout if line.endswith("\n")]
            child.wait()
            child.stdout.close()
    acknowledged = {int(line.split()[0]): line.split()[1].encode() for line in told}
    assert len(acknowledged) == len(told) >= 60
    log, position, commits = CommitLog(FolderStore(tmp_path), "qa", time.monotonic), Position(0, time.monotonic()), []
    while True:
        tail = log.read(position)
        commits, position = commits + tail.commits, tail.end
        if tail.is_whole:
            break
    assert {number: commits[number - 1] for number in acknowledged} == acknowledged
    assert len(set(commits)) == len(commits)


def test_large_content_is_stored_and_read_whole_in_any_store(any_store):
    content = bytes(range(256)) * (20 * 2**12)
    assert any_store.put_if_absent("large/1", content)
    assert any_store.get("large/1") == content
