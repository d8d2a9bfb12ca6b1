"""The event loop of a test, without waiting for a time."""

from __future__ import annotations

import asyncio

TURNS = 20
"""More than any chain of callbacks here takes."""


async def settle() -> None:
    """Let the event loop run all that is ready, and what becomes ready by it."""
    loop = asyncio.get_running_loop()
    for _ in range(TURNS):
        turned = loop.create_future()
        loop.call_soon(turned.set_result, None)
        await turned
