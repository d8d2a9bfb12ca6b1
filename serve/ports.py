"""The ports that Ray and the service have open on this machine, and what each answers to a stranger.

    python -m serve.ports

Prints the table of docs/security.md for the machine it runs on. Calls every port without a token or key, with calls
that change nothing; exit status 1 if one answers that must not. Linux only.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
import socket
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx

from embedder.console import console

ROLES = {
    "head (GCS)": r"/gcs_server ",
    "raylet": r"/raylet/raylet ",
    "dashboard": r"/dashboard/dashboard\.py ",
    "agent of a node": r"^ray::DashboardAgent",
    "agent of environments": r"^ray::RuntimeEnvAgent",
    "autoscaler": r"/autoscaler/_private/monitor\.py ",
    "Ray client": r"ray\.util\.client\.server ",
    "proxy (HTTP)": r"^ray::(ProxyActor|HAProxyManager)",
    "HAProxy": r"(^|/)haproxy ",
    "Serve's controller": r"^ray::ServeController",
    "replica": r"^ray::ServeReplica",
    "worker": r"^ray::",
}
"""Patterns of command lines; the first that fits counts. Anything else that is asked about is a driver."""
DRIVER = "driver"
SAFE_CALLS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.ReporterService/GetTraceback",
    "/ray.rpc.RayletDriver/ClusterInfo",
    "/ray.serve.ASGIService/HandleRequest",
)
"""One call of each kind of server. Where it is taken, so is every other call of that server."""
SAFE_PATHS = ("/", "/metrics", "/stats", "/api/jobs/", "/api/serve/applications/", "/v1/state")
NO_ANSWER = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"}
WAIT_S = 5.0

TOKEN = "gRPC: refused without the token"
HTTP_TOKEN = "HTTP: refused without the token"
NUMBERS = "metrics: numbers to everybody"
OURS = "the routes of the service"
OPEN = "ANSWERS WITHOUT A TOKEN"
SILENT = "nothing"


USUAL = {
    ("head (GCS)", TOKEN): "6379",
    ("dashboard", HTTP_TOKEN): "8265",
    ("dashboard", NUMBERS): "44227",
    ("autoscaler", NUMBERS): "44217",
    ("agent of a node", HTTP_TOKEN): "52365",
    ("Ray client", TOKEN): "10001",
    ("proxy (HTTP)", OURS): "8000; 8500 behind HAProxy",
    ("HAProxy", OURS): "8000",
    ("HAProxy", NUMBERS): "8404, 9101",
    ("replica", OURS): "30000 to 31000",
}
"""Numbers where nobody chooses others; all others are any free ports, which options of `ray start` can fix."""


@dataclass(frozen=True)
class Port:
    """A port that a process listens on."""

    role: str
    host: str
    number: int

    @property
    def _address(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
        address = ipaddress.ip_address(self.host)
        return getattr(address, "ipv4_mapped", None) or address

    @property
    def on(self) -> str:
        if self._address.is_loopback:
            return "loopback"
        return "all interfaces" if self._address.is_unspecified else "the node's address"

    @property
    def target(self) -> str:
        """Host and port to call it by from this machine."""
        host = "127.0.0.1" if self._address.is_unspecified else str(self._address)
        return f"[{host}]:{self.number}" if ":" in host else f"{host}:{self.number}"


def open_ports(pids: Iterable[int]) -> list[Port]:
    """The TCP ports that processes listen on."""
    listening = _listening()
    ports: set[Port] = set()
    for pid in pids:
        role = role_of(pid)
        for link in _links(pid):
            if (inode := link.removeprefix("socket:[").removesuffix("]")) in listening:
                ports.add(Port(role, *listening[inode]))
    order = [*ROLES, DRIVER]
    return sorted(ports, key=lambda port: (order.index(port.role), port.number, port.host))


def role_of(pid: int) -> str:
    """The part of Ray that a process is, by its command line."""
    command = _command(pid)
    return next((role for role, pattern in ROLES.items() if re.search(pattern, command)), DRIVER)


def ray_processes() -> list[int]:
    """All processes of this machine that Ray has started."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
    return [pid for pid in pids if role_of(pid) != DRIVER]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace") + " "
    except OSError:
        return ""


