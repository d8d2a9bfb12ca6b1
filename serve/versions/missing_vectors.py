"""Vectors of what was written through a version with another model, made by the model of a version that is served.

All versions that an alias names share the log of a task (embedder.index.task_log), and each shows a write once that has
a vector for it. An alias moves to a version when nothing waits there any more, and what comes later is made within a
second or two. Vectors go into the log too, so that every replica has them, after a restart as well; making one twice
does no harm.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

import numpy as np

from embedder.errors import DataError, EmbedderError
from embedder.index.documents import DocumentName
from embedder.index.opened import OpenIndex
from embedder.index.operations import Waiting
from serve.backend import DEADLINE, OWNER, Backend
from serve.http_errors import ApiError
from serve.versions.served import Version

logger = logging.getLogger("ray.serve")

TOGETHER = 64
"""Documents that are encoded and written by one call."""
CALL_S = 300.0
"""Deadline of a call."""
LOOK_S = 0.2
"""Between two looks at a replica that has not read yet what was made for it."""
SHORTLY_S = 0.2
"""Time for making few; where there are more the alias moves at a later look."""
RETRY_S = 10.0
"""Pause after a failure, until it is tried again."""


class MissingVectors:
    """The vectors that one ingress makes."""

    def __init__(self, backend: Backend, *, is_on: bool) -> None:
        """`is_on`: this service writes; another one makes them where it does not."""
        self._backend, self._is_on = backend, is_on
        self._making: dict[str, asyncio.Task[None]] = {}
        self._failed: dict[str, float] = {}

    async def are_made(self, version: Version) -> bool:
        """Whether nothing waits in a version, or making it has failed; begins to make it, and waits at most SHORTLY_S.

        A failure is logged, and it is tried again later.

        Raises:
            ApiError: the service has no room for it now.
            TimeoutError: it has so little that a call took too long.
        """
        if not self._is_on or time.monotonic() < self._failed.get(version.key, 0.0):
            return True
        work = self._making.get(version.key) or asyncio.create_task(self._make(version))
        self._making[version.key] = work
        # `wait` and not `wait_for`, which would cancel the work at the timeout.
        await asyncio.wait({work}, timeout=SHORTLY_S)
        if not work.done():
            return False
        del self._making[version.key]
        try:
            await work
        except (EmbedderError, OSError) as error:
            logger.error("version %s does not show all that was written yet: %s", version.name, error)
            self._failed[version.key] = time.monotonic() + RETRY_S
        return True

    async def _make(self, version: Version) -> None:
        made: set[tuple[str, DocumentName, int]] = set()
        # Whoever's request happened to begin it: it takes turns with all of them, and is nobody's share.
        OWNER.set("")
        for part in version.slices(self._backend.num_slices):
            # There is no request here that has a deadline; calls of the backend expect one.
            DEADLINE.set(time.monotonic() + CALL_S)
            while waiting := await self._backend.call(part, version.key, OpenIndex.waiting, TOGETHER):
                new = {
                    task: [one for one in some if (task, one[0], one[1].number) not in made]
                    for task, some in waiting.items()
                }
                for task, some in new.items():
                    if some:
                        await self._encode(version, part, task, some)
                        made.update((task, name, one.number) for name, one in some)
                if not any(new.values()):
                    # Another replica of the slice, which reads the log a little later.
                    await asyncio.sleep(LOOK_S)
                DEADLINE.set(time.monotonic() + CALL_S)
        if made:
            logger.info("writes were encoded", extra={"version": version.name, "documents": len(made)})

    async def _encode(
        self, version: Version, part: int, task: str, waiting: Sequence[tuple[DocumentName, Waiting]]
    ) -> None:
        """Make the vectors of some writes; that the model fails on a text alone is noted in place of its vector."""
        how = version.manifest.tasks[task]
        try:
            texts = [how.prompted("passage", one.row.text) for _, one in waiting]
            vector_WD = (await self._backend.encode(version.name, texts, True)).vector_ND
        except (ApiError, DataError) as error:
            is_of_a_text = isinstance(error, DataError) or error.status == 400 or error.code == "not_encodable"
            if not is_of_a_text:
                raise
            if len(waiting) > 1:
                # By halves, to find the one that is refused without a call for each of the others.
                middle = len(waiting) // 2
                await self._encode(version, part, task, waiting[:middle])
                await self._encode(version, part, task, waiting[middle:])
                return
            logger.error("document %s is not in version %s: %s", waiting[0][0], version.name, error)
            vector_WD = np.full((1, version.manifest.dimension), np.nan, dtype=np.float32)
        numbers = [(name, one.number) for name, one in waiting]
        await self._backend.call(part, version.key, OpenIndex.put_vectors, task, numbers, vector_WD)
