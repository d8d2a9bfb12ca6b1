"""Clients that ask a service at once, and what they were answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx

from tests.waiting import wait_until


@dataclass
class Load:
    """Clients that ask until they are told to stop, and what they were answered."""

    ask: Callable[[httpx.Client, int], None]
    """Asks once and asserts that the answer is right."""
    client: Callable[[], httpx.Client]
    clients: int = 10
    failures: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """How long each right answer took."""

    @property
    def answered(self) -> int:
        """How many answers were right."""
        return len(self.seconds)

    def wait_for(self, answers: int) -> None:
        """Wait until so many more requests are answered, or one fails."""
        wanted = self.answered + answers
        wait_until(lambda: self.answered >= wanted or bool(self.failures), 180)

    def __enter__(self) -> Load:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        with self.client() as client:
            while not self._stop.is_set():
                began = time.monotonic()
                try:
                    self.ask(client, number)
                    self.seconds.append(time.monotonic() - began)
                except (AssertionError, httpx.HTTPError) as error:
                    self.failures.append(repr(error)[:500])
                number += self.clients
