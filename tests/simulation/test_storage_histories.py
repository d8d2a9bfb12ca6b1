"""The protocol of logs, snapshots and catalog: histories by seed, and what each safeguard is for."""

from __future__ import annotations

import pytest

from embedder.errors import StorageError
from embedder.storage import connect, log_writer
from embedder.storage.commit_log import CommitLog
from embedder.storage.numbered import TRIES, NumberedObjects
from embedder.storage.position import Position, Retention
from embedder.storage.revisions import Revisions
from tests.simulation import processes
from tests.simulation.processes import history
from tests.simulation.world import RETENTION

HISTORIES = 10_000
TO_FIND = 1000
"""Histories in which the lack of a safeguard must show."""

put = NumberedObjects.put


def first_fault(histories: int) -> str | None:
    """The first thing that goes wrong in so many histories."""
    for seed in range(histories):
        if faults := history(seed).faults:
            return f"seed {seed} {faults[0]}"
    return None


@pytest.mark.parametrize("histories", [TO_FIND, pytest.param(HISTORIES, marks=pytest.mark.slow)])
def test_no_history_has_a_fault(histories: int) -> None:
    assert first_fault(histories) is None


def test_histories_are_those_of_their_seed_and_full_of_events() -> None:
    worlds = [history(seed) for seed in range(60)]
    assert [world.store.states for world in worlds[:9]] == [history(seed).store.states for seed in range(9)]
    for event in ("lost_races", "reopened", "removed", "restarts", "refused"):
        assert sum(getattr(world, event) for world in worlds) > 0, event
    assert sum(len(world.acknowledged) for world in worlds) > 10 * len(worlds)


def put_without_looking(self: NumberedObjects, number: int, content: bytes, make_mark) -> bool:
    """Take the store's word that a number is taken for the truth, though it may be by oneself."""
    for attempt in range(1, TRIES + 1):
        try:
            return self._store.put_if_absent(self.name(number), content + make_mark(16))
        except StorageError:
            if attempt == TRIES:
                raise
    return False


def end_by_listing_alone(self: CommitLog, after: Position) -> Position:
    """The end of the log without a look at the snapshots."""
    began = self._clock()
    return Position(max(self._commits.numbers(after.number), default=after.number), began)


def replace_without_asking(self: Revisions, known: Position, content: bytes) -> bool:
    """Take a number for free although it took long to get it."""
    return self._objects.put(known.number + 1, content, self._make_mark)


@pytest.mark.parametrize(
    "missing",
    [
        pytest.param([(NumberedObjects, "put", put_without_looking)], id="looking whose an object is"),
        pytest.param(
            [(NumberedObjects, "put", lambda self, number, content, _: put(self, number, content, bytes))],
            id="the 16 bytes",
        ),
        pytest.param([(log_writer, "PAUSE", (0.0, 0.0))], id="the turn"),
        pytest.param([(CommitLog, "_confirmed", lambda self, position: position)], id="asking who was late"),
        pytest.param([(CommitLog, "_is_trusted", lambda self, position: True)], id="never using a number again"),
        pytest.param([(CommitLog, "end", end_by_listing_alone)], id="starting above the snapshot"),
        pytest.param([(processes, "RETENTION", Retention(RETENTION.trusted_s, 0.0))], id="the trim's delay"),
        pytest.param(
            [
                (
                    Revisions,
                    "replace",
                    lambda self, known, new: self._objects.put(known.number + 1, new, self._make_mark),
                )
            ],
            id="asking whose change was late",
        ),
        pytest.param([(connect, "check_conditions", lambda store: None)], id="the probe"),
    ],
)
def test_histories_find_a_missing_safeguard(missing, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, name, value in missing:
        monkeypatch.setattr(place, name, value)
    assert first_fault(TO_FIND) is not None
