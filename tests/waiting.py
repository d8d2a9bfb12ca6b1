"""Waiting for a condition: the only place where the tests wait by polling."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(holds: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Return as soon as `holds()` is true; fail after `timeout_s` seconds.

    In a coroutine: `await asyncio.to_thread(wait_until, holds)`, so that the event loop goes on meanwhile.
    """
    end = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > end:
            raise AssertionError(f"not so after {timeout_s:g} s: {_name_of(holds)}")
        time.sleep(0.02)  # short beside what is waited for, long enough to leave the processor to it


def _name_of(holds: Callable[[], bool]) -> str:
    """Name of a condition, and its place since a lambda has no name that helps."""
    name = getattr(holds, "__qualname__", repr(holds))
    code = getattr(holds, "__code__", None)
    return f"{name} ({code.co_filename}:{code.co_firstlineno})" if code else name
