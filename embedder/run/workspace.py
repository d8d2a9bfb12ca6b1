"""The folder in which a job works: that of the run, or the mirror of a run in an object store."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

from embedder.config.run import RunConfig
from embedder.errors import ConfigError, DataError
from embedder.hashing import content_id
from embedder.storage.durable import locked
from embedder.storage.mirror import Mirror
from embedder.storage.object_store import ObjectPath

logger = logging.getLogger(__name__)

PUSH_S = 30.0
"""Between two pushes while a job runs."""


@contextmanager
def workplace(config: RunConfig, *, writes: bool) -> Iterator[RunConfig]:
    """The same run with `paths.work` in a folder; of a run in an object store what is there is fetched, and sent after.

    On a cluster every node must mount `paths.cache`. Without `writes` nothing is sent, and nothing fetched while a job
    is at work in the same mirror.

    Raises:
        ConfigError: another job is at work in the same mirror.
        DataError: the store does not answer, or refuses; or another machine's push was cut off as it replaced files.
    """
    work = config.paths.work
    if not isinstance(work, ObjectPath):
        yield config
        return
    mirror = Mirror(work, config.paths.cache / "mirrors" / content_id(work.uri)[:16] / work.name)
    # Not waited for: the other job may take days, and its mirror would be out of date when this one begins.
    with locked(mirror.folder.parent / "mirror.lock", wait=False) as is_mine:
        if writes and not is_mine:
            raise ConfigError(f"{mirror.folder}: another job works on {mirror.remote} here; wait for its end")
        if is_mine:
            # Under the lock alone, because a pull changes files that a job at work here is reading.
            mirror.pull()
        local = config.model_copy(update={"paths": config.paths.model_copy(update={"work": mirror.folder})})
        if not writes:
            yield local
            return
        mirror.claim()
        with _pushing(mirror):
            yield local


@contextmanager
def _pushing(mirror: Mirror) -> Iterator[None]:
    """Push at intervals and at the end. If the job fails, its own error is raised, not that of the last push."""
    ended = Event()
    pusher = Thread(target=_push_on, args=(mirror, ended), daemon=True)
    pusher.start()
    has_failed = True
    try:
        yield
        has_failed = False
    finally:
        ended.set()
        pusher.join()
        try:
            mirror.push()
        except (DataError, OSError) as error:
            if not has_failed:
                raise
            logger.error("not all that the job wrote was sent: %s", error)


def _push_on(mirror: Mirror, ended: Event) -> None:
    """Push until the job ends; what fails is tried again the next time."""
    while not ended.wait(PUSH_S):
        try:
            mirror.push()
        except (DataError, OSError) as error:
            logger.warning("what the job has written so far was not sent: %s", error)
