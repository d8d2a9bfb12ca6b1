"""Work ahead and its speed, on a clock that the test moves: what fits by the deadline, and when to come back."""

from __future__ import annotations

import pytest

from serve.deployments.admission import MARGIN, MOST_RETRY_S, SPREAD, UNKNOWN_RETRY_S, Room, Throughput, TokenEstimate


class Clock:
    """Stands until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def measured(room: Room, clock: Clock, rate: float) -> Room:
    """The room after ten seconds of so much work a second."""
    for _ in range(101):
        room.throughput.done(rate / 10, more=True)
        clock.now += 0.1
    return room


def test_throughput_counts_busy_time_alone_and_follows_a_change(clock: Clock) -> None:
    throughput = Throughput(clock)
    throughput.done(50.0, more=False)
    clock.now += 1000
    throughput.done(50.0, more=True)
    assert throughput.rate is None
    for _ in range(20):
        clock.now += 0.5
        throughput.done(50.0, more=True)
    assert throughput.rate == pytest.approx(100)
    clock.now += 100
    throughput.done(None, more=True)
    assert throughput.rate == pytest.approx(100)
    for _ in range(40):
        clock.now += 0.5
        throughput.done(25.0, more=True)
    assert throughput.rate == pytest.approx(50, rel=0.05)


def test_room_is_there_for_what_can_be_done_in_time(clock: Clock) -> None:
    room = measured(Room(clock), clock, 100.0)
    room.enter(1000.0)
    assert room.lacks(MARGIN * 3000 - 1000 - 1, 30.0) == 0
    assert room.lacks(MARGIN * 3000 - 1000 + 200, 30.0) == pytest.approx(2, abs=0.1)


def test_room_lets_in_anything_while_nothing_is_ahead_or_nothing_was_measured(clock: Clock) -> None:
    room = measured(Room(clock), clock, 100.0)
    assert room.lacks(1e9, 30.0) == 0
    room.enter(5.0)
    assert room.lacks(1e9, 30.0) > 0
    room.leave(5.0)
    assert room.lacks(1e9, 30.0) == 0
    new = Room(clock)
    new.enter(1e6)
    assert new.lacks(1e9, 30.0) == 0 and UNKNOWN_RETRY_S <= new.come_back(1.0) <= UNKNOWN_RETRY_S * (1 + SPREAD)


def test_room_gives_each_refused_client_a_turn_of_its_own_as_fast_as_work_is_done(clock: Clock) -> None:
    room = measured(Room(clock, chance=lambda: 0.0), clock, 100.0)
    assert [room.come_back(2.0, 500.0) for _ in range(3)] == pytest.approx([2, 7, 12], rel=0.02)
    clock.now += 60
    assert room.come_back(2.0, 500.0) == pytest.approx(2)


def test_room_tells_no_client_to_come_back_much_later_than_the_longest_time(clock: Clock) -> None:
    room = measured(Room(clock), clock, 100.0)
    times = [room.come_back(0.5, 500.0) for _ in range(100)]
    assert max(times) <= MOST_RETRY_S * (1 + SPREAD)
    # Spread, where turns have run out.
    assert len({round(seconds, 3) for seconds in times[50:]}) > 40


def test_token_estimate_learns_from_what_the_encoder_counts_and_reads() -> None:
    estimate = TokenEstimate()
    assert estimate.of(["x" * 100]) == pytest.approx(30)
    estimate.learn(["x" * 100] * 1000, [50] * 1000, 256)
    assert estimate.of(["x" * 100]) == pytest.approx(50, rel=0.05)
    assert estimate.of(["x" * 65_000] * 2) == 512
    estimate.learn(["x" * 65_000], [256], 256)
    assert estimate.of(["x" * 100]) == pytest.approx(50, rel=0.05)
    estimate.learn(["x" * 1000] * 5000, [1000] * 5000, 2048)
    assert estimate.of(["x" * 100]) == pytest.approx(100, rel=0.1)
