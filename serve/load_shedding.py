"""Refusals under overload, before Ray's part of a request: that time belongs to the requests that were accepted.

Behind HAProxy an ingress replica is the HTTP server itself, and Ray takes middleware from a function that the
environment of the replica names. Behind Ray's own proxy there is no such place, and the guard refuses.
"""

from __future__ import annotations

from typing import Protocol
from uuid import uuid4

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.deployments.coalescing import FULL
from serve.http_errors import ApiError, answer

ENVIRONMENT = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": f"{__name__}.middleware"}
"""Environment of an ingress replica, by which Ray finds the middleware."""
ENCODING = {"/v1/embeddings", "/embed", "/v1/rerank", "/v2/rerank"}
"""Routes of which every request needs the encoder: under overload they are refused before their body is read."""
REQUEST_ID = "x-request-id"


class Gate(Protocol):
    """Whatever knows if a further request for vectors would be refused."""

    @property
    def is_full(self) -> bool:
        """True while a further request would be refused."""


class Overload:
    """The refusals of the ingress in this process."""

    def __init__(self) -> None:
        self.gate: Gate | None = None
        """Set by the ingress; until then nothing is refused."""
        self.refused = 0
        """Requests so far."""

    def refuses(self, scope: Scope) -> bool:
        """Whether a request is to be refused at once; counts it if so."""
        is_refused = (
            scope["type"] == "http" and scope["path"] in ENCODING and self.gate is not None and self.gate.is_full
        )
        self.refused += is_refused
        return is_refused


# One a process, because Ray calls `middleware` without arguments, before there is an ingress to ask.
OVERLOAD = Overload()


class Refusing:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request unread, or let it pass."""
        if not OVERLOAD.refuses(scope):
            await self._app(scope, receive, send)
            return
        error = ApiError(429, FULL, code="overloaded")
        refusal = answer(scope["path"], error.status, error.detail)
        refusal.headers[REQUEST_ID] = Headers(scope=scope).get(REQUEST_ID, str(uuid4()))
        await refusal(scope, receive, send)


def middleware() -> list[Middleware]:
    """Called by Ray when the server of a replica starts."""
    return [Middleware(Refusing)]
