"""Requests in progress: while the service stops, what has begun is answered and what begins is refused."""

from __future__ import annotations

import asyncio
import json

import pytest

from serve.middleware.incoming import Incoming, Traffic


def scope_of(path: str, method: str = "POST") -> dict:
    return {"type": "http", "method": method, "path": path, "query_string": b"", "headers": []}


async def ask(app: Incoming, path: str, method: str = "POST") -> list[dict]:
    """Messages of the answer."""
    sent = []

    async def send(message):
        sent.append(message)

    await app(scope_of(path, method), asyncio.Event().wait, send)
    return sent


def test_traffic_that_closes_waits_for_what_has_begun_and_refuses_what_begins():
    async def run() -> None:
        go_on, began, traffic = asyncio.Event(), asyncio.Event(), Traffic()

        async def slow(scope, receive, send):
            if scope["path"] != "/live":
                began.set()
                await go_on.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"done"})

        app = Incoming(slow, traffic)
        first = asyncio.create_task(ask(app, "/v1/embeddings"))
        await began.wait()
        closing = asyncio.create_task(traffic.close())
        while not traffic.is_closing:
            await asyncio.sleep(0)
        refused = await ask(app, "/v1/search")
        assert refused[0]["status"] == 503 and json.loads(refused[1]["body"])["error"]["code"] == "stopping"
        assert "error_type" in json.loads((await ask(app, "/embed/"))[1]["body"])
        # The process lives: a probe of it must not have it killed.
        assert (await ask(app, "/live", "GET"))[0]["status"] == 200
        assert not closing.done() and not first.done()
        go_on.set()
        await asyncio.wait_for(closing, 5)
        assert (await first)[0]["status"] == 200 and traffic.running == 0

    asyncio.run(run())


def test_traffic_forgets_requests_that_fail_or_whose_client_leaves():
    async def run() -> None:
        traffic = Traffic()

        async def fails(scope, receive, send):
            if scope["path"] == "/fails":
                raise ValueError("of a route")
            await asyncio.Event().wait()

        app = Incoming(fails, traffic)
        with pytest.raises(ValueError, match="of a route"):
            await ask(app, "/fails")
        left = asyncio.create_task(ask(app, "/hangs"))
        while not traffic.running:
            await asyncio.sleep(0)
        left.cancel()
        await asyncio.wait_for(traffic.close(), 5)
        assert traffic.running == 0

    asyncio.run(run())


def test_head_is_get_for_the_application_and_its_answer_has_no_body():
    async def app(scope, receive, send):
        assert scope["method"] == "GET"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": b"done"})

    start, body = asyncio.run(ask(Incoming(app, Traffic()), "/live", "HEAD"))
    assert start["headers"] == [(b"content-length", b"4")] and body["body"] == b""
