"""What stands before Ray's part of a request: refusals in the shape of the API, and everything else let through."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import httpx
import pytest
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.http_errors import ApiError, overloaded
from serve.middleware import load_shedding
from serve.middleware.load_shedding import Door, Overload, Refusing, middleware
from serve.middleware.request_head import num_bytes
from tests.event_loop import settle
from tests.unit.test_admission import Clock


@dataclass
class Encoders:
    """As many requests as they say."""

    is_full: bool

    def refusal(self, scope: Scope) -> ApiError | None:
        return overloaded(1.2) if self.is_full else None


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> Overload:
    """Of a process of its own."""
    own = Overload()
    monkeypatch.setattr(load_shedding, "OVERLOAD", own)
    return own


@pytest.fixture
def client() -> httpx.Client:
    """An application that answers everything, behind the middleware as Ray wraps it."""
    app: ASGIApp = Starlette()

    async def answers(scope, receive, send):
        await PlainTextResponse((await Request(scope, receive).body()).decode())(scope, receive, send)

    app = answers
    for one in middleware():
        app = one.cls(app, *one.args, **one.kwargs)
    return TestClient(app)


@pytest.mark.parametrize("gate", [None, Encoders(is_full=False)])
def test_load_shedding_lets_all_pass_without_overload(
    state: Overload, client: httpx.Client, gate: Encoders | None
) -> None:
    state.gate = gate
    assert client.post("/v1/embeddings", content="kept").text == "kept"
    assert state.refused == 0


def test_load_shedding_refuses_requests_for_vectors_in_the_shape_of_their_route(
    state: Overload, client: httpx.Client
) -> None:
    state.gate = Encoders(is_full=True)
    for path in ("/v1/embeddings", "/v1/rerank", "/v2/rerank"):
        answer = client.post(path, content=b"no JSON", headers={"x-request-id": "mine"})
        assert (answer.status_code, answer.headers["retry-after"], answer.headers["x-request-id"]) == (429, "2", "mine")
        assert answer.headers["retry-after-ms"] == "1200" and answer.json()["error"]["code"] == "overloaded"
    answer = client.post("/embed")
    assert (answer.status_code, answer.json()["error_type"]) == (429, "overloaded")
    assert len(answer.headers["x-request-id"]) == 36
    assert "connection" not in answer.headers
    assert client.post("/embed", content=b"x" * 100_000).headers["connection"] == "close"
    lengths = [num_bytes(Headers({"content-length": told})) for told in ("12", "-1", "", "9" * 5000)]
    assert lengths == [12, 0, 0, 10**18 - 1]
    assert client.post("/v1/search", content="a search").text == "a search"
    assert state.refused == 5


def request(path: str = "/v1/embeddings", method: str = "POST") -> dict[str, object]:
    return {"type": "http", "method": method, "path": path, "headers": [], "query_string": b""}


class Asking:
    """Requests through the door to an application that answers when it is told to."""

    def __init__(self, door: Door) -> None:
        load_shedding.OVERLOAD.door = door
        self.free, self.statuses = asyncio.Event(), []
        self.app = Refusing(self.answer)

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body", False):
            pass
        await self.free.wait()
        await PlainTextResponse("answered")(scope, receive, send)

    async def ask(self, scope: dict[str, object], *, whole: bool = True, hangs_up: bool = False) -> asyncio.Task[None]:
        """Begin a request; one that is not whole never sends the rest of its body, or hangs up in its place."""
        parts: list[Message] = [{"type": "http.disconnect"}] if hangs_up else []
        parts.append({"type": "http.request", "body": b"", "more_body": not whole or hangs_up})

        async def receive() -> Message:
            return parts.pop() if parts else await asyncio.get_running_loop().create_future()

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.statuses.append((message["status"], dict(message["headers"])))

        task = asyncio.create_task(self.app(scope, receive, send))
        await settle()
        return task


def test_door_bounds_the_requests_inside_a_proxy(state: Overload) -> None:
    async def main() -> None:
        asking = Asking(Door(2, clock := Clock(), lambda: 0.0))
        tasks = [await asking.ask(request(path)) for path in ("/v1/embeddings", "/emb/v1/search", "/prefix/embed/")]
        assert [status for status, _ in asking.statuses] == [429]
        assert asking.statuses[0][1][b"retry-after-ms"] == b"1000"
        for other in (request("/health", "GET"), request("/v1/indexes/live/documents"), request("/other/app")):
            tasks.append(await asking.ask(other))
        asking.free.set()
        await asyncio.gather(*tasks)
        assert [status for status, _ in asking.statuses] == [429] + [200] * 5
        asking.free.clear()
        # Two requests in two seconds: the next clients are told to come back in a rhythm of one second.
        for _ in range(3):
            held = [await asking.ask(request()) for _ in range(2)]
            clock.now += 2.0
            asking.free.set()
            await asyncio.gather(*held)
            asking.free.clear()
        held = [await asking.ask(request()) for _ in range(2)]
        asking.statuses.clear()
        await asyncio.gather(*[await asking.ask(request()) for _ in range(3)])
        waits = [int(headers[b"retry-after-ms"]) for _, headers in asking.statuses]
        assert len(waits) == 3 and waits[0] < waits[1] < waits[2]
        asking.free.set()
        await asyncio.gather(*held)

    asyncio.run(main())


def test_door_keeps_its_places_from_those_who_never_send_their_body(state: Overload) -> None:
    async def main() -> None:
        asking = Asking(Door(2))
        slow = [await asking.ask(request(), whole=False) for _ in range(8)]
        assert not asking.statuses
        await asking.ask(request())
        assert [status for status, _ in asking.statuses] == [429]
        slow.pop().cancel()
        await settle()
        task = await asking.ask(request())
        asking.free.set()
        await task
        assert asking.statuses[-1][0] == 200
        for one in slow:
            one.cancel()
        await settle()
        assert asking.app is not None and load_shedding.OVERLOAD.door.refusal() is None

    asyncio.run(main())


def test_door_does_not_count_a_client_that_hangs_up_in_the_middle_as_inside(state: Overload) -> None:
    """Each of them would take a place, and by its quick end make the door believe that it is twice as fast."""

    async def main() -> None:
        asking = Asking(Door(2))
        gone = [await asking.ask(request(), hangs_up=True) for _ in range(3)]
        held = [await asking.ask(request()) for _ in range(2)]
        assert not asking.statuses and load_shedding.OVERLOAD.door.refusal() is not None
        asking.free.set()
        await asyncio.gather(*gone, *held)
        assert [status for status, _ in asking.statuses] == [200] * 5

    asyncio.run(main())
