"""Refusals under overload, before Ray's part of a request: that time belongs to the requests that were accepted.

Behind HAProxy an ingress replica is the HTTP server itself, and Ray takes middleware from a function that the
environment of the replica names. Behind Ray's own proxy there is no such place, and the guard refuses.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import uuid4

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.backend import Backend
from serve.http_errors import answer, overloaded
from serve.request_head import REQUEST_ID, HeadLimits

ENVIRONMENT = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": f"{__name__}.middleware"}
"""Environment of an ingress replica, by which Ray finds the middleware."""
ENCODING = {"/v1/embeddings", "/embed", "/v1/rerank", "/v2/rerank"}
"""Routes of which every request needs the encoder: under overload they are refused before their body is read."""


@dataclass
class Overload:
    """The refusals of the ingress in this process."""

    gate: Backend | None = None
    """Set by the ingress; until then nothing is refused."""
    refused: int = 0
    """Requests so far."""


# One a process, because Ray calls `middleware` without arguments, before there is an ingress to ask.
OVERLOAD = Overload()


class Refusing:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request unread, or let it pass."""
        gate = OVERLOAD.gate
        if scope["type"] != "http" or scope["path"] not in ENCODING or gate is None or not gate.is_full:
            await self._app(scope, receive, send)
            return
        OVERLOAD.refused += 1
        refusal = answer(scope["path"], overloaded())
        refusal.headers[REQUEST_ID] = Headers(scope=scope).get(REQUEST_ID, str(uuid4()))
        await refusal(scope, receive, send)


def middleware() -> list[Middleware]:
    """Called by Ray when the server of a replica starts."""
    # The last one is the outermost: it stands before Ray's own middleware too, which takes the id of the request.
    return [Middleware(Refusing), Middleware(HeadLimits)]
