"""Twelve kills at random moments of labelling runs: no row is lost or doubled, and no committed block is made again.

A round kills an actor, the raylet of a second node, or the driver. Ray recovers from the first two by itself; the
driver is started again, with other settings. Six rounds hit one run, which is then let to its end.
"""

from __future__ import annotations

import json
import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from embedder.data.ledger import Ledger
from embedder.data.records import LABELLED
from tests.cluster.label_actors import BEGUN, PAUSE, dwell
from tests.cluster.label_helpers import Driver, group, labels, write_groups, write_run_file
from tests.cluster.nodes import start_nodes
from tests.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]
RUNS, ROUNDS = 2, 6
UNIT_GROUPS = 2
REWARDED = {"one": ("qa", 40), "two": ("qa", 24), "three": ("lrlm", 36)}
"""Task and number of groups of the datasets."""
PLAIN = {"four": ("tool", 10)}
UNITS = sum(-(-count // UNIT_GROUPS) for _, count in REWARDED.values())
WAIT_S = 300
"""For what takes seconds on an idle machine: an actor imports torch again after each kill, which a busy one slows."""
PAUSE_S = 0.2
"""Over each unit; the tiny LLM alone would be done before anything can be killed."""


def write_run(folder: Path, llm: Path, encoder: Path, order: list[str]) -> Path:
    """The groups in files whose names stand in some order."""
    for position, dataset in enumerate(order):
        task, count = (REWARDED | PLAIN)[dataset]
        groups = [group(task, dataset, number) for number in range(count)]
        write_groups(groups, folder / "work" / "candidates" / f"{position}-{dataset}.parquet", row_group_rows=16)
    return write_run_file(folder, llm, encoder, unit_groups=UNIT_GROUPS)


@dataclass
class Nodes:
    """A head node and a second one, with room for one actor each."""

    cluster: Cluster
    waiting: list[Driver] = field(default_factory=list)
    """Drivers that are connected, or soon will be."""
    used: list[Driver] = field(default_factory=list)

    @classmethod
    def start(cls) -> Nodes:
        """Start both."""
        return cls(start_nodes(1, [1]))

    def driver(self) -> Driver:
        """The next driver; another one gets ready meanwhile."""
        self.waiting += [Driver(self.cluster.address) for _ in range(2 - len(self.waiting))]
        self.used.append(self.waiting.pop(0))
        return self.used[-1]

    def stop(self) -> None:
        """Drivers first, which would else wait for the nodes."""
        for driver in self.waiting + self.used:
            driver.close()
        self.cluster.shutdown()

    @property
    def raylets(self) -> list[int]:
        """Process ids, that of the head first."""
        return [node.all_processes["raylet"][0].process.pid for node in self.cluster.list_all_nodes()]

    def actors(self, raylets: list[int]) -> list[int]:
        """Process ids of the labelling actors that some raylets have started."""
        pids = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((path / "stat").read_text().rpartition(") ")[2].split()[1])
                if parent in raylets and (path / "cmdline").read_bytes().startswith(b"ray::MapWorker"):
                    pids.append(int(path.name))
            except (FileNotFoundError, ProcessLookupError):
                continue
        return sorted(pids)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """Two nodes on this machine, and what was started on them."""
    started = Nodes.start()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def undisturbed(
    nodes: Nodes, tmp_path_factory: pytest.TempPathFactory, tiny_llama_folder: Path, tiny_encoder_folder: Path
) -> dict[str, bytes]:
    """The labels of one actor in blocks of its own, which nobody kills."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run_file = write_run(folder, tiny_llama_folder, tiny_encoder_folder, [*REWARDED, *PLAIN])
    driver = nodes.driver()
    code, output = driver.call(run_file, "--set", "label.block_rows=7")
    assert code == 0, output
    nodes.waiting.insert(0, driver)
    return labels(ledger_of(folder))


def ledger_of(folder: Path) -> Ledger:
    """The labels of a run."""
    return Ledger(folder / "work" / "labelled" / "blocks", LABELLED, "row_id")


class DisturbedRun:
    """A run of `label` that is killed again and again."""

    def __init__(self, nodes: Nodes, run_file: Path, seed: int) -> None:
        self.nodes, self.run_file, self.folder = nodes, run_file, run_file.parent
        self.random = random.Random(seed)
        self.driver = nodes.driver()
        self.block_units = 1
        self.allowed = 0
        """Units that may be begun twice: one block for each actor that was killed."""
        self.killed: Counter[str] = Counter()
        self.safe: list[tuple[int, set[str]]] = []
        """At each kill: units begun so far, and the queries that stood in committed blocks."""

    def begun(self) -> list[list[str]]:
        """The queries of every unit that was begun, in that order."""
        path = self.folder / "cache" / BEGUN
        lines = path.read_text().splitlines() if path.is_file() else []
        return [json.loads(line)["queries"] for line in lines]

    def begin(self) -> None:
        """Start the job with settings that may change from one start to the next."""
        self.block_units = self.random.randint(1, 4)
        rows = self.block_units * UNIT_GROUPS
        self.driver.begin(self.run_file, "--set", f"label.block_rows={rows}", "--set", "label.num_actors=2")

    def note_what_is_safe(self) -> None:
        """What is committed now must never be labelled again."""
        rows = ledger_of(self.folder).read().to_pylist()
        self.safe.append((len(self.begun()), {row["query_id"] for row in rows}))

    def wait_for_units(self, count: int) -> None:
        """Until so many units are begun, and up to two units longer."""
        wait_until(lambda: len(self.begun()) >= count or self.driver.process.poll() is not None, WAIT_S)
        dwell(self.random.uniform(0, PAUSE_S))

    def kill_actor(self) -> None:
        """Kill one of the actors that are there."""
        wait_until(lambda: bool(self.nodes.actors(self.nodes.raylets)), WAIT_S)
        self.note_what_is_safe()
        os.kill(self.random.choice(self.nodes.actors(self.nodes.raylets)), signal.SIGKILL)
        self.allowed += self.block_units

    def kill_raylet(self) -> None:
        """Kill the raylet of the second node once it has an actor, and start another node."""
        wait_until(lambda: bool(self.nodes.actors(self.nodes.raylets[1:])), WAIT_S)
        self.note_what_is_safe()
        os.kill(self.nodes.raylets[1], signal.SIGKILL)
        self.allowed += self.block_units
        self.nodes.cluster.remove_node(next(iter(self.nodes.cluster.worker_nodes)), allow_graceful=False)
        self.nodes.cluster.add_node(num_cpus=1)

    def kill_driver(self) -> None:
        """Kill the driver, and go on with another one."""
        self.driver.process.kill()
        self.allowed += 2 * self.block_units
        wait_until(lambda: not self.nodes.actors(self.nodes.raylets), WAIT_S)
        self.note_what_is_safe()
        self.driver = self.nodes.driver()
        self.begin()

    def disturb(self, rounds: list[str], moments: list[int]) -> str:
        """Kill something at each moment, and let the job run to its end; returns what it says."""
        (self.folder / "cache" / PAUSE).write_text(str(PAUSE_S))
        self.begin()
        for what, moment in zip(rounds, moments, strict=True):
            self.wait_for_units(moment)
            getattr(self, f"kill_{what}")()
            self.killed[what] += 1
        code, output = self.driver.end()
        assert code == 0, output
        self.nodes.waiting.insert(0, self.driver)
        return output


def seeded_rounds() -> list[tuple[list[str], list[int]]]:
    """For each run what is killed, and after how many begun units."""
    chosen = random.Random(7)
    kinds = (["actor", "raylet", "driver"] * RUNS * ROUNDS)[: RUNS * ROUNDS]
    chosen.shuffle(kinds)
    return [
        (kinds[run * ROUNDS : (run + 1) * ROUNDS], sorted(chosen.sample(range(UNITS), ROUNDS))) for run in range(RUNS)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(RUNS))
def test_label_killed_at_random_moments_leaves_the_labels_of_an_undisturbed_run(
    nodes: Nodes,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    tiny_llama_folder: Path,
    tiny_encoder_folder: Path,
    number: int,
) -> None:
    order = random.Random(number).sample([*REWARDED, *PLAIN], len(REWARDED | PLAIN))
    run = DisturbedRun(nodes, write_run(tmp_path, tiny_llama_folder, tiny_encoder_folder, order), number)
    rounds, moments = seeded_rounds()[number]
    output = run.disturb(rounds, moments)
    assert sum(run.killed.values()) == ROUNDS
    ledger = ledger_of(tmp_path)
    assert labels(ledger) == undisturbed
    assert ledger.count_duplicates() == 0 and f"{len(undisturbed)} groups in = {len(undisturbed)} out" in output
    begun = run.begun()
    assert UNITS <= len(begun) <= UNITS + run.allowed
    for before, safe in run.safe:
        assert not safe & {query for unit in begun[before:] for query in unit}
