"""Ray Serve's command line, as a user starts it in the repository."""

from __future__ import annotations

import subprocess
from pathlib import Path

import httpx
import yaml

from tests.cluster.conftest import ROOT, Cluster
from tests.waiting import wait_until


def serve(cluster: Cluster, *words: str) -> None:
    """Run it."""
    environment = {**cluster.environment, "RAY_DASHBOARD_ADDRESS": cluster.dashboard, "RAY_ADDRESS": cluster.address}
    done = subprocess.run(
        ["serve", *words], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def deployed_config(folder: Path, port: int, run: str) -> Path:
    """The shipped config for another run file and port."""
    config = yaml.safe_load((ROOT / "configs" / "serve.yaml").read_text(encoding="utf-8"))
    config["http_options"]["port"] = port
    config["applications"][0]["args"] = {"run": run, "serve.max_replicas": "1"}
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def wait_until_up(url: str) -> None:
    """Wait until the service is there."""

    def is_healthy() -> bool:
        try:
            return httpx.get(f"{url}/health", timeout=30).status_code == 200
        except httpx.TransportError:
            return False

    wait_until(is_healthy, 180)
