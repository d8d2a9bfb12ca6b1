"""Kills processes in the middle of writes to an index, and looks at what is left. Run by test_index_kills.py.

A child process of its own does the work and is killed by SIGKILL: at its n-th call that changes files, for every n
until it comes through, or after a seeded time of the processor's. Prints the number of kills.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from embedder.index import shard
from embedder.index.bundle import verify
from embedder.index.catalog import Catalog
from embedder.index.opened import OpenIndex
from embedder.storage.durable import remove_unfinished
from tests.unit.index_cases import documents_of, live_catalog, unit

CALLS = ("fsync", "replace", "pwrite", "unlink", "link", "rename")
VECTORS = unit(np.random.default_rng(0), 40)
BASE = 12
BATCH = 3


def die_at(call: int) -> None:
    """From now on, kill this process when it is about to make its n-th call that changes files."""
    made = [0]

    def counted(function: Callable) -> Callable:
        def wrapper(*arguments, **options):
            made[0] += 1
            if made[0] == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return wrapper

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))


def kill(work: Callable[[Callable[[], None]], None], call: int = 0, after_s: float = 0.0) -> tuple[int, bool]:
    """Do some work in a child that is killed; returns how often it reported progress, and whether it came through."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        if call:
            die_at(call)
        if after_s:
            # Its signal ends the process as SIGKILL does. The time is the child's own, so that other work on the
            # machine does not decide how far it comes.
            signal.setitimer(signal.ITIMER_PROF, after_s)
        work(lambda: os.write(writer, b"."))
        os._exit(0)
    os.close(writer)
    reported = 0
    while part := os.read(reader, 4096):
        reported += len(part)
    os.close(reader)
    _, status = os.waitpid(child, 0)
    return reported, os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0


def opened(catalog: Catalog, version: str = "one") -> OpenIndex:
    return OpenIndex(catalog.bundle(version), catalog.state(version, "live"), verify(catalog.bundle(version)), range(2))


def count(index: OpenIndex) -> int:
    return index.stats()["qa"].documents


def new_catalog(folder: Path) -> Catalog:
    return live_catalog(folder, documents_of([f"b{i}" for i in range(BASE)]), VECTORS[:BASE])


def kill_upserts(folder: Path, seed: int, calls: list[int], times: list[float]) -> int:
    """All acknowledged documents survive; the batch that was under way is there or not, in all shards."""
    catalog, kills, expected = new_catalog(folder), 0, BASE
    for trial, (call, after_s) in enumerate([(n, 0.0) for n in calls] + [(0, s) for s in times]):

        def work(report: Callable[[], None], trial: int = trial) -> None:
            index = opened(catalog)
            for batch in range(200):
                names = [f"t{trial}-{batch}-{i}" for i in range(BATCH)]
                index.upsert("qa", documents_of(names), VECTORS[:BATCH])
                report()

        acknowledged, _ = kill(work, call, after_s)
        kills += 1
        index = opened(catalog)
        least = expected + BATCH * acknowledged
        assert count(index) in (least, least + BATCH), (seed, trial, call, after_s, count(index), least)
        expected = count(index)
        for batch in range(acknowledged):
            assert index.delete("qa", [(f"t{trial}-{batch}-{i}", "d") for i in range(BATCH)]) == BATCH
            expected -= BATCH
    return kills


def kill_until_done(work: Callable[[Callable[[], None]], None], check: Callable[[bool], None]) -> int:
    """Kill at every call in turn, check each time, and once more when the work came through."""
    for call in range(1, 1000):
        _, is_done = kill(work, call)
        check(is_done)
        if is_done:
            return call - 1
    raise AssertionError("never came through")


def kill_compaction(folder: Path) -> int:
    catalog = new_catalog(folder)
    opened(catalog).upsert("qa", documents_of("xyz"), VECTORS[:3])
    opened(catalog).delete("qa", [("b0", "d")])

    def check(is_done: bool) -> None:
        index = opened(catalog)
        assert count(index) == BASE + 2
        assert not is_done or index.stats()["qa"].uncompacted == 0

    # What is left by a kill does not hold the next one up, as it does for ten minutes.
    shard.BUILDING_S = 0.0
    return kill_until_done(lambda _: opened(catalog).compact() and None, check)


def kill_fold(folder: Path) -> int:
    catalog = new_catalog(folder)
    for name in "xyz":
        opened(catalog).upsert("qa", documents_of(name), VECTORS[:1])
    opened(catalog).delete("qa", [("b0", "d"), ("x", "d")])

    def check(_: bool) -> None:
        assert count(opened(catalog)) == BASE + 1

    return kill_until_done(lambda _: opened(catalog).fold(at_once=True) and None, check)


def kill_snapshot(folder: Path) -> int:
    catalog = new_catalog(folder)
    opened(catalog).upsert("qa", documents_of("xyz"), VECTORS[:3])

    def check(is_done: bool) -> None:
        assert count(opened(catalog)) == BASE + 3
        assert catalog.versions() in (["one"], ["one", "two"])
        if is_done or "two" in catalog.versions():
            assert count(opened(catalog, "two")) == BASE + 3
        if "two" in catalog.versions() and not is_done:
            catalog.remove("two")
        for name in ("versions", "states", "catalog"):
            remove_unfinished(folder / name)

    return kill_until_done(lambda _: opened(catalog).snapshot(catalog, "two"), check)


def kill_alias_swap(folder: Path) -> int:
    catalog = new_catalog(folder)
    opened(catalog).upsert("qa", documents_of("xyz"), VECTORS[:3])
    opened(catalog).snapshot(catalog, "two")

    def check(is_done: bool) -> None:
        assert catalog.resolve("live") == "two" if is_done else catalog.resolve("live") in ("one", "two")
        count(opened(catalog, catalog.resolve("live")))
        if not is_done:
            catalog.point("live", "one")

    return kill_until_done(lambda _: catalog.point("live", "two"), check)


def main(seed: int) -> None:
    generator = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        times = [generator.uniform(0.005, 0.06) for _ in range(15)]
        kills = kill_upserts(root / "upserts", seed, list(range(1, 21)), times)
        kills += (
            kill_compaction(root / "compaction")
            + kill_fold(root / "fold")
            + kill_snapshot(root / "snapshot")
            + kill_alias_swap(root / "alias")
        )
    sys.stdout.write(f"{kills}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
