"""What is large, in one thread, a piece at a time: the event loop goes on beside it, and who asks for it takes turns.

One thread, because Python's lock lets one compute at a time: the event loop waits for it behind each thread that wants
it too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from typing_extensions import TypeVarTuple, Unpack

from serve.backend import OWNER
from serve.deployments.fair_queue import FairQueue

Ts = TypeVarTuple("Ts")
T = TypeVar("T")

SMALL = 128
"""Hits or texts that are looked at in the event loop, in a few milliseconds."""


class LargeWork:
    """The thread, and what waits for it. Not to be shared between event loops."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="large-work")
        self._waiting: FairQueue[tuple[asyncio.Future[None], float]] = FairQueue()
        self._is_busy = False

    async def beside(self, items: int, function: Callable[[Unpack[Ts]], T], *arguments: Unpack[Ts]) -> T:
        """Call a function that looks at so many hits or texts: at once if they are few, else in the thread."""
        return function(*arguments) if items <= SMALL else await self.run(items, function, *arguments)

    async def run(self, work: float, function: Callable[[Unpack[Ts]], T], *arguments: Unpack[Ts]) -> T:
        """Call a function in the thread when it is the turn of who asks; raises what it raises.

        `work` is counted in any one unit. A call that nobody waits for is not begun; one that has begun goes on.
        """
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.add(OWNER.get(), (turn, work))
        if not self._is_busy:
            self._next()
        try:
            await turn
            return await loop.run_in_executor(self._thread, function, *arguments)
        finally:
            # A turn that was not given is passed over when it comes.
            if turn.done() and not turn.cancelled():
                self._next()

    def _next(self) -> None:
        """Give the next turn to somebody who still waits."""
        self._is_busy = False
        while self._waiting and not self._is_busy:
            owner, (turn, work) = self._waiting.first()
            if not turn.done():
                self._waiting.charge(owner, work)
                turn.set_result(None)
                self._is_busy = True
            self._waiting.pop(owner)
