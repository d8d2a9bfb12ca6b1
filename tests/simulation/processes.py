"""The processes of a history: each opens the log, writes, follows, folds and cleans by the protocol's own code."""

from __future__ import annotations

import json
from collections.abc import Callable

from embedder.errors import ConfigError, StorageError
from embedder.storage import connect
from embedder.storage.commit_log import CommitLog
from embedder.storage.log_writer import Writer
from embedder.storage.position import Position
from embedder.storage.revisions import Revisions
from embedder.storage.store import Entry
from tests.simulation.world import CATALOG, LOG, RETENTION, Fault, Killed, State, TrueStore, World, applied

KEYS = "abcdef"
MOST_LOST = 60
"""Races that one commit may lose where nothing fails."""


class FailingStore:
    """The store as one process reaches it: slow, and failing before or after it acts, or acting much later."""

    def __init__(self, world: World, failing: float) -> None:
        self.world, self.seed, self.failing = world, world.seed, failing
        self.log_puts = 0

    def _reach(self) -> None:
        seed = self.seed
        if self.world.is_crowd:
            self.world.wait(seed.uniform(0.0095, 0.0105))
            return
        chance = seed.random()
        # A machine that sleeps, and one that is merely slow.
        self.world.wait(seed.uniform(2, 70) if chance < 0.012 else 0.02 + 0.3 * chance)
        if 0.5 < chance < 0.503:
            raise Killed
        if seed.random() < self.failing:
            raise StorageError("the store does not answer")

    def put_if_absent(self, name: str, content: bytes) -> bool:
        self.log_puts += name.startswith(LOG)
        try:
            self._reach()
        except StorageError:
            if self.seed.random() < 0.3:
                # Sent, and on its way for longer than the sender waits.
                self.world.at(self.seed.uniform(0, 90), lambda: self.world.store.put_if_absent(name, content))
            raise
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
        self._reach()
        if name.startswith(LOG):
            self.world.removed += 1
        self.world.store.remove(name)


class Opened:
    """A log that is open: its state, and how far that has been read."""

    def __init__(self, world: World, store: FailingStore | TrueStore, clock: Callable[[], float]) -> None:
        self.world, self.store = world, store
        mark = world.seed.randbytes
        self.log = CommitLog(store, "task", clock, mark, RETENTION)
        self.state: State = {}
        self.kept: tuple[int, str] | None = None
        """A number and the state up to it, as on the disk of this machine."""
        self.position = Position(0, 0.0)
        self.open()

    def open(self) -> None:
        """From the newest snapshot, or where this process has kept what goes further, from that."""
        self.position, content = self.log.snapshot()
        self.state = json.loads(content) if content else {}
        if self.kept is not None and self.kept[0] > self.position.number:
            number, state = self.kept
            self.state, self.position = json.loads(state), Position(number, self.position.since)
        self._compare()

    def follow(self) -> None:
        """To the end of the log as it is now."""
        least, is_whole = self.world.last_acknowledged, False
        while not is_whole:
            tail = self.log.read(self.position)
            if tail is None:
                self.world.reopened += 1
                self.open()
                continue
            for commit in tail.commits:
                self.state = applied(self.state, commit)
            self.position, is_whole = tail.end, tail.is_whole
            self._compare()
        if self.position.number < least:
            self.world.fault(f"commit {least} was acknowledged, and who read later came to {self.position.number}")

    def _compare(self) -> None:
        number, states = self.position.number, self.world.store.states
        if number >= len(states) or self.state != states[number]:
            true = states[number] if number < len(states) else "nothing"
            self.world.fault(f"the state after commit {number} is {self.state}, and a plain dict has {true}")


