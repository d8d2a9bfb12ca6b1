"""The lease on a run: histories by seed over an in-memory store, clocks that differ, and writers that lost it."""

from __future__ import annotations

import json

import pytest

from embedder.errors import DataError, LeaseError
from embedder.storage import lease as protocol
from embedder.storage.lease import KEPT, VALID_S, WATCH_S, Lease, check_holder, newest
from embedder.storage.numbered import NumberedObjects
from tests.unit.lease_world import Memory, World, numbered

HISTORIES = 500


def first_fault(histories: int) -> str | None:
    """The first thing that goes wrong in so many histories."""
    for seed in range(histories):
        world = World(seed).run()
        if world.faults:
            return f"seed {seed}: {world.faults[0]}"
        if len(set(world.taken)) < len(world.taken):
            return f"seed {seed}: a number was taken twice: {world.taken}"
    return None


def test_lease_has_one_writer_in_every_history() -> None:
    assert first_fault(HISTORIES) is None


def test_lease_histories_are_those_of_their_seed_and_hand_it_on() -> None:
    taken = [World(seed).run().taken for seed in range(10)]
    assert taken == [World(seed).run().taken for seed in range(10)]
    assert sum(map(len, taken)) > 20, "histories in which hardly anybody takes the lease prove nothing"


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("watch", lambda patch: patch.setattr(protocol, "WATCH_S", 12.0)),
        ("validity", lambda patch: patch.setattr(protocol, "VALID_S", 60.0)),
        ("asked after the put", lambda patch: patch.setattr(Lease, "_is_newest", lambda self, number: True)),
        ("the first try counts", lambda patch: patch.setattr(Lease, "_tried", AlwaysNow(), raising=False)),
    ],
)
def test_lease_histories_find_a_missing_safeguard(name, missing, monkeypatch: pytest.MonkeyPatch) -> None:
    missing(monkeypatch)
    assert first_fault(1000) is not None


class AlwaysNow:
    """In place of the attribute that holds the first try of a put: none, and now."""

    def __get__(self, lease: Lease | None, kind: type[Lease]) -> tuple[int, float] | AlwaysNow:
        return self if lease is None else (0, lease._clock())

    def __set__(self, lease: Lease, value: tuple[int, float]) -> None:
        """Keep nothing."""


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store() -> NumberedObjects:
    return numbered(Memory())


def test_lease_of_a_killed_holder_passes_on_when_it_was_watched_for_long_enough(store, clock) -> None:
    assert Lease(store, "a", "label on one", clock).take() is None
    rival = Lease(store, "b", "train on two", clock)
    clock.now = 1000.0  # which counts for nothing: the rival has seen the number for no time yet
    assert rival.take().who == "label on one"
    clock.now += WATCH_S - 1
    assert rival.take().number == 1
    clock.now += 1
    assert rival.take() is None and rival.number == 2 == newest(store).lease


def test_lease_of_a_living_holder_does_not_pass_on(store, clock) -> None:
    holder, rival = Lease(store, "a", "a", clock), Lease(store, "b", "b", clock)
    holder.take()
    for _ in range(20):
        clock.now += VALID_S / 2
        holder.renew()
        assert rival.take().lease == 1
    assert len(store.numbers()) <= KEPT


def test_lease_is_free_at_once_when_it_was_ended_or_its_process_is_known_to_be_gone(store, clock) -> None:
    holder = Lease(store, "a", "a", clock)
    holder.take()
    holder.end()
    second = Lease(store, "b", "b", clock, process="machine 7")
    assert second.take() is None
    assert Lease(store, "c", "c", clock).take().holder == "b"
    third = Lease(store, "d", "d", clock, is_gone=lambda process: process == "machine 7")
    assert third.take() is None and newest(store).holder == "d"


def test_writers_that_lost_the_lease_are_refused(store, clock) -> None:
    holder, rival = Lease(store, "a", "label on one", clock), Lease(store, "b", "train on two", clock)
    holder.take()
    check_holder(store, holder.number)
    rival.take()
    clock.now += WATCH_S
    rival.take()
    check_holder(store, rival.number)
    for refused in (lambda: check_holder(store, holder.number), holder.check, holder.renew):
        with pytest.raises(LeaseError, match="lease 1 of the run is lost, train on two holds lease 2"):
            refused()
    rival.end()
    with pytest.raises(LeaseError, match="nobody holds it"):
        check_holder(store, rival.number)


def test_a_holder_that_slept_goes_on_where_nobody_took_the_lease(store, clock) -> None:
    holder = Lease(store, "a", "a", clock)
    holder.take()
    clock.now += 3600
    holder.check()
    assert newest(store).number == 2 and newest(store).lease == 1


def test_a_damaged_lease_is_one_line_that_names_it(store, clock) -> None:
    store.put(3, b'{"number": 3')
    with pytest.raises(DataError, match="lease 3 of the run is damaged"):
        Lease(store, "a", "a", clock).take()
    store.put(4, json.dumps({"number": 4, "other": 1}).encode())
    with pytest.raises(DataError, match="lease 4 of the run is damaged"):
        newest(store)
