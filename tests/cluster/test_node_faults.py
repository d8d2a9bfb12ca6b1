"""Nodes that die at random moments of every stage: each ends with the result of the undisturbed run.

A head without work, as in `cluster.yaml`, and two nodes for all of it. A round kills one of these with all its
processes and starts another in its place; training is also hit by a preemption with notice.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from ray.cluster_utils import Cluster

from embedder.config.load import load_run
from tests.cluster.label_actors import dwell
from tests.cluster.label_helpers import Driver
from tests.cluster.nodes import start_nodes
from tests.cluster.results import RESULTS

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
TRIES = 5
"""Kills of a test at most: of a stage of some seconds many come when it has ended."""
OUTPUTS = {
    "prepare": ["prepared"],
    "mine": ["vectors", "rankings", "candidates"],
    "label": ["labelled"],
    "train": ["training", "model"],
    "index": ["vectors", "indexes"],
    "evaluate": ["vectors", "rankings", "evaluation"],
}
"""The folders below `paths.work` that a stage writes, in the order of the stages."""


@dataclass
class Nodes:
    """The cluster, and a driver on its head."""

    cluster: Cluster
    driver: Driver

    @classmethod
    def start(cls) -> Nodes:
        """A head without CPUs and two nodes with two each."""
        cluster = start_nodes(0, [2, 2])
        return cls(cluster, Driver(cluster.address, None))

    def kill(self, chosen: int, notice_s: int | None = None) -> float:
        """Kill a node with all its processes, perhaps announced some seconds before, and start another.

        Returns when it died (monotonic seconds): the other one takes seconds to come.
        """
        node = sorted(self.cluster.worker_nodes, key=lambda node: str(node.node_id))[chosen]
        if notice_s is not None:
            drain = ["--node-id", node.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test"]
            command = [str(Path(sys.executable).parent / "ray"), "drain-node", "--address", self.cluster.address]
            command += [*drain, "--deadline-remaining-seconds", str(notice_s)]
            subprocess.run(command, check=True, capture_output=True, timeout=60)
            dwell(notice_s)
        self.cluster.remove_node(node, allow_graceful=False)
        died = time.monotonic()
        self.cluster.add_node(num_cpus=2)
        return died

    def stop(self) -> None:
        """The driver first, which would else wait for the nodes."""
        self.driver.close()
        self.cluster.shutdown()


@dataclass
class Undisturbed:
    """A run that nobody hit, and the seconds that each stage took."""

    run_file: Path
    seconds: dict[str, float]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """The nodes of this module."""
    started = Nodes.start()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def undisturbed(nodes: Nodes, run_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The session's six tasks in a folder of its own, with two actors wherever there can be two."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run = yaml.safe_load(run_file.read_text(encoding="utf-8"))
    run["paths"] = {"work": str(folder / "work"), "cache": str(folder / "cache")}
    run["encoder"]["num_actors"] = run["label"]["num_actors"] = run["evaluate"]["num_actors"] = 2
    run["train"] |= {"steps": 30, "save_every": 2, "num_workers": 2, "max_failures": 10}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run), encoding="utf-8")
    seconds = {}
    nodes.driver.wait_until_ready()
    for stage in OUTPUTS:
        began = time.monotonic()
        code, output = nodes.driver.call(path, stage=stage)
        assert code == 0, output[-3000:]
        seconds[stage] = time.monotonic() - began
    return Undisturbed(path, seconds)


def copy_before(stage: str, run_file: Path, work: Path) -> None:
    """The files of a whole run, without what this stage and those after it have written."""
    source = load_run(run_file).paths.work
    stages = list(OUTPUTS)
    missing = {folder for later in stages[stages.index(stage) :] for folder in OUTPUTS[later]}
    # Vectors are added to by three stages; a stage that finds them all would have nothing to encode.
    for folder in source.iterdir():
        if folder.is_dir() and folder.name not in missing:
            shutil.copytree(folder, work / folder.name)


@pytest.mark.parametrize(("stage", "notice_s"), [*((stage, None) for stage in OUTPUTS), ("train", 3)])
def test_stage_result_is_unchanged_when_a_node_dies(
    nodes: Nodes, undisturbed: Undisturbed, tmp_path: Path, stage: str, notice_s: int | None
) -> None:
    draw = random.Random(f"{stage} {notice_s}")
    for attempt in range(TRIES):
        work = tmp_path / f"work-{attempt}"
        copy_before(stage, undisturbed.run_file, work)
        override = f"paths.work={work}"
        nodes.driver.begin(undisturbed.run_file, "--set", override, stage=stage)
        dwell(draw.uniform(0.1, 0.8) * undisturbed.seconds[stage])
        died = nodes.kill(draw.randrange(2), notice_s)
        code, output = nodes.driver.end()
        assert code == 0, output[-3000:]
        result = RESULTS[stage]
        assert result(load_run(undisturbed.run_file, [override])) == result(load_run(undisturbed.run_file))
        if nodes.driver.ended > died:
            return
    raise AssertionError("all kills came too late")
