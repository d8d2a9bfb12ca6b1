"""Bodies of requests, bounded before they are parsed: how many values their JSON holds, and how many keys one object.

A body within the limit of bytes may still hold millions of empty lists, whose parsing takes a second and gigabytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response

MAX_KEYS = 128
"""Keys of one object; a document's metadata may have 64, and no other object has as many."""
MAX_DIGITS = 64
"""Characters of an integer. To read one of thousands takes time that grows with their square."""

# What stands before every value and every key but the first of an object.
SIGNS = (b",", b":", b"[", b"{")
# Possessive, so that a string that does not end is passed over once and not from each of its characters.
STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)


class BoundedRoute(APIRoute):
    """A route whose body is bounded. FastAPI asks for a class where a request is to be read in another way."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_BoundedRequest(request.scope, request.receive))

        return handle


class _BoundedRequest(Request):
    async def json(self) -> Any:  # noqa: ANN401 - whatever the body holds
        """Parse the body.

        Raises:
            JSONDecodeError: it is no JSON.
            HTTPException: it exceeds a limit.
        """
        return parsed(await self.body(), self.app.state.service.settings.max_body_values)


def parsed(body: bytes, most: int) -> Any:  # noqa: ANN401 - whatever the body holds
    """A body of at most so many keys and values.

    Raises:
        JSONDecodeError: it is no JSON.
        HTTPException: it exceeds a limit.
    """
    if too_many_values(body, most):
        raise HTTPException(400, f"body: more than {most} keys and values (serve.max_body_values); send less at a time")
    try:
        # As UTF-8 only: the count reads bytes, and in UTF-16 a quote may be half of another character.
        return json.loads(body.decode("utf-8-sig"), object_pairs_hook=_object, parse_int=_integer)
    except UnicodeDecodeError as error:
        raise HTTPException(400, f"body: not UTF-8 (byte {error.start})") from error
    except RecursionError as error:
        raise HTTPException(400, "body: nested too deeply") from error


def too_many_values(body: bytes, most: int) -> bool:
    """Whether the JSON of a body holds more than so many keys and values; 50 ms for 8 MiB at worst."""
    # First with what stands inside texts, since that is quick and most bodies are far below the limit.
    if sum(map(body.count, SIGNS)) <= most:
        return False
    # A quote without a backslash before it surely begins or ends a text.
    if body.count(b'"') - body.count(b'\\"') > 2 * most:
        return True
    outside, strings = STRING.subn(b"", body, count=most + 1)
    return strings > most or sum(map(outside.count, SIGNS)) > most


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Here and not by the models, because each unknown key would be an error of its own.
    if len(pairs) > MAX_KEYS:
        raise HTTPException(400, f"body: an object with {len(pairs)} keys; at most {MAX_KEYS}")
    return dict(pairs)


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise HTTPException(400, f"body: an integer of {len(digits)} digits; at most {MAX_DIGITS}")
    return int(digits)
