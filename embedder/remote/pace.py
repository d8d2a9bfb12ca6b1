"""How many requests are under way at once, and how many may be repeated; shared by the threads that send them."""

from __future__ import annotations

import threading
import time

FIRST_REQUESTS = 4
FIRST_SLOW_DOWN, SLOW_DOWN = 0.5, 0.85
"""Share of the requests that go on after the server was overloaded: at first it may have been asked for twice of what
it bears. With 0.5 always, a server that refuses would be used to three quarters on average."""
GROWTH = 0.2
"""Requests by which their number grows a round. With 1, a server that bears three would refuse every third request."""
FREE_REPEATS, REPEATS_A_SUCCESS = 20, 0.2
"""A server may fail so often at first, and then for each request that it answered; beyond it is broken, not busy."""


class RequestPace:
    """The number of requests under way: additive increase, multiplicative decrease (Jacobson, 1988).

    It doubles with each round of requests until the server is first overloaded, then grows slowly.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = float(min(FIRST_REQUESTS, most))
        self._changed = threading.Condition()
        self._running = 0
        self._is_slow = False
        self._cut_at = 0.0
        self._resume_at = 0.0
        self._answered = 0
        self._repeated = 0

    def enter(self) -> float:
        """Wait for a place and for the time that the server asked for; returns when the request begins."""
        # Outside of the lock, so that answers are still counted.
        pause = self._resume_at - time.monotonic()
        if pause > 0:
            time.sleep(pause)
        with self._changed:
            self._changed.wait_for(lambda: self._running < int(self.limit))
            self._running += 1
        return time.monotonic()

    def leave(self) -> None:
        """Give the place back."""
        with self._changed:
            self._running -= 1
            self._changed.notify_all()

    def answered(self) -> None:
        """The server kept up."""
        with self._changed:
            self._answered += 1
            self.limit = min(self.most, self.limit + (GROWTH / self.limit if self._is_slow else 1))
            self._changed.notify_all()

    def overloaded(self, began: float) -> None:
        """The server refused or was silent about a request that began at a time."""
        with self._changed:
            # Requests that were under way together tell of one overload, not of many.
            if began >= self._cut_at:
                self.limit = max(1.0, self.limit * (SLOW_DOWN if self._is_slow else FIRST_SLOW_DOWN))
                self._cut_at, self._is_slow = time.monotonic(), True

    def pause(self, seconds: float) -> None:
        """No request begins for so long."""
        self._resume_at = max(self._resume_at, time.monotonic() + seconds)

    def may_repeat(self) -> bool:
        """Count one more repetition; False where there were too many of them for the answers that came."""
        with self._changed:
            self._repeated += 1
            return self._repeated <= FREE_REPEATS + REPEATS_A_SUCCESS * self._answered
