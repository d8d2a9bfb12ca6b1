"""One history: a true time, a store that says what really happened, and processes that a seed drives.

Each process is a greenlet, which runs until it gives way. It does so at everything that it asks of the store, so that
any other may come between, and may sleep there for longer than anything is kept, or be killed.
"""

from __future__ import annotations

import heapq
import json
import random
from collections import defaultdict
from collections.abc import Callable

from greenlet import getcurrent, greenlet

from embedder.storage.position import Retention
from embedder.storage.store import Entry

RETENTION = Retention(trusted_s=8.0, kept_s=24.0)
LIFE_S = 120.0
CROWD_S = 12.0
LOG, CATALOG = "task/log", "catalog"
State = dict[str, int]
"""Value by key; a key that was deleted has none."""


class Killed(BaseException):
    """Ends a process wherever it is."""


class Fault(Exception):
    """What must never happen."""


def applied(state: State, commit: bytes) -> State:
    """A state after one commit."""
    changed = dict(state)
    for key, value in json.loads(commit)["keys"].items():
        if value is None:
            changed.pop(key, None)
        else:
            changed[key] = value
    return changed


class TrueStore:
    """A store in memory. It remembers the first content of every number, which is what the protocol must hold to."""

    def __init__(self, world: World, *, keeps: bool = True) -> None:
        self.world, self.keeps = world, keeps
        self.folders: dict[str, dict[str, tuple[bytes, float]]] = defaultdict(dict)
        self.first: dict[str, list[bytes]] = {LOG: [], CATALOG: []}
        """Contents without their marks, in the order of their numbers."""
        self.states: list[State] = [{}]
        """The plain dict after each commit."""

    def put_if_absent(self, name: str, content: bytes) -> bool:
        folder, _, last = name.rpartition("/")
        if self.keeps and last in self.folders[folder]:
            return False
        self.folders[folder][last] = content, self.world.now
        if folder in self.first:
            self._remember(folder, int(last.partition(".")[0]), content[:-16])
        return True

    def _remember(self, folder: str, number: int, content: bytes) -> None:
        known = self.first[folder]
        if number > len(known) + 1:
            self.world.fault(f"{folder} has {number} and not the one before it")
        if number == len(known) + 1:
            known.append(content)
            if folder == LOG:
                self.states.append(applied(self.states[-1], content))

    def get(self, name: str) -> bytes | None:
        folder, _, last = name.rpartition("/")
        found = self.folders[folder].get(last)
        return found[0] if found else None

    def entries(self, folder: str, after: str = "") -> list[Entry]:
        return sorted(Entry(name, stored) for name, (_, stored) in self.folders[folder].items() if name > after)

    def remove(self, name: str) -> None:
        folder, _, last = name.rpartition("/")
        self.folders[folder].pop(last, None)


class World:
    """One history, and what has gone wrong in it."""

    def __init__(self, seed: int) -> None:
        self.seed, self.now = random.Random(seed), 0.0
        self.is_crowd = self.seed.random() < 0.05
        """Nothing fails, and writers want more than the store gives."""
        self.are_alike = self.seed.random() < 0.2
        """Commits of different writers often have the same content."""
        self.focus = self.seed.choice(["", "log", "catalog"])
        """What processes do more often."""
        self.store = TrueStore(self, keeps=self.is_crowd or self.seed.random() > 0.02)
        self.faults: list[str] = []
        self.acknowledged: dict[int, bytes] = {}
        self.last_acknowledged = 0
        self.changes: list[str] = []
        """Changes of the catalog that were acknowledged."""
        self.refused = self.lost_races = self.reopened = self.removed = self.restarts = 0
        self.is_over = False
        self.main = getcurrent()
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._places = 0

    def fault(self, told: str) -> None:
        self.faults.append(f"at {self.now:.1f} s: {told}")
        raise Fault

    def at(self, seconds: float, act: Callable[[], object]) -> None:
        """Do something after so many seconds."""
        self._places += 1
        heapq.heappush(self._due, (self.now + seconds, self._places, act))

    def start(self, process: Callable[[], None], after: float) -> None:
        self.at(after, greenlet(process, parent=self.main).switch)

    def wait(self, seconds: float) -> None:
        """Let others go on; called by the process that runs."""
        self.at(seconds, getcurrent().switch)
        self.main.switch()
        if self.is_over:
            raise Killed

    def run(self, start: Callable[[World], None], check: Callable[[World], None]) -> World:
        start(self)
        life = CROWD_S if self.is_crowd else LIFE_S
        try:
            while self._due and self._due[0][0] < life and not self.faults:
                self.now, _, act = heapq.heappop(self._due)
                act()
            self.is_over = True
            # Processes end where they are; puts that are still under way arrive.
            while self._due:
                heapq.heappop(self._due)[2]()
            if not self.faults:
                check(self)
        except Fault:
            pass
        return self
