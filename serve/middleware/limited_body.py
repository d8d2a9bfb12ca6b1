"""A body up to its limit and until the deadline: a sender need not say its length before, nor send it at once."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

from serve.backend import time_left
from serve.http_errors import ApiError
from serve.middleware.request_head import CLOSING, num_bytes


class LimitedBody:
    """The body of one request, for the application to receive."""

    def __init__(self, receive: Receive, headers: Headers, most: int) -> None:
        self._receive, self._most = receive, most
        self._received, self._is_whole = 0, False
        self._is_declared_too_large = num_bytes(headers) > most
        self._has_no_length = "transfer-encoding" in headers

    @property
    def may_be_endless(self) -> bool:
        """Whether more than the limit may come, which a server reads to its end unless the connection is closed."""
        return not self._is_whole and (self._is_declared_too_large or self._has_no_length)

    def refusal(self) -> ApiError | None:
        """Why not even the beginning is read."""
        return ApiError(413, self._too_large()) if self._is_declared_too_large else None

    async def receive(self) -> Message:
        """The next piece.

        Raises:
            HTTPException: 408, it did not come by the deadline of the request; 413, it exceeds the limit.
        """
        if self._is_whole:  # what comes now is the end of the connection
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), time_left())
        except asyncio.TimeoutError as error:
            raise HTTPException(408, "the body did not arrive in time", CLOSING) from error
        self._is_whole = not message.get("more_body", False)
        self._received += len(message.get("body", b""))
        if self._received > self._most:
            raise HTTPException(413, self._too_large(), CLOSING)
        return message

    def _too_large(self) -> str:
        return f"the body exceeds the limit of {self._most} bytes"
