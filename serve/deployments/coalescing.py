"""Requests on their way from an ingress to the encoders: at once while few calls are under way, else several in one.

A call between processes costs as much as encoding a short text, so under load it is the calls that are to be few. It
also bounds what waits, and gives the autoscaler a number that says how busy the encoders are. Needs no Ray.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from embedder.config.cutting import PromptedText
from serve.backend import DEADLINE, Encoded, time_left
from serve.http_errors import ApiError, overloaded

Outcome = Encoded | ApiError
Send = Callable[[str, list[list[PromptedText]], bool], Awaitable[list[Outcome]]]
"""Version, texts by request, and whether to cut them, to what became of each request."""

MOST_REQUESTS = 64
"""Requests that one call takes at most."""
MOST_CHARACTERS = 16_384
"""Of all texts of a call that holds several requests: about a batch of the encoder, so that a large one goes alone."""


@dataclass(eq=False)
class _Request:
    version: str
    texts: list[PromptedText]
    truncate: bool
    deadline: float
    done: asyncio.Future[Encoded]

    def settle(self, outcome: Outcome | BaseException) -> None:
        """Say what became of it, if anybody still waits."""
        if self.done.done():
            return
        if isinstance(outcome, BaseException):
            self.done.set_exception(outcome)
        else:
            self.done.set_result(outcome)


class Coalescer:
    """The requests of one ingress."""

    def __init__(self, send: Send, most_calls: int, most_requests: int, most_texts: int) -> None:
        """`most_requests` and `most_texts` may wait; a request is let in while fewer do, however many texts it has."""
        self._send, self._most_calls = send, most_calls
        self._most_requests, self._most_texts = most_requests, most_texts
        self._waiting: deque[_Request] = deque()
        self._waiting_texts = 0
        self._calls: set[asyncio.Task[list[Outcome]]] = set()

    @property
    def is_full(self) -> bool:
        return len(self._waiting) >= self._most_requests or self._waiting_texts >= self._most_texts

    async def encode(self, version: str, texts: list[PromptedText], truncate: bool) -> Encoded:
        """The vectors of one request's texts.

        Raises:
            ApiError: too many requests wait, or what the encoder says of this one.
            TimeoutError: its deadline has passed.
        """
        if self.is_full:
            raise overloaded()
        done: asyncio.Future[Encoded] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Request(version, texts, truncate, DEADLINE.get(), done))
        self._waiting_texts += len(texts)
        self._send_on()
        try:
            return await asyncio.wait_for(done, time_left())
        except asyncio.TimeoutError as error:
            raise TimeoutError from error

    def _send_on(self) -> None:
        """Begin calls with what waits, as many as may be under way."""
        while len(self._calls) < self._most_calls and (group := self._take()):
            call = asyncio.create_task(self._call(group))
            self._calls.add(call)
            # By callbacks: whoever asked may be gone by then, and the next call must begin all the same.
            call.add_done_callback(partial(self._called, group))
            for request in group:
                request.done.add_done_callback(partial(_drop, call, group))

    def _called(self, group: list[_Request], call: asyncio.Task[list[Outcome]]) -> None:
        """Tell everybody who waits what a call has brought, and begin the next one."""
        self._calls.discard(call)
        # Asked first, because `exception` of a cancelled task raises.
        if not call.cancelled():
            failure = call.exception()
            outcomes = call.result() if failure is None else [failure] * len(group)
            for request, outcome in zip(group, outcomes, strict=True):
                request.settle(outcome)
        self._send_on()

    def _take(self) -> list[_Request]:
        """The requests of the next call: those that wait longest, of one version, and those that nobody left."""
        group: list[_Request] = []
        characters = 0
        while self._waiting and len(group) < MOST_REQUESTS:
            request = self._waiting[0]
            if not request.done.done():
                same = not group or (request.version, request.truncate) == (group[0].version, group[0].truncate)
                characters += sum(map(len, request.texts))
                if group and (not same or characters > MOST_CHARACTERS):
                    break
                group.append(request)
            # Those that nobody waits for leave the queue here too, so that the count stays right.
            self._waiting_texts -= len(self._waiting.popleft().texts)
        return group

    async def _call(self, group: list[_Request]) -> list[Outcome]:
        # A task has a context of its own: this deadline is seen by this call alone. The latest counts, because each
        # request leaves by its own deadline in `encode`.
        DEADLINE.set(max(request.deadline for request in group))
        texts = [request.texts for request in group]
        return await self._send(group[0].version, texts, group[0].truncate)


def _drop(call: asyncio.Task[list[Outcome]], group: list[_Request], _: asyncio.Future[Encoded]) -> None:
    """Cancel a call that nobody waits for any more."""
    if all(request.done.cancelled() for request in group):
        call.cancel()
