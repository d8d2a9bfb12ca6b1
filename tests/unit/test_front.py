"""What is shipped to stand before the service: attacks on the wire run through it while honest clients go on."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import httpx
import psutil
import pytest

from benchmarks.hostile_requests import HOLDING, JSON, SMUGGLED, WIRE, Target, besiege
from benchmarks.serving_front import CONFIGURATION, front
from embedder.config.serve import ServeConfig
from serve.api import make_api
from serve.middleware.request_head import MOST_HEAD_BYTES, MOST_HEADERS, PLAIN_ID
from tests.cluster.conftest import free_port
from tests.load import Load
from tests.serving import local_service, publish, run_config
from tests.web_server import answering

PRESET = dict(re.findall(r"presetenv (\w+) (\S+)", CONFIGURATION.read_text(encoding="utf-8")))
QUICK = {"FRONT_HEAD_S": "1s", "FRONT_IDLE_S": "1s"}
MIB = 2**20


@dataclass
class Fronted:
    """The service in this process behind a front, and what has reached it."""

    url: str
    target: Target
    process: psutil.Process
    heads: list[dict] = field(default_factory=list)

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=20)

    def ask(self, client: httpx.Client, number: int) -> None:
        answer = client.post("/v1/embeddings", json={"model": "live", "input": [f"text {number}"]})
        assert answer.status_code == 200 and len(answer.json()["data"]) == 1, answer.text


@pytest.fixture(scope="module")
def fronted(tmp_path_factory, tiny_encoder_folder) -> Iterator[Fronted]:
    work = tmp_path_factory.mktemp("fronted")
    publish(work, tiny_encoder_folder, "v1", shards=1)
    api = make_api(local_service(run_config(work, tiny_encoder_folder, timeout_s=2)), lambda *_: None)
    service_port, port = free_port(), free_port()

    async def noting(scope, receive, send):
        if scope["type"] == "http":
            found.heads.append(scope)
        await api(scope, receive, send)

    with front(service_port, port, **QUICK) as process:
        target = Target(port, seconds=10, connections=80, mib=64)
        found = Fronted(f"http://127.0.0.1:{port}", target, psutil.Process(process.pid))
        with answering(noting, service_port, log_level="critical"):
            yield found


def test_front_has_the_limits_of_the_service():
    settings, text = ServeConfig(), CONFIGURATION.read_text(encoding="utf-8")
    assert int(PRESET["FRONT_MAX_BODY_BYTES"]) == settings.max_body_bytes
    assert int(PRESET["FRONT_ANSWER_S"].removesuffix("s")) > settings.timeout_s
    assert f"tune.bufsize {MOST_HEAD_BYTES + 1024} " in text and f"tune.http.maxhdr {MOST_HEADERS}\n" in text
    assert f"-m reg ^{PLAIN_ID.pattern}$" in text
    assert PRESET["FRONT_BIND"].startswith("127.0.0.1:") and "stats" not in text, (
        "nothing is open that nobody asked for"
    )


def test_front_keeps_attacks_on_the_wire_from_honest_clients(fronted):
    """Faults 8.4 and 8.5 and their brothers, all at once."""
    before, peak = memory(fronted), 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, memory(fronted))

    watching = threading.Thread(target=watch)
    watching.start()
    with Load(fronted.ask, fronted.client, clients=2) as load:
        load.wait_for(10)
        ended = besiege(fronted.target, WIRE, time.monotonic() + 1)
        load.wait_for(10)
    done.set()
    watching.join()
    assert load.failures == []
    assert peak - before < 40 * MIB, f"the front grew by {(peak - before) / MIB:.0f} MiB"
    for name in HOLDING - {"unread_answers"}:
        assert not ended[name]["open"], (name, ended[name])
    assert ended["slow_heads"].keys() <= {"408", "closed"} and ended["slow_bodies"].keys() <= {"408", "closed"}
    assert not {status for each in ended.values() for status in each} & {"500", "502"}, ended


def memory(fronted: Fronted) -> int:
    return fronted.process.memory_full_info().uss


@pytest.mark.parametrize(
    ("attack", "statuses"),
    [
        ("giant_header", {"400", "closed"}),
        ("many_headers", {"400", "closed"}),
        ("long_path", {"400", "closed"}),
        ("chunked_bodies", {"400", "401", "404", "closed"}),
        ("declared_bodies", {"400", "413", "closed"}),
        ("slow_large_bodies", {"408", "closed"}),
        ("long_ids", {"200", "400"}),
        ("foreign_hosts", {"403"}),
    ],
)
def test_front_ends_an_attack_with_a_refusal(fronted, attack, statuses):
    ended = WIRE[attack](fronted.target)
    assert ended.keys() <= statuses, ended


def test_front_lets_no_request_hide_in_another(fronted):
    fronted.heads.clear()
    ended = WIRE["smuggling"](fronted.target)
    assert SMUGGLED not in {head["path"] for head in fronted.heads}
    assert ended.keys() <= {"100", "400", "408", "closed", "501"}, ended


def test_front_refuses_a_body_that_no_route_reads_before_the_service_sees_it(fronted):
    fronted.heads.clear()
    with fronted.client() as client:
        answer = client.request("GET", "/health", content=iter([b"x" * 1000]))
        assert answer.status_code == 400 and "leave the body out" in answer.json()["error"]["message"]
        assert client.request("DELETE", "/v1/indexes/none", content=b"x").status_code == 400
        answer = client.post("/v1/embeddings", content=bytes(9 * MIB))
        assert (answer.status_code, answer.json()["error"]["message"]) == (413, "the body exceeds the limit")
    assert fronted.heads == []


def test_front_passes_on_large_and_chunked_bodies_within_the_limit(fronted):
    body = b'{"model": "live", "input": ["a text"]' + b" " * 7 * MIB + b"}"
    kind = {"content-type": "application/json"}
    with fronted.client() as client:
        for content in (body, iter([body[at : at + 100_000] for at in range(0, len(body), 100_000)])):
            assert client.post("/v1/embeddings", content=content, headers=kind).status_code == 200


def test_front_keeps_places_for_others_while_large_bodies_arrive_slowly(fronted):
    """Brother of fault 8.5: slow senders of large bodies took all places in the service."""
    start = fronted.target.head("POST", "/v1/embeddings", JSON, "Content-Length: 1000000") + b" " * 100_000
    most, slow = int(PRESET["FRONT_LARGE_A_CLIENT"]), replace(fronted.target, source="127.0.2.1")
    held = []
    try:
        for _ in range(most):
            held.append(slow.connect())
            held[-1].sendall(start)
        with slow.connect() as further, fronted.client() as client:
            further.sendall(start)
            assert further.recv(100).startswith(b"HTTP/1.1 429 ")
            large = {"model": "live", "input": ["x" * 1000] * 40}
            assert client.post("/v1/embeddings", json=large).status_code == 200
            fronted.ask(client, 0)
    finally:
        for connection in held:
            connection.close()


def test_front_says_who_asks_and_passes_on_no_id_that_is_not_plain(fronted):
    said = {"x-forwarded-for": "10.9.9.9", "x-forwarded-proto": "https", "forwarded": "for=10.9.9.9"}
    fronted.heads.clear()
    with fronted.client() as client:
        client.get("/live", headers={**said, "x-request-id": "mine"})
        client.get("/live", headers={"x-request-id": "i" * 65})
    first, second = (dict(head["headers"]) for head in fronted.heads)
    assert first[b"x-forwarded-for"] == b"127.0.0.1" and first[b"x-forwarded-proto"] == b"http"
    assert b"forwarded" not in first and first[b"x-request-id"] == b"mine" and b"x-request-id" not in second


def test_front_bounds_the_connections_of_an_address(fronted):
    many = replace(fronted.target, connections=130, seconds=0.5, source="127.0.0.3")
    ended = WIRE["idle_connections"](many)
    assert ended["closed"] >= 30 and ended["open"] <= 100, ended
    with fronted.client() as client:
        assert client.get("/live").status_code == 200


def test_front_bounds_the_requests_without_a_body_of_an_address(fronted):
    flooder, answered = replace(fronted.target, source="127.0.2.3"), b""
    with flooder.connect() as many:
        many.sendall(flooder.head("GET", "/live") * 100)
        many.settimeout(5)
        while answered.count(b"HTTP/1.1 ") < 100:
            answered += many.recv(MIB)
    # Within a second, unless the machine is slow; the refused ones say when to come back.
    assert answered.count(b" 429 ") == answered.lower().count(b"retry-after: 1") > 0
    assert answered.count(b" 200 ") >= int(PRESET["FRONT_READS_A_CLIENT"])
    with fronted.client() as client:
        assert client.get("/live").status_code == 200


def test_front_serves_first_who_has_asked_little():
    """Brother of fault 8.5: one address that sent requests without end kept all others waiting in the service."""
    seen, waits = [], threading.Event()

    async def one_at_a_time(scope, receive, send):
        if scope["path"] == "/slow":
            seen.append(dict(scope["headers"])[b"x-forwarded-for"].decode())
            waits.set()
            await asyncio.sleep(0.05)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    service_port, port, flooding = free_port(), free_port(), []
    flooder = Target(port, source="127.0.2.2")
    settings = {"FRONT_REQUESTS": 1, "FRONT_READS_A_CLIENT": 1000}
    with answering(one_at_a_time, service_port, log_level="critical"), front(service_port, port, **settings):
        try:
            with flooder.connect() as many:
                many.sendall(flooder.head("GET", "/") * 500)
                many.settimeout(0.5)
                answered = b""
                while answered.count(b"HTTP/1.1 200") < 500:
                    answered += many.recv(MIB)
            for _ in range(20):
                flooding.append(flooder.connect())
                flooding[-1].sendall(flooder.head("GET", "/slow"))
            assert waits.wait(5)
            assert httpx.get(f"http://127.0.0.1:{port}/slow", timeout=20).status_code == 200
        finally:
            for connection in flooding:
                connection.close()
    assert "127.0.0.1" in seen[:8], seen


def test_front_without_a_service_says_503_in_the_services_shape(fronted):
    port = free_port()
    with front(free_port(), port):
        answer = httpx.get(f"http://127.0.0.1:{port}/live", timeout=20)
    assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
    assert answer.json()["error"]["type"] == "server_error"


@pytest.mark.parametrize(("method", "status"), [("GET", 200), ("POST", 200), ("PUT", 502), ("DELETE", 502)])
def test_front_asks_once_more_where_the_service_hung_up_if_it_may(method, status):
    """The service closes idle connections after 5 s, perhaps just when a request is on its way."""
    with socket.create_server(("127.0.0.1", 0)) as service:

        def serve() -> None:
            answers = (b"", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") if status == 200 else (b"",)
            for answer in answers:
                connection, _ = service.accept()
                with connection:
                    connection.recv(MIB)
                    connection.sendall(answer)

        serving = threading.Thread(target=serve, daemon=True)
        serving.start()
        port = free_port()
        with front(service.getsockname()[1], port):
            answer = httpx.request(method, f"http://127.0.0.1:{port}/", timeout=20)
    assert answer.status_code == status