def _links(pid: int) -> list[str]:
    """What the open files of a process are; none where it has ended or belongs to somebody else."""
    links = []
    # A file that is closed meanwhile is passed over; the others may be listened on.
    with suppress(OSError):
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                links.append(os.readlink(path))
    return links


def _listening() -> dict[str, tuple[str, int]]:
    """Host and port of every listening socket of this machine, by inode."""
    found = {}
    for name, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{name}").read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            host, _, port = fields[1].partition(":")
            # The kernel writes an address as words of 32 bits in the order of the machine, which is little-endian.
            raw = b"".join(bytes.fromhex(host[i : i + 8])[::-1] for i in range(0, len(host), 8))
            if fields[3] == "0A":
                found[fields[9]] = (socket.inet_ntop(family, raw), int(port, 16))
    return found


def call(port: Port, methods: Collection[str], payload: bytes = b"") -> Counter[str]:
    """The gRPC statuses that calls without a token end with."""
    statuses: Counter[str] = Counter()
    with grpc.insecure_channel(port.target, [("grpc.enable_http_proxy", 0)]) as channel:
        calls = [channel.unary_unary(method).future(payload, timeout=WAIT_S) for method in methods]
        for waiting in calls:
            error = waiting.exception()
            statuses[error.code().name if isinstance(error, grpc.RpcError) else "OK"] += 1
    return statuses


def ask(port: Port, paths: Sequence[str], method: str = "GET", body: bytes | None = None) -> dict[str, httpx.Response]:
    """What a port answers over HTTP without a token or key, by path; nothing where it does not speak HTTP."""
    answers = {}
    with httpx.Client(timeout=WAIT_S, trust_env=False) as client:
        for path in paths:
            try:
                answers[path] = client.request(method, f"http://{port.target}{path}", content=body)
            except httpx.TransportError:
                break
    return answers


def answer_of(port: Port) -> str:
    """What a stranger gets from a port, in a few words."""
    # HTTP first, because HAProxy speaks HTTP/2 too, and gRPC takes its pages for answers; a gRPC server has no HTTP/1.
    answers = ask(port, SAFE_PATHS)
    codes = {path: answer.status_code for path, answer in answers.items()}
    if not codes:
        statuses = call(port, SAFE_CALLS).keys() - NO_ANSWER
        if not statuses:
            return SILENT
        return TOKEN if statuses <= {"UNAUTHENTICATED", "UNIMPLEMENTED"} else OPEN
    if "x-request-id" in answers["/"].headers:
        return OURS
    if codes.get("/api/jobs/") in {401, 403}:
        return HTTP_TOKEN
    is_numbers = any("# TYPE" in page.text or "Statistics Report for HAProxy" in page.text for page in answers.values())
    if port.role in {"HAProxy", "agent of a node", "dashboard", "autoscaler"} and is_numbers:
        return NUMBERS
    return f"{OPEN} ({codes})"


def rows(ports: Iterable[Port]) -> list[tuple[str, str, str, str]]:
    """Role, usual number, reach and answer of ports; several of a kind are one row."""
    answers = {(port.role, port.on, answer_of(port)) for port in ports}
    found = [(role, USUAL.get((role, answer), "any"), on, answer) for role, on, answer in answers]
    order = [*ROLES, DRIVER]
    return sorted(found, key=lambda row: (order.index(row[0]), row))


def markdown(table: Iterable[tuple[str, ...]]) -> str:
    """The table of docs/security.md."""
    lines = ["| who listens | port | on | what a stranger gets |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in table)]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table; exit status 1 if a port answers that must not."""
    argparse.ArgumentParser("serve.ports", description=__doc__).parse_args(arguments)
    table = rows(open_ports(ray_processes()))
    console().print(markdown(table), markup=False, end="", soft_wrap=True)
    sys.exit(int(any(OPEN in row[-1] for row in table)))


if __name__ == "__main__":
    main()
