"""What stands before Ray's part of a request: refusals in the shape of the API, and everything else let through."""

from __future__ import annotations

from dataclasses import dataclass

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import ASGIApp

from serve import load_shedding
from serve.load_shedding import Overload, middleware


@dataclass
class Encoders:
    """As many requests as they say."""

    is_full: bool


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
def test_load_shedding_lets_all_pass_without_overload_and_without_an_ingress(
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
        assert (answer.status_code, answer.headers["retry-after"], answer.headers["x-request-id"]) == (429, "1", "mine")
        assert answer.json()["error"]["code"] == "overloaded"
    answer = client.post("/embed")
    assert (answer.status_code, answer.json()["error_type"]) == (429, "overloaded")
    assert len(answer.headers["x-request-id"]) == 36
    assert client.post("/v1/search", content="a search").text == "a search"
    assert state.refused == 4
