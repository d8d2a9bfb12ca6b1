"""The versions that a replica has loaded: each at its first request, once for all who wait for it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from embedder.errors import EmbedderError

logger = logging.getLogger("ray.serve")

T = TypeVar("T")

IDLE_S = 60.0
"""How long a version that no alias names stays loaded after its last request."""


class VersionCache(Generic[T]):
    """Values by version. Not to be shared between event loops."""

    def __init__(self, load: Callable[[str], T]) -> None:
        """`load` runs in a thread, and may take long and raise."""
        self._load = load
        self._loading: dict[str, asyncio.Task[T]] = {}
        self._values: dict[str, T] = {}
        self._used: dict[str, float] = {}

    def preload(self, versions: Iterable[str], otherwise: str) -> None:
        """Load versions before there is an event loop to wait in, as far as they can be.

        If none of them can, load another one; raises what loading that raises.
        """
        for version in versions:
            try:
                self._preload(version)
            except EmbedderError as error:
                logger.error("version %s is not loaded: %s", version, error)
        if not self._values:
            self._preload(otherwise)

    def _preload(self, version: str) -> None:
        self._values[version], self._used[version] = self._load(version), time.monotonic()

    async def get(self, version: str) -> T:
        """The value of a version; raises what loading it raises, and the next request tries again."""
        self._used[version] = time.monotonic()
        value = self._values.get(version)
        if value is not None:
            return value
        if version not in self._loading:
            self._loading[version] = asyncio.create_task(asyncio.to_thread(self._load, version))
        loading = self._loading[version]
        try:
            # Shielded: that one who waits gives up must not take it from the others.
            value = await asyncio.shield(loading)
        finally:
            # Also after a failure, so that the next request tries again.
            if loading.done():
                self._loading.pop(version, None)
        self._values[version] = value
        return value

    def loaded(self) -> list[T]:
        """All values that are loaded now; may be called from another thread."""
        return list(self._values.values())

    def unload(self, named: Iterable[str]) -> None:
        """Let go of what no alias names and nobody has asked for lately; a request that still uses it keeps it.

        May be called from another thread.
        """
        before, kept = time.monotonic() - IDLE_S, set(named)
        # A copy of the keys: `get` may add some in the event loop's thread meanwhile.
        for version in list(self._values):
            if version not in kept and self._used[version] < before:
                self._values.pop(version, None)
