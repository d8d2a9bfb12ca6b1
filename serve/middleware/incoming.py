"""A request as the routes know it, however its client writes it: one path, GET for HEAD, one header for the key.

It stands before the guard, so that keys, errors and routes see the same path. While the service stops, it refuses what
begins and knows when the last answer is out.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.http_errors import ApiError, answer, stopping
from serve.middleware.request_head import WITH_BODY

ALIASES = {
    "/embeddings": "/v1/embeddings",  # infinity
    "/models": "/v1/models",
    "/v2/rerank": "/v1/rerank",  # Cohere
    "/openai/v1/embeddings": "/v1/embeddings",  # Azure
}
"""Paths under which clients of others look for our routes."""
AZURE = re.compile(r"/openai/deployments/[^/]+/embeddings")
"""The model stands in the body too."""
ENCODING = {"/v1/embeddings", "/embed", "/v1/rerank", "/rerank"}
"""Routes of which every request needs the encoder: under overload they are refused before their body is read."""
ENDINGS = {path.rpartition("/")[2] for path in ENCODING}
PREFIX = "route_prefix"
"""Key of the scope: what stood before the path."""


def route_path(scope: Scope) -> str:
    """The path without the prefix that the application is deployed under, without empty parts, by its first name."""
    path, prefix = str(scope["path"]), str(scope.get("root_path", ""))
    # A server gives the prefix in both; where it is not a whole part of the path, it is none.
    if prefix and (path + "/").startswith(prefix.rstrip("/") + "/"):
        path = path[len(prefix.rstrip("/")) :]
    path = "/" + "/".join(part for part in path.split("/") if part)
    if path == "/" and scope["method"] == "POST":
        return "/embed"  # text-embeddings-inference
    return "/v1/embeddings" if AZURE.fullmatch(path) else ALIASES.get(path, path)


def needs_encoder(path: str) -> bool:
    """Whether every request of a route needs the encoder; the path may have a prefix before it."""
    return path.rstrip("/").rpartition("/")[2] in ENDINGS


class Traffic:
    """The requests that are being answered in this process."""

    def __init__(self) -> None:
        self.running = 0
        self.is_closing = False
        self._idle = asyncio.Event()

    async def close(self) -> None:
        """Refuse what begins from now on; returns when the last request has its answer."""
        self.is_closing = True
        while self.running:
            self._idle.clear()
            await self._idle.wait()

    def begin(self) -> None:
        self.running += 1

    def end(self) -> None:
        self.running -= 1
        if not self.running:
            self._idle.set()


class Incoming:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, traffic: Traffic) -> None:
        self._app, self._traffic = app, traffic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what a route can know."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = route_path(scope)
        # A copy: the server reads the method of its own to know that HEAD has no body.
        known = {
            **scope,
            "path": path,
            "root_path": "",
            PREFIX: scope.get("root_path", ""),
            "headers": with_bearer(scope),
        }
        if scope["method"] == "HEAD":
            known["method"], send = "GET", _without_body(send)
        if self._traffic.is_closing and path != "/live":
            await answer(path, stopping())(known, receive, send)
            return
        self._traffic.begin()
        try:
            await self._app(known, receive, send)
        finally:
            self._traffic.end()


def is_route(routes: Iterable[BaseRoute], scope: Scope) -> bool:
    """Whether one of the routes answers that path and method."""
    return any(route.matches(scope)[0] is Match.FULL for route in routes)


def unusable_body(scope: Scope, headers: Headers) -> ApiError | None:
    """Why a body can be none of ours by what its headers say."""
    if scope["method"] not in WITH_BODY:
        return None
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding not in {"", "identity"}:
        return ApiError(415, f"Content-Encoding {coding:.50}: send the body as it is, not compressed")
    given = headers.get("content-type", "")
    kind = given.partition(";")[0].strip().lower()
    # Never taken for JSON: a page of any origin may send a form without being asked first.
    if not given or kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json")):
        return None
    return ApiError(415, f"Content-Type {kind:.80}: send JSON, and say so by `Content-Type: application/json`")


def with_bearer(scope: Scope) -> list[tuple[bytes, bytes]]:
    """The headers, with the key of `api-key`, as clients of Azure and Qdrant send it, as a bearer's."""
    headers: list[tuple[bytes, bytes]] = list(scope["headers"])
    names = dict(headers)
    if b"api-key" in names and b"authorization" not in names:
        headers.append((b"authorization", b"Bearer " + names[b"api-key"]))
    return headers


def _without_body(send: Send) -> Send:
    async def send_head(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return send_head
