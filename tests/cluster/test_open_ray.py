"""A Ray that asks for no token, and the one that a job starts itself, as they really are."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedder.run.ray_token import answer_to_a_stranger
from serve.ports import OPEN
from tests.cluster.commands import deployed_config, serve
from tests.cluster.conftest import ROOT, Cluster, free_port
from tests.cluster.strangers import ports_of_this_ray, what_strangers_can_do
from tests.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]
OWN_RAY = """
import sys
from embedder.config.cluster import ClusterConfig
from embedder.console import exit_on_error
from ray_jobs.cluster.session import connect
with exit_on_error():
    connect(ClusterConfig())
print("started", flush=True)
sys.stdin.read()
"""


def laptop(home: Path, **variables: str) -> dict[str, str]:
    """An environment that says nothing of Ray."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "HOME": str(home), "PATH": binaries, **variables}


@pytest.fixture(scope="module")
def open_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head that asks for no token."""
    port, dashboard = free_port(), free_port()
    command = ["ray", "start", "--head", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=2", "--block"]
    command += [f"--dashboard-agent-listen-port={free_port()}", "--include-dashboard=true"]
    command += [f"--ray-client-server-port={free_port()}", "--min-worker-port=0", "--max-worker-port=0"]
    environment = laptop(tmp_path_factory.mktemp("home"), RAY_AUTH_MODE="disabled")
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as sockets:
        head = subprocess.Popen([*command, f"--temp-dir={sockets}"], env=environment, stdout=subprocess.DEVNULL)
        try:
            wait_until(lambda: answer_to_a_stranger(f"127.0.0.1:{port}") == "OK", 120)
            yield Cluster(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", environment)
        finally:
            head.terminate()
            head.wait(timeout=60)


def test_jobs_and_service_refuse_an_open_ray_unless_they_are_told(open_ray: Cluster, run_file: Path) -> None:
    environment = laptop(run_file.parent, RAY_ADDRESS=open_ray.address, HF_HUB_OFFLINE="1")
    job = [sys.executable, "-m", "ray_jobs.prepare", "--config", str(run_file)]
    service = ["serve", "run", "serve.app:build", f"run={run_file}"]
    for command in (job, service):
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
        line = done.stdout.splitlines()[-1]
        assert done.returncode == 2 and line.startswith("error: Ray at ") and "asks for no token" in line
    told = [*job, "--set", "cluster.allow_no_authentication=true"]
    done = subprocess.run(told, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr


def test_deployed_service_refuses_an_open_ray(open_ray: Cluster, run_file: Path, tmp_path: Path) -> None:
    config = deployed_config(tmp_path, free_port(), str(run_file))
    serve(open_ray, "deploy", str(config))
    shown = ""

    def has_failed() -> bool:
        nonlocal shown
        environment = {**open_ray.environment, "RAY_DASHBOARD_ADDRESS": open_ray.dashboard}
        done = subprocess.run(["serve", "status"], env=environment, capture_output=True, text=True, timeout=60)
        shown = done.stdout
        return "DEPLOY_FAILED" in shown

    wait_until(has_failed, 120)
    assert "asks for no token" in shown and "cluster.allow_no_authentication=true" in shown


def test_open_ray_lets_strangers_do_much(open_ray: Cluster, tmp_path: Path) -> None:
    """Else the tests of the ports of a served machine would show nothing. The last of these: it may end that Ray."""
    head = [port for port in ports_of_this_ray() if port.target.endswith(open_ray.address[-6:])]
    lines = what_strangers_can_do(head, tmp_path)
    assert OPEN in lines[0] and any("some method ended with" in line for line in lines)


def test_ray_of_a_job_on_a_laptop_asks_for_a_token_that_its_user_alone_can_read(tmp_path: Path) -> None:
    environment = laptop(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", OWN_RAY],
        env=environment,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as job:
        assert job.stdout is not None and job.stdin is not None
        assert any(line.strip() == "started" for line in job.stdout)
        try:
            addresses = [port.target for port in ports_of_this_ray(job.pid) if port.role == "head (GCS)"]
            assert addresses and {answer_to_a_stranger(address) for address in addresses} == {"UNAUTHENTICATED"}
            token = tmp_path / ".ray" / "auth_token"
            assert token.stat().st_mode & 0o777 == 0o600
        finally:
            job.stdin.close()
            job.wait(timeout=60)


def test_own_ray_without_a_token_is_refused_where_others_reach_it(tmp_path: Path) -> None:
    import ray

    if ray.util.get_node_ip_address() in {"127.0.0.1", "::1"}:
        pytest.skip("nobody reaches this machine")
    environment = laptop(tmp_path, RAY_AUTH_MODE="disabled")
    done = subprocess.run(
        [sys.executable, "-c", OWN_RAY],
        env=environment,
        cwd=ROOT,
        input="",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and done.stdout.startswith("error: RAY_AUTH_MODE=disabled: the Ray that starts here")
