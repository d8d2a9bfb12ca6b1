"""The number of requests at once, on simulated servers in simulated time: how much of what they bear is used."""

from __future__ import annotations

import heapq
import threading
import time
from itertools import count
from random import Random
from types import SimpleNamespace

import pytest

from embedder.remote import pace

ANSWER_S, REFUSAL_S, MOST = 0.5, 0.01, 64


class Simulation:
    """Requests to a server that refuses, or lets wait, what is more than it bears."""

    def __init__(self, requests, borne, *, refuses=True, seed=0):
        """`borne`: requests at once that the server bears, by the time in seconds."""
        self.ready, self.borne, self.refuses, self.draw = requests, borne, refuses, Random(seed)
        self.now, self.served, self.refused = 0.0, 0, 0
        self.events, self.order, self.waiting = [], count(), []

    def run(self, monkeypatch):
        """Seconds until the last answer."""
        monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.pace, self.running = pace.RequestPace(MOST), 0
        self.begin()
        while self.events:
            self.now, _, event, began = heapq.heappop(self.events)
            event(began)
            self.begin()
        return self.now

    def at(self, seconds, event, began):
        heapq.heappush(self.events, (self.now + seconds, next(self.order), event, began))

    def begin(self):
        while self.ready and self.running < int(self.pace.limit):
            self.ready, self.running = self.ready - 1, self.running + 1
            began = self.pace.enter()
            if self.served < self.borne(self.now):
                self.serve(began)
            elif self.refuses:
                self.at(REFUSAL_S, self.refuse, began)
            else:
                self.waiting.append(began)

    def serve(self, began):
        self.served += 1
        self.at(ANSWER_S * self.draw.uniform(0.8, 1.2), self.answer, began)

    def answer(self, began):
        self.served, self.running = self.served - 1, self.running - 1
        if self.waiting:
            self.serve(self.waiting.pop(0))
        self.pace.answered()
        self.pace.leave()

    def refuse(self, began):
        self.refused, self.running = self.refused + 1, self.running - 1
        self.pace.overloaded(began, is_silent=False)
        self.pace.leave()
        self.at(self.draw.uniform(0.5, 1.0), self.again, began)

    def again(self, began):
        self.ready += 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("refuses", [True, False])
@pytest.mark.parametrize("bears", [3, 16, 40])
def test_pace_uses_nine_tenths_of_what_a_server_bears(monkeypatch, bears, refuses, seed):
    requests = 40 * bears
    simulation = Simulation(requests, lambda now: bears, refuses=refuses, seed=seed)
    assert requests * ANSWER_S / bears / simulation.run(monkeypatch) >= 0.9
    assert simulation.refused < requests / 4


@pytest.mark.parametrize(("before", "after", "least"), [(24, 6, 0.9), (6, 24, 0.75)])
def test_pace_follows_a_server_that_bears_more_or_less_later(monkeypatch, before, after, least):
    changes_at, requests = 10.0, 1000
    simulation = Simulation(requests, lambda now: before if now < changes_at else after)
    answered_before = before * changes_at / ANSWER_S
    best = changes_at + (requests - answered_before) * ANSWER_S / after
    assert best / simulation.run(monkeypatch) >= least


def test_pace_halves_at_each_silence(monkeypatch):
    now = 1.0
    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: now))
    found = pace.RequestPace(8)
    first, second = found.enter(), found.enter()
    now = 2.0
    found.overloaded(first, is_silent=True)
    found.overloaded(second, is_silent=True)  # under way beside the first
    assert found.limit == 4
    found.overloaded(now, is_silent=True)
    assert found.limit == 2


def test_pace_threads_that_wait_for_a_place_obey_a_pause_that_is_asked_for_meanwhile():
    shared, began = pace.RequestPace(2), []
    for _ in range(2):
        shared.enter()
    waiting = [threading.Thread(target=lambda: began.append(shared.enter())) for _ in range(4)]
    for each in waiting:
        each.start()
    asked = time.monotonic()
    shared.pause(0.3)
    for _ in range(4):
        shared.leave()
    for each in waiting:
        each.join(10)
    assert len(began) == 4 and min(began) - asked >= 0.3
