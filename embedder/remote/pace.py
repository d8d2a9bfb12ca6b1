"""How many requests are under way at once, and how many may be repeated; shared by the threads that send them."""

from __future__ import annotations

import threading
import time

FIRST_REQUESTS = 8
SLOW_DOWN, MOST_SLOW_DOWN = 0.95, 0.5
"""Share of the requests that go on after a refusal, and at least."""
GROWTH = 0.1
"""Requests by which their number grows in the first round after an overload; twice as many in the second, and so on, so
that a server that bears much more later is soon used."""
FREE_REPEATS, REPEATS_A_SUCCESS = 20, 0.2
"""A server may fail so often at first, and then for each request that it answered; beyond it is broken, not busy."""


class RequestPace:
    """The number of requests under way: additive increase, multiplicative decrease (Jacobson, 1988).

    It doubles with each round of requests until the server is first overloaded, then grows slowly. A refusal tells what
    the server bears: the requests beside the refused one. Silence tells only that they are too many.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = float(min(FIRST_REQUESTS, most))
        lock = threading.Lock()
        self._changed, self._answer = threading.Condition(lock), threading.Condition(lock)
        self._running = 0
        self._is_slow = False
        self._cut_at = 0.0
        self._resume_at = 0.0
        self._answered = 0
        self._answered_since_cut = 0
        self._repeated = 0

    def enter(self) -> float:
        """Wait for a place and for the time that the server asked for; returns when the request begins."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._running < int(self.limit))
                # After the wait for a place, in which the server may have asked for a pause.
                pause = self._resume_at - time.monotonic()
                if pause <= 0:
                    self._running += 1
                    return time.monotonic()
            # Outside of the lock, so that answers are still counted.
            time.sleep(pause)

    def leave(self) -> None:
        """Give the place back."""
        with self._changed:
            self._running -= 1
            # No more than there are places: of many threads that all wake at each answer, most wake for nothing.
            self._changed.notify(max(0, int(self.limit) - self._running))

    def answered(self) -> None:
        """The server kept up with a request that still has its place."""
        with self._changed:
            self._answered += 1
            self._answered_since_cut += 1
            self._answer.notify()
            rounds = self._answered_since_cut / self.limit
            self.limit = min(self.most, self.limit + min(1, GROWTH * rounds / self.limit if self._is_slow else 1))

    def overloaded(self, began: float, *, is_silent: bool) -> None:
        """The server refused, or was silent about, a request that began at a time and still has its place."""
        with self._changed:
            # Requests that were under way together tell of one overload, not of many.
            if began < self._cut_at:
                return
            borne = 0.0 if is_silent else min(SLOW_DOWN * self.limit, self._running - 1)
            self.limit = max(1.0, MOST_SLOW_DOWN * self.limit, borne)
            self._cut_at, self._is_slow, self._answered_since_cut = time.monotonic(), True, 0

    def wait_for_answer(self, seconds: float) -> None:
        """Wait so long at most, or until a request that is under way is answered: the server has a place free then."""
        with self._changed:
            if self._running:
                self._answer.wait(seconds)
                return
        time.sleep(seconds)

    def pause(self, seconds: float) -> None:
        """No request begins for so long."""
        self._resume_at = max(self._resume_at, time.monotonic() + seconds)

    def may_repeat(self) -> bool:
        """Count one more repetition; False where there were too many of them for the answers that came."""
        with self._changed:
            self._repeated += 1
            return self._repeated <= FREE_REPEATS + REPEATS_A_SUCCESS * self._answered