class Process:
    """One life of a writer and follower."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.seed, self.name = world, world.seed, name
        self.ahead, self.speed = self.seed.uniform(-1e6, 1e6), self.seed.uniform(0.9, 1.1)
        self.store = FailingStore(world, 0.0 if world.is_crowd else self.seed.choice([0.0, 0.02, 0.02, 0.15]))
        self.sent = 0

    def clock(self) -> float:
        return self.ahead + self.speed * self.world.now

    def live(self) -> None:
        try:
            # Looked up there, so that a test may take it away.
            connect.check_conditions(self.store)
            self._work()
        except ConfigError:
            self.world.refused += 1
        except (Killed, StorageError):
            self._restart()
        except Fault:
            pass

    def _restart(self) -> None:
        if not self.world.is_over:
            self.world.restarts += 1
            self.world.start(Process(self.world, self.name + "'").live, self.seed.uniform(0, 10))

    def _work(self) -> None:
        self.opened = Opened(self.world, self.store, self.clock)
        self.catalog = Revisions(self.store, CATALOG, self.clock, self.seed.randbytes, RETENTION)
        self.writer = Writer(self.opened.log, self.opened.position, self.clock, self._sleep, self.seed.random)
        acts = [self._write, self._write, self._write, self.opened.follow, self.opened.follow, self._fold]
        acts += [self._clean, self._keep, self._change_catalog]
        acts += {"log": [self._fold, self._clean], "catalog": [self._change_catalog] * 6 + [self._clean] * 3, "": []}[
            self.world.focus
        ]
        while True:
            if self.world.is_crowd:
                self._write()
                continue
            self.world.wait(self.seed.uniform(0, 8))
            try:
                self.seed.choice(acts)()
            except StorageError:
                continue

    def _sleep(self, seconds: float) -> None:
        if seconds > 0:
            self.world.wait(seconds / self.speed)

    def _write(self) -> None:
        content = self._commit()
        before, puts = self.world.last_acknowledged, self.store.log_puts
        number = self.writer.commit(content)
        lost = self.store.log_puts - puts - 1
        self.world.lost_races += lost
        if self.world.is_crowd and lost > MOST_LOST:
            self.world.fault(f"{self.name} lost {lost} races for one commit")
        if self.world.store.first[LOG][number - 1] != content:
            self.world.fault(f"commit {number} was acknowledged, but the log has another one")
        if number <= before:
            self.world.fault(f"commit {number} stands before {before}, which was acknowledged before it began")
        if number in self.world.acknowledged:
            self.world.fault(f"commit {number} was acknowledged twice")
        self.world.acknowledged[number] = content
        self.world.last_acknowledged = max(self.world.last_acknowledged, number)

    def _commit(self) -> bytes:
        """Some keys, each set or deleted; where commits are alike, others may write the same."""
        self.sent += 1
        if self.world.are_alike:
            return json.dumps({"keys": {"a": self.seed.choice([None, 1])}}).encode()
        keys = {
            key: None if self.seed.random() < 0.3 else self.seed.randrange(10**6)
            for key in self.seed.sample(KEYS, self.seed.randint(1, 3))
        }
        return json.dumps({"who": self.name, "sent": self.sent, "keys": keys}).encode()

    def _fold(self) -> None:
        self.opened.follow()
        self.opened.log.put_snapshot(self.opened.position.number, json.dumps(self.opened.state).encode())

    def _keep(self) -> None:
        self.opened.follow()
        self.opened.kept = (self.opened.position.number, json.dumps(self.opened.state))
        self.opened.open()

    def _change_catalog(self) -> None:
        self.sent += 1
        change = f"{self.name}-{self.sent}"
        self.catalog.change(lambda content: json.dumps([*json.loads(content or b"[]"), change]).encode())
        self.world.changes.append(change)

    def _clean(self) -> None:
        self.opened.log.clean()
        self.catalog.clean()


def start(world: World) -> None:
    """Two to four processes."""
    for number in range(world.seed.randint(2, 4)):
        world.start(Process(world, f"p{number}").live, world.seed.uniform(0, 0.01 if world.is_crowd else 5))


def check(world: World) -> None:
    """What holds when all is over: of the log, of the catalog, and of who opens now."""
    if world.refused:
        return
    commits = world.store.first[LOG]
    if len(set(commits)) < len(commits) and not world.are_alike:
        world.fault("a commit is in the log twice")
    for number, content in world.acknowledged.items():
        if commits[number - 1] != content:
            world.fault(f"commit {number} was acknowledged, but the log has another one at the end")
    chain = [json.loads(content) for content in world.store.first[CATALOG]]
    if any(after[:-1] != before for before, after in zip([[], *chain], chain, strict=False)):
        world.fault("a change of the catalog undid another one")
    if lost := set(world.changes) - set(chain[-1] if chain else []):
        world.fault(f"changes of the catalog were acknowledged and are lost: {sorted(lost)}")
    late = Opened(world, world.store, lambda: world.now)
    late.follow()
    if late.position.number != len(commits):
        world.fault(f"who opens at the end comes to commit {late.position.number} of {len(commits)}")


def history(seed: int) -> World:
    """Run one history."""
    return World(seed).run(start, check)
