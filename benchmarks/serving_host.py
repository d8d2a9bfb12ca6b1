"""A process that serves through Ray, and does to the replicas what it is told, a line of JSON for each command.

python -m benchmarks.serving_host ours RUN.yaml PORT CPUS METRICS_PORT
python -m benchmarks.serving_host bare MODEL PORT CPUS METRICS_PORT
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Callable

import psutil
import ray
from ray import serve

from benchmarks.serving_bare import deploy_bare
from embedder.config.load import load_run
from serve.app import build_run

REPLICA = "ray::ServeReplica:"
CONTROLLER = "ray::ServeController"
PROXIES = ("ray::ProxyActor", "ray::HAProxyManager")


def replicas() -> dict[int, str]:
    """Deployment by process, of the replicas of this Ray; `proxy` for what stands before them."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if title.startswith(REPLICA):
            found[process.pid] = title.removeprefix(REPLICA).split(":")[1].split(".")[0].strip()
        elif title.startswith(CONTROLLER):
            found[process.pid] = "controller"
        elif title.startswith(PROXIES) or "haproxy" in title:
            found[process.pid] = "proxy"
    return found


def kill(random_: random.Random, names: list[str]) -> str:
    """Kill one replica of the deployments whose names begin so."""
    chosen = {pid: name for pid, name in replicas().items() if name.startswith(tuple(names))}
    if not chosen:
        return "none"
    pid = random_.choice(sorted(chosen))
    os.kill(pid, signal.SIGKILL)
    return chosen[pid]


def memory() -> dict[str, list[float]]:
    """Memory of its own, MiB, of every process by deployment: pages of model and index that are shared do not count."""
    found: dict[str, list[float]] = {}
    for pid, name in replicas().items():
        try:
            found.setdefault(name, []).append(psutil.Process(pid).memory_full_info().uss / 2**20)
        except psutil.Error:
            continue
    return {name: sorted(sizes) for name, sizes in found.items()}


def host(kind: str, what: str, port: int) -> Callable[[], object]:
    """Serve; what is returned deploys all of it again, as new code would be."""
    serve.start(http_options={"host": "127.0.0.1", "port": port, "request_timeout_s": 90})
    if kind == "ours":
        config = load_run(what, [])
        return lambda: serve.run(build_run(config))
    return lambda: deploy_bare(what)


def main(arguments: list[str]) -> None:
    """Serve until stdin ends."""
    kind, what, port, cpus, metrics = arguments
    ray.init(num_cpus=int(cpus), include_dashboard=False, log_to_driver=False, _metrics_export_port=int(metrics))
    random_ = random.Random(0)
    deploy = host(kind, what, int(port))
    deploy()
    print("READY", flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        match command["do"]:
            case "kill":
                said: object = kill(random_, command["names"])
            case "memory":
                said = memory()
            case "pids":
                said = sorted(replicas())
            case "deploy":
                deploy()
                said = "deployed"
            case other:
                raise ValueError(f"no such command: {other}")
        print(json.dumps(said), flush=True)
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1:])
