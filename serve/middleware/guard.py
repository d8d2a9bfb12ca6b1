"""Checks before every route: the head, keys and roles, the size of the body, the deadline. Metrics and log after it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.access.audit import CALLER, Caller
from serve.access.keys import ROLES, needed_role
from serve.access.owner import owner_of
from serve.backend import DEADLINE, OWNER
from serve.http_errors import ApiError, answer
from serve.middleware.incoming import is_route, needs_encoder, unusable_body
from serve.middleware.limited_body import LimitedBody
from serve.middleware.request_head import head_refusal, keep_plain_id, needless_body, num_bytes, site_refusal
from serve.service import Service

logger = logging.getLogger("ray.serve")

Answered = Callable[[str, int, float], None]
"""Told of each request: route, status, seconds."""


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, service: Service, routes: Sequence[BaseRoute], answered: Answered) -> None:
        self._app, self._service, self._routes, self._answered = app, service, routes, answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or refuse it before anything of it is parsed."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # 499, as nginx writes it: what is logged where the client hangs up and no answer begins.
        began, status = time.monotonic(), 499
        headers = Headers(scope=scope)
        DEADLINE.set(began + self._service.settings.timeout_s)

        body = LimitedBody(receive, headers, self._service.settings.max_body_bytes)

        async def send_noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if body.may_be_endless:
                    MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        keep_plain_id(scope)
        # The only place from which the routes learn what the caller may use.
        caller = scope[CALLER] = Caller()
        error = (
            head_refusal(scope)
            or self._needless_body(scope)
            or self._foreign_site(scope)
            or self._identify(caller, scope, headers)
        )
        OWNER.set(owner_of(caller.key, scope))
        error = error or self._changing(caller, scope) or self._admit(scope, headers) or body.refusal()
        try:
            if error is None:
                await self._app(scope, body.receive, send_noting)
            else:
                await answer(scope["path"], error)(scope, receive, send_noting)
        except Exception:
            # The server around this one answers it.
            status = 500 if status == 499 else status
            raise
        finally:
            self._note(scope, caller, status, time.monotonic() - began)

    def _needless_body(self, scope: Scope) -> ApiError | None:
        """Why a body is refused that the route does not read; of what is no route the application says so."""
        needless = needless_body(scope)
        return needless if needless is not None and is_route(self._routes, scope) else None

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
        # What is no route needs no role: the application says 404, or 405 and which methods there are.
        if ROLES.index(key.role) < ROLES.index(caller.needed) and is_route(self._routes, scope):
            caller.refused = "role"
            return ApiError(403, f"this needs a key with the role {caller.needed}; yours may {key.role}")
        return None

    def _changing(self, caller: Caller, scope: Scope) -> ApiError | None:
        """Why a request that changes something is refused by a service that only reads."""
        if not self._service.settings.read_only or caller.needed not in {"write", "admin"}:
            return None
        if not is_route(self._routes, scope):
            return None
        return ApiError(403, "this service is read-only (serve.read_only)", code="read_only")

    def _admit(self, scope: Scope, headers: Headers) -> ApiError | None:
        """Why a request of somebody known must not go on, if so."""
        if needs_encoder(scope["path"]):
            refusal = self._service.backend.refusal(num_bytes(headers))
            if refusal is not None:
                return refusal
        unusable = unusable_body(scope, headers)
        if unusable is not None and is_route(self._routes, scope):
            return unusable
        return None

    def _foreign_site(self, scope: Scope) -> ApiError | None:
        """Why a browser may have been made to ask; with keys it could not, because no other site has one."""
        settings = self._service.settings
        if self._service.keys is not None:
            return None
        # `insecure` is the word of whoever serves that all who reach this service may use it, by whatever name.
        names = None if settings.insecure else settings.host_names
        return site_refusal(scope, names, settings.origins(has_keys=False))

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
