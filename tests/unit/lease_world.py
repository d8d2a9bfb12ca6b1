"""Jobs that wish for one lease, each with a clock of its own, on one true time that a seed drives.

Each job is a greenlet, which runs until it gives way. It does so before and after everything that it asks of the store,
so that any other may come between, and may sleep there for longer than anybody waits, or be killed.
"""

from __future__ import annotations

import heapq
import random

from greenlet import getcurrent, greenlet

from embedder.errors import LeaseError, StorageError
from embedder.storage.lease import RENEW_EVERY_S, Lease, newest
from embedder.storage.numbered import NumberedObjects
from embedder.storage.store import Entry, Store

LIFE_S = 240.0
LONGEST_COMMIT_S = 7.0
"""Shorter than what lies between the end of a holder's own time and that of a rival's watch, with clocks 5 % off."""
SPEEDS = (0.95, 1.05)


class Memory:
    """A store in memory."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def put_if_absent(self, name: str, content: bytes) -> bool:
        if name in self.objects:
            return False
        self.objects[name] = content
        return True

    def get(self, name: str) -> bytes | None:
        return self.objects.get(name)

    def entries(self, folder: str, after: str = "") -> list[Entry]:
        names = (name.removeprefix(f"{folder}/") for name in self.objects)
        return [Entry(name, 0.0) for name in sorted(names) if name > after]

    def remove(self, name: str) -> None:
        self.objects.pop(name, None)


def numbered(store: Store) -> NumberedObjects:
    return NumberedObjects(store, "holders", ".json")


class Killed(BaseException):
    """Ends a job wherever it is."""


class SimulatedJob:
    """One job, and the store as it reaches it: slow, and failing before or after it did what it was asked."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name, self.seed = world, name, world.seed
        self.ahead, self.speed = self.seed.uniform(-1e6, 1e6), self.seed.uniform(*SPEEDS)
        self.failing = self.seed.choice([0.0, 0.0, 0.05, 0.3])
        self.life = greenlet(self._live, parent=world.main)

    def clock(self) -> float:
        return self.ahead + self.speed * self.world.now

    def sleep(self, seconds: float) -> None:
        self.world.wait(self, seconds)

    def _reach(self) -> None:
        self.sleep(self.seed.uniform(20, 100) if self.seed.random() < 0.01 else self.seed.uniform(0, 0.4))
        if self.seed.random() < 0.002:
            raise Killed
        if self.seed.random() < self.failing:
            raise StorageError("the store does not answer")

    def put_if_absent(self, name: str, content: bytes) -> bool:
        self._reach()
        is_put = self.world.store.put_if_absent(name, content)
        self._reach()
        return is_put

    def get(self, name: str) -> bytes | None:
        self._reach()
        return self.world.store.get(name)

    def entries(self, folder: str, after: str = "") -> list[Entry]:
        self._reach()
        return self.world.store.entries(folder, after)

    def remove(self, name: str) -> None:
        self.world.store.remove(name)

    def _live(self) -> None:
        try:
            self._work()
        except (Killed, LeaseError):
            pass
        finally:
            self.world.ended()

    def _work(self) -> None:
        lease = Lease(numbered(self), self.name, self.name, self.clock)
        while not lease.number:
            self._try(lease.take)
            self.sleep(self.seed.uniform(1, 4))
        self.world.taken.append(lease.number)
        renew_at, ends_at = self.world.now, self.world.now + self.seed.uniform(0, 150)
        while self.world.now < ends_at:
            if self._try(lease.check):
                self.sleep(self.seed.uniform(0, LONGEST_COMMIT_S))
                self._committed(lease.number)
            if self.world.now >= renew_at and self._try(lease.renew):
                renew_at = self.world.now + RENEW_EVERY_S
            self.sleep(self.seed.uniform(0.1, 4))
        self._try(lease.end)

    def _try(self, act) -> bool:
        try:
            act()
        except StorageError:
            return False
        return True

    def _committed(self, number: int) -> None:
        """Nobody may have taken the lease before the commit was written."""
        claim = newest(numbered(self.world.store))
        if claim is None or claim.lease != number:
            self.world.faults.append(f"{self.name} wrote under lease {number} at {self.world.now:.1f} s, now {claim}")


class World:
    """One history."""

    def __init__(self, seed: int) -> None:
        self.seed, self.store, self.now = random.Random(seed), Memory(), 0.0
        self.taken: list[int] = []
        """The numbers of leases, in the order in which their holders knew."""
        self.faults: list[str] = []
        self.is_over = False
        self.main = getcurrent()
        self._due: list[tuple[float, int, SimulatedJob]] = []
        self._count = self._places = 0

    def wait(self, job: SimulatedJob, seconds: float) -> None:
        """Let others go on; called by the job that runs."""
        self._plan(job, seconds)
        self.main.switch()
        if self.is_over:
            raise Killed

    def ended(self) -> None:
        if not self.is_over:
            self._start(self.seed.uniform(0, 30))

    def run(self) -> World:
        for _ in range(self.seed.randint(2, 4)):
            self._start(self.seed.uniform(0, 60))
        while self._due[0][0] < LIFE_S and not self.faults:
            self.now, _, job = heapq.heappop(self._due)
            job.life.switch()
        self.is_over = True
        while self._due:
            heapq.heappop(self._due)[2].life.switch()
        return self

    def _start(self, after: float) -> None:
        self._count += 1
        self._plan(SimulatedJob(self, f"job {self._count}"), after)

    def _plan(self, job: SimulatedJob, seconds: float) -> None:
        self._places += 1
        heapq.heappush(self._due, (self.now + seconds, self._places, job))
