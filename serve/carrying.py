"""What was written to the version that an alias leaves, written to the version that it goes to.

Before the alias moves everything is carried, and soon after it once more: other ingresses move a little later. Beside
each version it is noted what others have told it, so that a second time, and a way back, carry only what was written
since. A document that is not the same in both versions' corpora, or was written in the new one, stays as it is there.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from embedder.durable import locked, write_durably
from embedder.errors import BundleError
from embedder.index.changes import Change
from embedder.index.documents import DocumentName
from serve.backend import DEADLINE, Backend
from serve.errors import ApiError
from serve.versions import Served, Source, Version

logger = logging.getLogger("ray.serve")

TOGETHER = 64
"""Documents that are encoded and written by one call."""
CALL_S = 300.0
"""Deadline of a call."""
TRIES = 20
PAUSE_S = 1.0
"""Before a call is made again for which the service had no room."""
LOOK_S = 0.2
"""Between two looks at whether another ingress is done."""
SHORTLY_S = 0.2
"""For carrying nothing, or little, before an alias moves at the next look."""
AGAIN_S = 3.0
"""After an alias moved here, until it has moved in all ingresses."""

Told = dict[DocumentName, str | None]
"""Digests of documents as the new version has been told of them."""


class Carrier:
    """The carrying of one ingress."""

    def __init__(self, backend: Backend, source: Source, *, is_on: bool) -> None:
        self._backend, self._source, self._is_on = backend, source, is_on and source.is_catalog
        self._before_move: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._at_work: set[asyncio.Task[None]] = set()
        self._has_looked_back = False

    async def carried(self, alias: str, old: Version, new: Version) -> bool:
        """Whether what was written to a version is in another one too; begins that work, and never waits for long.

        Raises:
            ApiError: the service has no room for it for long, or is failing.
            BundleError: the note of what has been carried is damaged.
        """
        if not self._is_on:
            return True
        key = (old.name, new.name)
        work = self._before_move.get(key) or self._begin(self._carry(old, new))
        self._before_move[key] = work
        await asyncio.wait({work}, timeout=SHORTLY_S)
        if not work.done():
            return False
        del self._before_move[key]
        await work
        self._begin(self._carry_again(alias, old, new))
        return True

    def look_back(self, served: Served) -> None:
        """Once: carry what was written to a version that an alias left while no service was running."""
        if self._has_looked_back or not self._is_on:
            return
        self._has_looked_back = True
        previous = self._source.catalog.previous()
        for alias, new in served.all():
            for old in previous.get(alias, []):
                self._begin(self._carry_again(alias, Version.read(self._source, old), new))

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task of its own, which says if it failed."""

        def ended(task: asyncio.Task[None]) -> None:
            self._at_work.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                logger.error("documents are not carried over yet: %s", error)

        task = asyncio.create_task(work)
        self._at_work.add(task)
        task.add_done_callback(ended)
        return task

    async def _carry_again(self, alias: str, old: Version, new: Version) -> None:
        """What other ingresses have written to a version before they left it too."""
        await asyncio.sleep(AGAIN_S)
        await self._carry(old, new)
        self._source.catalog.settle(alias, old.name)

    async def _carry(self, old: Version, new: Version) -> None:
        if not self._source.state(old.name).is_dir():  # nothing was ever written to it
            return
        note = self._source.state(new.name) / "carried" / f"{old.name}.json"
        note_back = self._source.state(old.name) / "carried" / f"{new.name}.json"
        async with _alone(self._source.folder / "carrying.lock"):
            known, known_back = _read(note), _read(note_back)
            for task in old.manifest.collections:
                try:
                    await self._carry_task(old, new, task, known.setdefault(task, {}), known_back.setdefault(task, {}))
                finally:
                    _write(note, known)
                    _write(note_back, known_back)

    async def _carry_task(self, old: Version, new: Version, task: str, told: Told, told_back: Told) -> None:
        _extend_deadline()
        parts = old.slices(self._backend.num_slices)
        found = await asyncio.gather(*(self._backend.changes(part, old.name, task, told) for part in parts))
        changes = [change for part in found for change in part]
        counts = {"task": task, "old": old.name, "new": new.name, "documents": len(changes)}
        if changes and task not in new.manifest.collections:
            logger.error("documents are not carried over: the new version has no such task", extra=counts)
            return
        if changes:
            logger.info("documents are carried over", extra=counts)
        made = 0
        for first in range(0, len(changes), TOGETHER):
            group = changes[first : first + TOGETHER]
            done = await self._make(new, task, group)
            told |= {change.name: change.after for change in group}
            told_back |= {change.name: change.after for change in done}
            made += len(done)
        if changes:
            logger.info("documents were carried over", extra={**counts, "kept": len(changes) - made})

    async def _make(self, new: Version, task: str, changes: Sequence[Change]) -> list[Change]:
        """Make changes and tell which were made; a text that the new model cannot encode is logged and left out."""
        for left in reversed(range(TRIES)):
            _extend_deadline()
            try:
                return await self._write(new, task, changes)
            except ApiError as error:
                if error.status == 400 and len(changes) > 1:
                    return [one for change in changes for one in await self._make(new, task, [change])]
                if error.status == 400:
                    logger.error("document %s is not carried to %s: %s", changes[0].name, new.name, error.message)
                    return []
                if not left:
                    raise
            except TimeoutError as error:
                if not left:
                    raise ApiError(503, "documents could not be carried over in time") from error
            await asyncio.sleep(PAUSE_S)
        return []

    async def _write(self, new: Version, task: str, changes: Sequence[Change]) -> list[Change]:
        """Encode and write; returns the changes that were made, the others having been overtaken."""
        instruction = new.manifest.tasks[task].instruction("key")
        texts = [instruction + change.row.text for change in changes if change.row is not None]
        vector_CD = np.zeros((len(changes), new.manifest.dimension), dtype=np.float32)
        if texts:
            encoded = await self._backend.encode(new.name, texts, True)
            vector_CD[[change.row is not None for change in changes]] = encoded.vector_ND
        places = new.by_slice([change.name[0] for change in changes], self._backend.num_slices)
        calls = [
            self._backend.carry(part, new.name, task, [changes[i] for i in own], vector_CD[own])
            for part, own in places.items()
        ]
        done = await asyncio.gather(*calls)
        return [changes[own[i]] for own, made in zip(places.values(), done, strict=True) for i in made]


def _extend_deadline() -> None:
    DEADLINE.set(time.monotonic() + CALL_S)


@asynccontextmanager
async def _alone(lock: Path) -> AsyncIterator[None]:
    """Keep other ingresses out; several do the same when an alias moves."""
    while True:
        with locked(lock, wait=False) as is_mine:
            if is_mine:
                yield
                return
        await asyncio.sleep(LOOK_S)


def _read(path: Path) -> dict[str, Told]:
    """What has been carried, by task."""
    if not path.is_file():
        return {}
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return {task: {(name, dataset): digest for name, dataset, digest in rows} for task, rows in raw.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise BundleError(f"{path}: damaged ({error}); remove it, and what it tells of is carried again") from error


def _write(path: Path, known: dict[str, Told]) -> None:
    raw = {task: [[*name, digest] for name, digest in told.items()] for task, told in known.items()}
    write_durably(path, json.dumps(raw, ensure_ascii=False).encode())
