"""One local Ray with token authentication for the whole session, and a run of the six tasks with tiny models."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from embedder.demo.build import build
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
CPUS = 4


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass(frozen=True)
class Cluster:
    """How to reach the session's Ray."""

    address: str
    dashboard: str
    environment: dict[str, str] = field(repr=False)

    def submit(self, stage: str, run_file: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
        """Run one job through `ray job submit` and return it with its output."""
        sets = [word for override in overrides for word in ("--set", override)]
        command = ["ray", "job", "submit", "--address", self.dashboard, "--working-dir", str(ROOT)]
        excludes = {"excludes": [".venv", ".git", ".cache", "runs", "tests"], "env_vars": {"HF_HUB_OFFLINE": "1"}}
        command += ["--runtime-env-json", json.dumps(excludes), "--", "python", "-m", f"ray_jobs.{stage}"]
        command += ["--config", str(run_file), *sets]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=400, check=False)

    def start(self, stage: str, run_file: Path, *overrides: str) -> subprocess.Popen[str]:
        """Start one job as a driver of its own on the session's Ray."""
        sets = [word for override in overrides for word in ("--set", override)]
        command = [sys.executable, "-m", f"ray_jobs.{stage}", "--config", str(run_file), *sets]
        environment = {**self.environment, "RAY_ADDRESS": self.address}
        return subprocess.Popen(
            command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """`ray start --head` on loopback, with the session's token (tests/conftest.py)."""
    binaries = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        # So soon that a job which left it as it is would end while its actors load a model.
        "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": "2",
    }
    port, dashboard = free_port(), free_port()
    command = ["ray", "start", "--head", "--node-ip-address=127.0.0.1", f"--port={port}", f"--num-cpus={CPUS}"]
    command += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--block"]
    log_path = tmp_path_factory.mktemp("ray") / "head.log"
    # No port that another Ray on this machine may hold.
    command += [f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}"]
    command += ["--min-worker-port=0", "--max-worker-port=0"]
    # A short folder of its own: sockets lie in it, and by it a driver finds its cluster among several on a machine.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as sockets, log_path.open("w") as log:
        command += [f"--temp-dir={sockets}"]
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            started = Cluster(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", environment)
            _wait_for_jobs(started)
            yield started
        finally:
            head.terminate()
            head.wait(timeout=60)


def _wait_for_jobs(cluster: Cluster) -> None:
    """Wait until the cluster takes a job: its agent comes up some seconds after the dashboard."""
    command = ["ray", "job", "submit", "--address", cluster.dashboard, "--", "true"]

    def takes_a_job() -> bool:
        job = subprocess.run(command, env=cluster.environment, capture_output=True, timeout=120, check=False)
        return job.returncode == 0

    wait_until(takes_a_job, 240)


@pytest.fixture(scope="session")
def run_file(tmp_path_factory: pytest.TempPathFactory, tiny_encoder_folder: Path, tiny_llama_folder: Path) -> Path:
    """A run file of all six tasks on the demo's text, with tiny random models."""
    folder = tmp_path_factory.mktemp("run")
    build(folder / "data")
    kinds = [("qa", "python-docs"), ("convsearch", "python-talk"), ("tool", "stdlib"), ("chat", "assistant")]
    kinds += [("icl", "error-kind"), ("lrlm", "stdlib-source")]
    sources = [
        {
            "task": task,
            "dataset": name,
            "path": str(folder / "data" / task / name),
            "train_queries": 6,
            "test_queries": 4,
        }
        for task, name in kinds
    ]
    for source in sources:
        if source["task"] in {"qa", "convsearch", "tool"}:
            source["passages"] = 40
        if source["task"] == "lrlm":
            source |= {"chunk_words": 12, "recent_chunks": 1}
    run = {
        "paths": {"work": str(folder / "work"), "cache": str(folder / "cache")},
        "encoder": {"model": str(tiny_encoder_folder), "pooling": "mean", "max_tokens": 64, "num_actors": 1},
        "llm": {"model": str(tiny_llama_folder), "max_prefix_tokens": 640, "batch_tokens": 1024},
        "tasks": {"lrlm": {"max_output_tokens": 32}},
        "prepare": {"sources": sources},
        "mine": {"group_size": 4, "window": [1, 20]},
        "label": {"num_samples": 3, "block_rows": 2, "num_actors": 1},
        "train": {"steps": 12, "batch_size": 4, "learning_rate": 0.001, "temperature": 0.05, "save_every": 4},
        "index": {"num_shards": 2},
        "evaluate": {"llm_queries": 2, "passages": {"qa": 2, "lrlm": 2, "icl": 2}, "resamples": 200, "num_actors": 1},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run), encoding="utf-8")
    return path
