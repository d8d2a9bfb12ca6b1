"""Refusals under overload, before Ray's part of a request: that time belongs to the requests that were accepted.

Ray takes middleware for its HTTP servers from a function that `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` names.

- Behind HAProxy an ingress replica is the HTTP server. Its environment is ours to set, and the middleware asks the
  ingress in the same process.
- Ray's own proxy is a process of Ray. It reads the variable only if it is set where Ray is started (docs/serving.md).
  It cannot ask the ingress, so there the middleware is a door: it counts the requests inside the proxy. Without it a
  refusal costs that proxy as much as an answer, and under overload nobody is served in time.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol
from uuid import uuid4

from ray.util.metrics import Counter
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.deployments.admission import Clock, Room
from serve.http_errors import ApiError, answer, overloaded
from serve.middleware.incoming import needs_encoder, route_path
from serve.middleware.request_head import CLOSING, REQUEST_ID, HeadLimits, num_bytes

ENVIRONMENT = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": f"{__name__}.middleware"}
"""Environment of an ingress replica, and of Ray itself, by which Ray finds the middleware."""
MOST_INSIDE = "LLM_EMBEDDER_PROXY_REQUESTS"
"""Environment variable: requests inside one of Ray's proxies, or inside HAProxy, at most."""
DEFAULT_MOST_INSIDE = 128
ARRIVING = 4
"""For each of these so many may be sending their bodies: slow senders must not take the places of the others."""
MOST_UNREAD = 2**16
"""Bytes of the body of a refused request that are still read."""


def passes_door(path: str) -> bool:
    """Whether a route counts at the door: those that need the encoder always or mostly."""
    return (
        needs_encoder(path) or path.rstrip("/").endswith(("/v1/search", "/v1/search/batch")) or "/v1/retrieve/" in path
    )


class Gate(Protocol):
    """The ingress, as far as it is asked here: no import of its backend, which would load an index into the proxy."""

    def refusal(self, scope: Scope) -> ApiError | None:
        """Why a request for vectors would be refused."""


class Door:
    """The requests inside one proxy."""

    def __init__(self, most: int, clock: Clock = time.monotonic, chance: Callable[[], float] = random.random) -> None:
        self._most = most
        self._room = Room(clock, chance)
        self._arriving = 0

    def refusal(self) -> ApiError | None:
        """Why no further request may come in."""
        if self._room.ahead < self._most and self._arriving < ARRIVING * self._most:
            return None
        return overloaded(self._room.come_back(0.0))

    async def pass_through(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Have a request answered that is let in."""
        is_whole = False
        self._arriving += 1

        async def receive_noting() -> Message:
            nonlocal is_whole
            message = await receive()
            # A client that hangs up in the middle says so by a message without `more_body` too.
            if not is_whole and message["type"] == "http.request" and not message.get("more_body", False):
                is_whole = True
                self._arriving -= 1
                self._room.enter(1.0)
            return message

        try:
            await app(scope, receive_noting, send)
        finally:
            if is_whole:
                self._room.throughput.done(1.0, more=self._room.ahead >= self._most - 1)
                self._room.leave(1.0)
            else:
                self._arriving -= 1


def most_inside() -> int:
    """How many requests a proxy lets in, by the environment."""
    return int(os.environ.get(MOST_INSIDE) or DEFAULT_MOST_INSIDE)


@dataclass
class Overload:
    """The refusals of the HTTP server in this process."""

    gate: Gate | None = None
    """Set by the ingress, where this is its process."""
    door: Door = field(default_factory=lambda: Door(most_inside()))
    """Of a process without an ingress."""
    refused: int = 0
    """Requests that the gate has refused so far."""
    counter: Counter | None = None
    """Of what the door has refused: the proxy has no metrics of ours otherwise."""

    def count(self, *, at_door: bool) -> None:
        """Count a refusal."""
        if not at_door:
            self.refused += 1
            return
        if self.counter is None:
            # Not before: a metric of Ray belongs to a process of Ray, which this is by then.
            self.counter = Counter("embedder_door_rejected_total", "Requests refused at the door of a proxy")
        self.counter.inc()


# One a process, because Ray calls `middleware` without arguments, before there is an ingress to ask.
OVERLOAD = Overload()


class Refusing:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request unread, or let it pass."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        path, headers, is_door = route_path(scope), Headers(scope=scope), OVERLOAD.gate is None
        refused = _refusal(path, scope)
        if refused is not None:
            OVERLOAD.count(at_door=is_door)
            # A short body is read to its end, so that the connection can be used again; a long one is not worth it.
            is_long = num_bytes(headers) > MOST_UNREAD or "transfer-encoding" in headers
            refusal = answer(path, refused, CLOSING if is_long else None)
            refusal.headers[REQUEST_ID] = headers.get(REQUEST_ID, str(uuid4()))
            await refusal(scope, receive, send)
        elif is_door and passes_door(path):
            await OVERLOAD.door.pass_through(self._app, scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _refusal(path: str, scope: Scope) -> ApiError | None:
    """Why a request is refused unread."""
    if OVERLOAD.gate is None:
        return OVERLOAD.door.refusal() if passes_door(path) else None
    return OVERLOAD.gate.refusal(scope) if needs_encoder(path) else None


def middleware() -> list[Middleware]:
    """Called by Ray when one of its HTTP servers starts."""
    # The last one is the outermost: it stands before Ray's own middleware too, which takes the id of the request.
    return [Middleware(Refusing), Middleware(HeadLimits)]
