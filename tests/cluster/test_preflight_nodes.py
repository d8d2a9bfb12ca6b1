"""A cluster whose nodes do not share the run's storage: refused before any work, and when such a node joins later."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from embedder.config.load import load_run
from embedder.config.run import RunConfig
from embedder.errors import ConfigError
from ray_jobs.cluster import node_checks
from ray_jobs.cluster.look import look
from ray_jobs.cluster.node_checks import NodeChecks
from tests.cluster.conftest import Cluster, free_port
from tests.waiting import wait_until


def may_unshare() -> bool:
    """Whether this process may give a node a view of its own on the file system."""
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0


pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(not may_unshare(), reason="mount namespaces need root and unshare"),
]


@pytest.fixture
def driver(cluster: Cluster) -> Iterator[None]:
    """This process as a driver on the session's Ray."""
    ray.init(address=cluster.address, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: Cluster) -> RunConfig:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    monkeypatch.setattr(node_checks, "LOOK_EVERY_S", 0.5)
    path = tmp_path / "run.yaml"
    path.write_text(
        f"paths: {{work: {tmp_path}/work, cache: {tmp_path}/cache}}\nencoder: {{model: {tmp_path}, pooling: mean}}\n"
    )
    (tmp_path / "work").mkdir()
    return load_run(path)


def join(cluster: Cluster, alone: Path | None = None) -> subprocess.Popen[bytes]:
    """A node that joins; with `alone` that folder is one of its own there."""
    binary = Path(sys.executable).with_name("ray")
    start = f"{binary} start --address={cluster.address} --num-cpus=1 --block --min-worker-port=0 --max-worker-port=0"
    start += f" --dashboard-agent-listen-port={free_port()}"
    mount = f"mount -t tmpfs none {alone} && " if alone else ""
    prefix = ["unshare", "--mount"] if alone else []
    command = [*prefix, "sh", "-c", f"{mount}exec {start}"]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ), start_new_session=True
    )


def alive() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def leave(node: subprocess.Popen[bytes]) -> None:
    os.killpg(node.pid, signal.SIGTERM)
    node.wait(timeout=60)


def test_nodes_that_share_the_storage_pass_and_one_that_joins_without_it_ends_the_stage(
    cluster: Cluster, driver: None, config: RunConfig
) -> None:
    before = alive()
    shares = join(cluster)
    alone = None
    try:
        wait_until(lambda: bool(alive() - before), timeout_s=240)
        with NodeChecks("prepare", config) as checks:
            assert f"machines see {config.paths.work} and may write there" in checks.told()
            assert len(checks.answers) >= 2
        assert list(config.paths.work.iterdir()) == []
        words = rf"its {config.paths.work} is another one than the driver's"
        with pytest.raises(ConfigError, match=words), NodeChecks("prepare", config):
            alone = join(cluster, config.paths.work)
            wait_until(lambda: False, timeout_s=240)  # the work of a stage, which has no end here
        with pytest.raises(ConfigError, match=words), NodeChecks("prepare", config):
            pytest.fail("the work began")
        found = [(each["level"], each["what"].split()[0]) for each in look(config)]
        assert found[0] == ("ok", "cluster")
        # Ray lists its nodes in no order.
        assert sorted(found[1:]) == [("ok", "node"), ("ok", "node"), ("wrong", "node")]
    finally:
        for node in (shares, alone):
            if node is not None:
                leave(node)
