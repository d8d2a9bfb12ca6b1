"""The event loop of a test, without waiting for a time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

TURNS = 20
"""More than any chain of callbacks here takes."""


async def settle() -> None:
    """Let the event loop run all that is ready, and what becomes ready by it."""
    loop = asyncio.get_running_loop()
    for _ in range(TURNS):
        turned = loop.create_future()
        loop.call_soon(turned.set_result, None)
        await turned


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose time passes by itself: where nothing is ready, the clock stands at the next timer at once."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0

    def time(self) -> float:
        """Seconds since the loop began."""
        return self._now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:
            self._now = max(self._now, self._scheduled[0]._when)
        super()._run_once()


def run_virtually(main: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns in a loop of virtual time."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(main)
    finally:
        loop.close()
