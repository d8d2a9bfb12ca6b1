"""Large work in its thread: one piece at a time, in turns of who asks, and none for who has left."""

from __future__ import annotations

import asyncio
import threading

import pytest

from serve.backend import OWNER
from serve.large_work import SMALL, LargeWork
from tests.event_loop import settle


def begin(work: LargeWork, owner: str, function, *arguments) -> asyncio.Task:
    async def asked():
        OWNER.set(owner)
        return await work.run(1.0, function, *arguments)

    return asyncio.create_task(asked())


def test_owners_take_turns_and_the_event_loop_goes_on():
    async def main():
        work, done, free = LargeWork(), [], threading.Event()
        first = begin(work, "many", free.wait)
        await settle()
        tasks = [begin(work, "many", done.append, f"many {number}") for number in range(3)]
        await settle()
        tasks.append(begin(work, "one", done.append, "one"))
        await settle()
        assert done == []
        free.set()
        await asyncio.gather(first, *tasks)
        assert done == ["many 0", "one", "many 1", "many 2"] or done == ["one", "many 0", "many 1", "many 2"]

    asyncio.run(main())


def test_what_nobody_waits_for_is_not_begun_and_what_fails_gives_the_turn_on():
    async def main():
        work, done, free = LargeWork(), [], threading.Event()
        first = begin(work, "a", free.wait)
        await settle()
        left = begin(work, "a", done.append, "left")
        fails = begin(work, "a", int, "no number")
        last = begin(work, "a", done.append, "last")
        await settle()
        left.cancel()
        # Its thread works on, and the next one takes its turn.
        first.cancel()
        await settle()
        free.set()
        with pytest.raises(ValueError, match="no number"):
            await fails
        await last
        assert done == ["last"]

    asyncio.run(main())


def test_small_work_is_done_at_once():
    async def main():
        work = LargeWork()
        assert await work.beside(SMALL, threading.get_ident) == threading.get_ident()
        assert await work.beside(SMALL + 1, threading.get_ident) != threading.get_ident()

    asyncio.run(main())
