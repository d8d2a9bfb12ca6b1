"""Checks before every route: the head, keys and roles, the size of the body, the deadline. Metrics and log after it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.audit import CALLER, Caller
from serve.backend import DEADLINE, time_left
from serve.http_errors import ApiError, answer
from serve.keys import ROLES, needed_role
from serve.load_shedding import needs_encoder, num_bytes
from serve.request_head import CLOSING, head_refusal, keep_plain_id, site_refusal
from serve.service import Service

logger = logging.getLogger("ray.serve")

UNREAD = {400, 413, 431}
"""Refusals of a body or head that is too much: the connection is closed, and the rest of it is not read."""

LONGEST_LENGTH = 18
"""Digits of a Content-Length; a longer one is beyond any limit."""
Answered = Callable[[str, int, float], None]
"""Told of each request: route, status, seconds."""


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, service: Service, answered: Answered) -> None:
        self._app, self._service, self._answered = app, service, answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or refuse it before anything of it is parsed."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # 499, as nginx writes it: what is logged where the client hangs up and no answer begins.
        began, status = time.monotonic(), 499
        headers = Headers(scope=scope)
        DEADLINE.set(began + self._service.settings.timeout_s)

        async def send_noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        keep_plain_id(scope)
        # The only place from which the routes learn what the caller may use.
        caller = scope[CALLER] = Caller()
        error = head_refusal(scope) or self._foreign_site(scope) or self._identify(caller, scope, headers)
        error = error or self._admit(scope, headers)
        try:
            if error is None:
                await self._app(scope, self._limited(receive), send_noting)
            else:
                closing = CLOSING if error.status in UNREAD else None
                await answer(scope["path"], error, closing)(scope, receive, send_noting)
        finally:
            self._note(scope, caller, status, time.monotonic() - began)

    def _identify(self, caller: Caller, scope: Scope, headers: Headers) -> ApiError | None:
        """Find the key of a request, and why it does not open this route, if so."""
        keys, caller.needed = self._service.keys, needed_role(scope["method"], scope["path"])
        if keys is None or caller.needed is None:
            return None
        key = keys.find(headers.get("authorization", ""))
        if key is None:
            return ApiError(401, "no valid API key; send `Authorization: Bearer KEY`", code="invalid_api_key")
        caller.key = key
        if key.has_expired:
            caller.refused = "expired"
            return ApiError(401, f"this API key was valid until {key.expires}", code="invalid_api_key")
        if ROLES.index(key.role) < ROLES.index(caller.needed):
            caller.refused = "role"
            return ApiError(403, f"this needs a key with the role {caller.needed}; yours may {key.role}")
        return None

    def _admit(self, scope: Scope, headers: Headers) -> ApiError | None:
        """Why a request of somebody known must not go on, if so."""
        refused = self._service.backend.refusal(num_bytes(headers)) if needs_encoder(scope["path"]) else None
        if refused is not None:
            return refused
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            return ApiError(400, "Content-Length is no number")
        # By its digits first: Python refuses to read a number of thousands of them.
        if len(length) > LONGEST_LENGTH or int(length) > self._service.settings.max_body_bytes:
            return ApiError(413, self._too_large())
        return None

    def _foreign_site(self, scope: Scope) -> ApiError | None:
        """Why a browser may have been made to ask; with keys it could not, because no other site has one."""
        settings = self._service.settings
        if self._service.keys is not None:
            return None
        # `insecure` is the word of whoever serves that all who reach this service may use it, by whatever name.
        return site_refusal(scope, None if settings.insecure else settings.host_names)

    def _limited(self, receive: Receive) -> Receive:
        """The same body, up to the limit and until the deadline: a sender need not say its length before."""
        received, is_whole = 0, False

        async def receive_counting() -> Message:
            nonlocal received, is_whole
            if is_whole:  # what comes now is the end of the connection
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), time_left())
            except asyncio.TimeoutError as error:
                raise HTTPException(408, "the body did not arrive in time", CLOSING) from error
            is_whole = not message.get("more_body", False)
            received += len(message.get("body", b""))
            if received > self._service.settings.max_body_bytes:
                raise HTTPException(413, self._too_large(), CLOSING)
            return message

        return receive_counting

    def _too_large(self) -> str:
        return f"the body exceeds the limit of {self._service.settings.max_body_bytes} bytes"

    def _note(self, scope: Scope, caller: Caller, status: int, seconds: float) -> None:
        """Count and log a request, to which Ray adds its id; never its text, its key, or a path that is no route."""
        route = getattr(scope.get("route"), "path", "none")
        self._answered(route, status, seconds)
        logger.info(
            "request",
            extra={
                "method": scope["method"],
                "http_route": route,
                "status": status,
                "ms": round(1000 * seconds, 1),
                "role": caller.key.role if caller.key else None,
            },
        )
        if caller.refused is not None or (caller.needed in {"write", "admin"} and status != 401):
            # A body that is refused before a route has run names its index in the path alone.
            caller.index = caller.index or scope.get("path_params", {}).get("name")
            self._service.audit.note(caller, scope["method"], route, status)
