"""Replay of writes: what was written to the version that an alias leaves is written to the version that it goes to.

Before the alias moves everything is replayed. After it has moved here, it is replayed again until nothing can come
late: other ingresses move a little later, and their requests take their time. The catalog remembers which versions an
alias has left and nobody has finished with, so that a restart, or a move while nothing was running, loses nothing. A
version itself knows what it lacks (embedder.index.writes). Here nothing is remembered, and a second replay is harmless.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from embedder.errors import DataError, EmbedderError
from embedder.index.documents import DocumentName
from embedder.index.opened import OpenIndex
from embedder.index.writes import Change, lacking
from embedder.storage.durable import locked
from serve.backend import DEADLINE, Backend
from serve.http_errors import ApiError
from serve.versions.served import Served, Version, VersionSource

logger = logging.getLogger("ray.serve")

TOGETHER = 64
"""Documents that are encoded and written by one call."""
CALL_S = 300.0
"""Deadline of a call."""
LOOK_S = 0.2
"""Between two looks at whether another ingress is done."""
SHORTLY_S = 0.2
"""Time for replaying nothing, or little; where there is more the alias moves at a later look."""
AGAIN_S = 3.0
"""After an alias moved here, until it has moved in all ingresses."""
LATE_S = 10.0
"""After the time that a request may take, until it can write no more."""
RETRY_S = 10.0
"""Pause after a failure, until the replay is tried again."""


@dataclass(frozen=True)
class _Move:
    alias: str
    old: str
    new: str


class WriteReplayer:
    """The replays of one ingress."""

    def __init__(self, backend: Backend, source: VersionSource, timeout_s: float, *, is_on: bool) -> None:
        self._backend, self._source, self._is_on = backend, source, is_on
        self._late_s = timeout_s + LATE_S
        self._before: dict[_Move, asyncio.Task[None]] = {}
        self._made: set[_Move] = set()
        """Moves of this ingress that `look` has not seen."""
        self._after: dict[tuple[_Move, int], asyncio.Task[None]] = {}
        """By the move, and when the alias left the old version."""

    async def may_move(self, alias: str, old: Version, new: Version) -> bool:
        """Whether an alias may move: what was written to `old` is in `new`, or its replay has failed.

        Begins the replay and waits at most SHORTLY_S for it. A failure is logged, and tried again after the move.

        Raises:
            ApiError: the service has no room for it now.
            TimeoutError: it has so little that a call took too long.
        """
        if not self._is_on or not self._source.is_catalog:
            return True
        move = _Move(alias, old.name, new.name)
        work = self._before.get(move) or asyncio.create_task(self._replay(old, new))
        self._before[move] = work
        # `wait` and not `wait_for`, which would cancel the replay at the timeout.
        await asyncio.wait({work}, timeout=SHORTLY_S)
        if not work.done():
            return False
        del self._before[move]
        try:
            await work
        except (EmbedderError, OSError) as error:
            logger.error("%s moves from %s to %s, but not yet all documents: %s", alias, old.name, new.name, error)
        self._made.add(move)
        return True

    def look(self, served: Served) -> None:
        """Replay what comes late from the versions that aliases have left, now or while no service was running."""
        if not self._source.is_catalog:
            return
        wanted, previous = self._source.aliases(), self._source.catalog.previous()
        for alias, new in served.all():
            if wanted.get(alias) != new.name:
                continue
            for move in [move for move in self._before if move.alias == alias]:
                # The alias went back before it had moved; what was replayed for that need not be finished.
                self._before.pop(move).cancel()
            left = {_Move(alias, old, new.name): when for old, when in previous.get(alias, {}).items()}
            # An ingress that moved long before this one may have settled what still comes late here.
            late = {move: time.time_ns() for move in self._made if (move.alias, move.new) == (alias, new.name)}
            for move, left_ns in (late | left).items():
                if (move, left_ns) not in self._after:
                    self._after[move, left_ns] = asyncio.create_task(self._finish(move, left_ns, new))
            self._made = {move for move in self._made if move.alias != alias}

    async def _finish(self, move: _Move, left_ns: int, new: Version) -> None:
        """Replay what comes late, until nothing can come any more."""
        try:
            if self._is_on:
                old = Version.read(self._source, move.old)
                for pause in (AGAIN_S, self._late_s - AGAIN_S):
                    await asyncio.sleep(pause)
                    await self._replay(old, new)
            # Only now, because a restart finds its work by what is not settled.
            self._source.catalog.settle(move.alias, move.old, left_ns, move.new)
        except (EmbedderError, ApiError, TimeoutError, OSError) as error:
            logger.error("what was written to %s is not all in %s yet: %s", move.old, move.new, error)
            await asyncio.sleep(RETRY_S)
            self._made.add(move)
        finally:
            del self._after[move, left_ns]

    async def _replay(self, old: Version, new: Version) -> None:
        async with _alone(self._source.folder / "write_replay.lock"):
            for task in old.manifest.collections:
                await self._replay_task(old, new, task)

    async def _replay_task(self, old: Version, new: Version, task: str) -> None:
        written = await self._writes(old, task)
        if not written.num_rows:
            return
        if task not in new.manifest.collections:
            logger.error("version %s has no task %r; what was written stays in %s", new.name, task, old.name)
            return
        names = await asyncio.to_thread(lacking, written, await self._writes(new, task))
        counts = {"task": task, "old": old.name, "new": new.name, "documents": len(names)}
        if names:
            logger.info("writes are compared", extra=counts)
        applied = 0
        for first in range(0, len(names), TOGETHER):
            changes = await self._changes(old, task, names[first : first + TOGETHER])
            applied += await self._apply(new, task, changes)
        if names:
            logger.info("writes were replayed", extra={**counts, "applied": applied})

    async def _writes(self, version: Version, task: str) -> pa.Table:
        _extend_deadline()
        parts = version.slices(self._backend.num_slices)
        calls = [self._backend.call(part, version.name, OpenIndex.writes, task) for part in parts]
        return pa.concat_tables(await asyncio.gather(*calls))

    async def _changes(self, old: Version, task: str, names: Sequence[DocumentName]) -> list[Change]:
        _extend_deadline()
        positions = old.by_slice([document_id for document_id, _ in names], self._backend.num_slices)
        calls = [
            self._backend.call(part, old.name, OpenIndex.changes, task, [names[i] for i in own])
            for part, own in positions.items()
        ]
        return [change for changes in await asyncio.gather(*calls) for change in changes]

    async def _apply(self, new: Version, task: str, changes: list[Change]) -> int:
        """Apply the pending ones of some changes, and count them; what the new version refuses is logged and left."""
        _extend_deadline()
        try:
            return await self._write(new, task, changes)
        except (ApiError, DataError) as error:
            is_of_the_changes = isinstance(error, DataError) or error.status == 400 or error.code == "not_encodable"
            if not is_of_the_changes:
                raise
            if len(changes) == 1:
                logger.error("document %s is not replayed in %s: %s", changes[0].name, new.name, error)
                return 0
        # By halves, to find the one that is refused without a call for each of the others.
        middle = len(changes) // 2
        return await self._apply(new, task, changes[:middle]) + await self._apply(new, task, changes[middle:])

    async def _write(self, new: Version, task: str, changes: list[Change]) -> int:
        positions = new.by_slice([change.name[0] for change in changes], self._backend.num_slices)
        asked = [
            self._backend.call(part, new.name, OpenIndex.pending_changes, task, [changes[i] for i in own])
            for part, own in positions.items()
        ]
        # Asked first, so that only documents that will be written are encoded, which is the expensive part.
        answers = await asyncio.gather(*asked)
        pending = [own[i] for own, answer in zip(positions.values(), answers, strict=True) for i in answer]
        if not pending:
            return 0
        encoded = [i for i in pending if changes[i].row is not None]
        vector_CD = np.zeros((len(changes), new.manifest.dimension), dtype=np.float32)
        if encoded:
            how = new.manifest.tasks[task]
            texts = [how.prompted("passage", row.text) for i in encoded if (row := changes[i].row) is not None]
            vector_CD[encoded] = (await self._backend.encode(new.name, texts, True)).vector_ND
        calls = []
        for part, own in positions.items():
            kept = [i for i in own if i in pending]
            if kept:
                calls.append(
                    self._backend.call(
                        part, new.name, OpenIndex.apply_changes, task, [changes[i] for i in kept], vector_CD[kept]
                    )
                )
        return sum(map(len, await asyncio.gather(*calls)))


def _extend_deadline() -> None:
    # There is no request here that has a deadline; calls of the backend expect one.
    DEADLINE.set(time.monotonic() + CALL_S)


@asynccontextmanager
async def _alone(lock: Path) -> AsyncIterator[None]:
    """Keep other ingresses out; several do the same when an alias moves."""
    while True:
        # Without waiting: that would block the event loop and every request with it.
        with locked(lock, wait=False) as is_mine:
            if is_mine:
                yield
                return
        await asyncio.sleep(LOOK_S)
