"""Limits on the head of a request: its size, a body where none belongs, its id, and the site that it comes from.

All of this is known before a byte of the body is read. What stands before the service (`serve/front/`) has the same
limits; these hold where nothing stands before it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from dataclasses import replace
from urllib.parse import urlsplit
from uuid import uuid4

from ray.serve import context
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.http_errors import ApiError, answer

REQUEST_ID = "x-request-id"
PLAIN_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
"""An id that is kept: long enough for a UUID, a trace id of W3C or AWS, or a hash."""
MOST_HEADERS = 100
MOST_HEAD_BYTES = 32 * 2**10
"""Bytes of path, query and headers together."""
LONGEST_LENGTH = 18
"""Digits of a Content-Length; a longer one is beyond any limit."""
BEYOND = 10**LONGEST_LENGTH - 1
"""Bytes, of a body that is."""
WITH_BODY = {"POST", "PUT", "PATCH"}
WITHOUT_BODY = {"GET", "HEAD", "OPTIONS", "DELETE"}
"""Of a method that is in neither set the application says that no route knows it."""
READING_METHODS = {"GET", "HEAD", "OPTIONS"}
CLOSING = {"Connection": "close"}
"""For a refusal whose body was not read: otherwise the server reads it to the end, however long it is."""


def head_refusal(scope: Scope) -> ApiError | None:
    """Why the head alone makes a request refused, or None."""
    headers = scope["headers"]
    size = len(scope.get("raw_path") or b"") + len(scope.get("query_string", b""))
    size += sum(len(name) + len(value) for name, value in headers)
    if len(headers) > MOST_HEADERS or size > MOST_HEAD_BYTES:
        most = f"{MOST_HEADERS} headers and {MOST_HEAD_BYTES} bytes of path and headers"
        return ApiError(431, f"the head of the request exceeds the limit of {most}")
    lengths = [value for name, value in headers if name == b"content-length"]
    if not all(value.isdigit() for value in lengths):
        return ApiError(400, "Content-Length is no number of bytes")
    return None


def needless_body(scope: Scope, most: int = 0) -> ApiError | None:
    """Why a body that no route reads is refused, if it may have more than `most` bytes."""
    headers = Headers(scope=scope)
    if scope["method"] in WITHOUT_BODY and ("transfer-encoding" in headers or num_bytes(headers) > most):
        return ApiError(400, f"a {scope['method']} request has no body here; leave the body out")
    return None


def num_bytes(headers: Headers) -> int:
    """Bytes of a body, as far as they are told; 0 where they are not, and BEYOND where they have too many digits."""
    lengths = [value for value in headers.getlist("content-length") if value.isdecimal()]
    # By their digits first: Python refuses to read a number of thousands of them.
    return max((int(value) if len(value) <= LONGEST_LENGTH else BEYOND for value in lengths), default=0)


def keep_plain_id(scope: Scope) -> None:
    """Put an id of our own in place of one that is long or not plain, for all that reads or logs it later."""
    headers = MutableHeaders(scope=scope)
    given = headers.get(REQUEST_ID)
    if given is None or PLAIN_ID.fullmatch(given):
        return
    headers[REQUEST_ID] = str(uuid4())
    # Ray's proxy took the id before this ran, and every line that a replica logs gets it from this context.
    known = context._get_serve_request_context()
    if known.request_id:
        context._serve_request_context.set(replace(known, request_id=headers[REQUEST_ID]))


def site_refusal(scope: Scope, host_names: Collection[str] | None, origins: Collection[str] = ()) -> ApiError | None:
    """Why a request to a service without keys is refused: a page of another site may have made a browser send it.

    Such a page reaches a service on loopback by a name of its own that it lets point there (DNS rebinding), or writes
    without reading the answer. Both can be told by the headers Host and Origin, which pages cannot set.

    Args:
        scope: of the request.
        host_names: names, beside those of loopback, under which the service answers. None: under any.
        origins: other sites whose pages may ask, `*` for all.
    """
    headers = Headers(scope=scope)
    host = host_name(f"//{headers['host']}") if "host" in headers else None
    if host_names is not None and host is not None and not _is_known(host, host_names):
        return ApiError(403, f"no service under this host name; add it to serve.host_names: {host[:100]!r}")
    if scope["method"] in READING_METHODS or "origin" not in headers:
        return None
    origin = host_name(headers["origin"])
    if origin == host or _is_known(origin, host_names or ()) or {"*", headers["origin"]} & set(origins):
        return None
    return ApiError(403, f"a page of another site may not ask a service without keys: {origin[:100]!r}")


def host_name(url: str) -> str:
    """The host of a URL in lower case; empty where there is none."""
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_known(name: str, host_names: Collection[str]) -> bool:
    if name in host_names or name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class HeadLimits:
    """ASGI middleware for the servers of Ray itself, so that they neither pass on nor log what is refused anyway."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass with a plain id, or refuse it."""
        if scope["type"] == "http":
            keep_plain_id(scope)
            # A short one is left to the ingress, which knows whether the route is there at all.
            if (error := head_refusal(scope) or needless_body(scope, MOST_HEAD_BYTES)) is not None:
                await answer(scope["path"], error, CLOSING)(scope, receive, send)
                return
        await self._app(scope, receive, send)
