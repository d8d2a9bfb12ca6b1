"""The two commands that start the service: `serve deploy` of the shipped config, and `serve run`."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import httpx
import pytest
import yaml

from tests.cluster.commands import deployed_config, serve, wait_until_up
from tests.cluster.conftest import ROOT, Cluster, free_port
from tests.serving import MODEL, publish

pytestmark = pytest.mark.ray
QUESTION = {"query": "Which function sorts a list?", "task": "qa", "k": 1}


@pytest.fixture
def run_path(tmp_path: Path) -> str:
    """A run file with an index, as a path that begins at the project's folder."""
    publish(tmp_path / "work", MODEL, "v1", shards=1)
    path = tmp_path / "run.yaml"
    paths = {"work": os.path.relpath(tmp_path / "work", ROOT), "cache": str(tmp_path / "cache")}
    run = {"paths": paths, "encoder": {"model": str(MODEL), "pooling": "mean", "max_tokens": 64}}
    path.write_text(yaml.safe_dump(run), encoding="utf-8")
    return os.path.relpath(path, ROOT)


def answers(url: str) -> None:
    """Wait until the service is there, and ask it."""
    wait_until_up(url)
    found = httpx.post(f"{url}/v1/search", json=QUESTION, timeout=30).json()
    assert found["results"][0][0]["id"] == "list-sorts"


def test_serve_config_that_is_shipped_is_deployed(cluster: Cluster, run_path: str, tmp_path: Path) -> None:
    port = free_port()
    try:
        serve(cluster, "deploy", str(deployed_config(tmp_path, port, run_path)))
        answers(f"http://127.0.0.1:{port}")
    finally:
        serve(cluster, "shutdown", "-y")


@pytest.mark.slow
def test_serve_run_starts_the_service_and_an_interrupt_stops_it(cluster: Cluster, run_path: str) -> None:
    port = free_port()
    serve(cluster, "start", "--http-host", "127.0.0.1", "--http-port", str(port))
    command = ["serve", "run", "serve.app:build", f"run={run_path}", "serve.max_replicas=1"]
    environment = {**cluster.environment, "RAY_ADDRESS": cluster.address}
    # A shell starts jobs in the background with interrupts ignored, which children inherit; here one must count.
    running = subprocess.Popen(
        command,
        env=environment,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        answers(f"http://127.0.0.1:{port}")
    finally:
        running.send_signal(signal.SIGINT)
        running.wait(timeout=90)
        serve(cluster, "shutdown", "-y")
