"""Machines that share nothing but the object store, and come and go: all stages, with the result of an undisturbed run.

A head without work and three nodes, each in a mount namespace of its own: the folders of the test, models, sources and
caches in them, are empty there and its own.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import psutil
import pytest
from ray.cluster_utils import Cluster

from embedder.config.load import load_run
from embedder.storage.node_cache import cache_folder
from tests.cluster.conftest import free_port
from tests.cluster.label_actors import dwell
from tests.cluster.label_helpers import Driver
from tests.cluster.nodes import start_nodes
from tests.cluster.results import RESULTS
from tests.cluster.store_runs import with_inputs_in, write_run
from tests.cluster.test_preflight_nodes import may_unshare
from tests.object_store import ObjectStore
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not may_unshare(), reason="mount namespaces need root and unshare"),
]
NODES = 3
STAGES = ("prepare", "mine", "label", "train", "index", "evaluate")
KILLS = 2
"""Of a stage, as far as it goes on for so long."""


class NodesApart:
    """The cluster; `own` are folders that each node has for itself."""

    def __init__(self, own: list[Path], logs: Path) -> None:
        self._own, self._logs, self._cluster = own, logs, start_nodes(0, [])
        self._nodes = [self._start() for _ in range(NODES)]
        self.driver = Driver(self.address, None)

    @property
    def address(self) -> str:
        cluster: Cluster = self._cluster
        return str(cluster.address)

    def _start(self) -> subprocess.Popen[bytes]:
        binary = Path(sys.executable).with_name("ray")
        start = f"{binary} start --address={self.address} --num-cpus=2 --block --min-worker-port=0 --max-worker-port=0"
        start += f" --dashboard-agent-listen-port={free_port()}"
        mounts = [f"mount -t tmpfs none {folder}" for folder in self._own]
        command = ["unshare", "--mount", "sh", "-c", " && ".join([*mounts, f"exec {start}"])]
        log = self._logs / f"node-{uuid4().hex}.log"
        with log.open("wb") as output:
            node = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=dict(os.environ), start_new_session=True
            )
        # One after another: two that start at once choose the same names for their sockets.
        wait_until(lambda: "Ray runtime started" in log.read_text() or node.poll() is not None, 240)
        assert node.poll() is None, log.read_text()[-3000:]
        return node

    def kill(self, chosen: int) -> float:
        """Kill a node with all its processes, and start another one; returns when it died (monotonic seconds)."""
        _kill(self._nodes[chosen])
        died = time.monotonic()
        self._nodes[chosen] = self._start()
        return died

    def stop(self) -> None:
        """The driver first, which would else wait for the nodes."""
        self.driver.close()
        for node in self._nodes:
            _kill(node)
        self._cluster.shutdown()


def _kill(node: subprocess.Popen[bytes]) -> None:
    if node.poll() is None:
        for process in [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    node.wait(timeout=60)


@pytest.fixture
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodesApart]:
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="nodes-") as logs:
        started = NodesApart([tmp_path_factory.getbasetemp(), cache_folder()], Path(logs))
        yield started
        started.stop()


def test_stages_on_nodes_that_come_and_go_and_share_no_disk_end_alike(
    nodes: NodesApart, object_store: ObjectStore, run_file: Path, tmp_path: Path
) -> None:
    seconds: dict[str, float] = {}
    paths, killed, draw = dict[str, Path](), 0, random.Random(0)
    for name in ("calm", "hit"):
        path = write_run(tmp_path / name / "run.yaml", run_file, object_store.uri(f"apart/{name}"))
        paths[name] = with_inputs_in(object_store, path)
        for stage in STAGES:
            began, died = time.monotonic(), list[float]()
            nodes.driver.begin(path, stage=stage)
            for _ in range(KILLS if name == "hit" else 0):
                dwell(draw.uniform(0.2, 0.5) * seconds[stage])
                died.append(nodes.kill(draw.randrange(NODES)))
            code, output = nodes.driver.end()
            assert code == 0, f"{name}, {stage}: {output[-3000:]}"
            killed += sum(moment < nodes.driver.ended for moment in died)
            seconds.setdefault(stage, time.monotonic() - began)
    for stage, result in RESULTS.items():
        assert result(load_run(paths["hit"])) == result(load_run(paths["calm"])), stage
    assert killed
