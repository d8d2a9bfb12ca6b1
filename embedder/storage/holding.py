"""Holds the lease on a run while a job works there: takes it, renews it in a thread, gives it back.

A second job on the same run is refused, whatever its settings. One that was killed does not block the next: on the same
machine its process is known to be gone, elsewhere its lease is watched for half a minute (embedder.storage.lease).
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Event, Thread
from uuid import uuid4

from embedder.console import console
from embedder.errors import LeaseError, StorageError
from embedder.storage.connect import open_store
from embedder.storage.lease import RENEW_EVERY_S, WATCH_S, Claim, Lease, check_holder
from embedder.storage.numbered import NumberedObjects
from embedder.storage.object_store import AnyPath
from embedder.storage.position import clock

logger = logging.getLogger(__name__)

FOLDER = ".lease"
"""Inside of the run."""
LOOK_EVERY_S = 1.0
TRY_AGAIN_S = 2.0
"""After a renewal that the store did not answer."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
ENDED = ("Z", "X")
"""States of a process in /proc that has ended and was not waited for."""

_held: list[tuple[AnyPath, Lease]] = []
"""The run that this process holds; a job has one."""


@dataclass(frozen=True)
class Permit:
    """What a process shows before each commit that writes for the holder of a lease, which is another process."""

    work: AnyPath
    lease: int

    def check(self) -> None:
        """Refuse the commit when the lease has passed on.

        Raises:
            LeaseError: it has.
            DataError, StorageError: the lease cannot be read, or the store does not answer.
        """
        check_holder(lease_objects(self.work), self.lease)


@lru_cache(maxsize=4)
def lease_objects(work: AnyPath) -> NumberedObjects:
    """The objects of a run's lease.

    Raises:
        ConfigError, StorageError: as `open_store`.
    """
    return NumberedObjects(open_store(work / FOLDER), "holders", ".json")


@contextmanager
def holding(work: AnyPath, what: str) -> Iterator[Lease]:
    """Hold the lease on the run `work` while the block runs; `what` says to others what is at work there.

    When the lease is lost, because this process slept for too long, it ends with one line at once.

    Raises:
        LeaseError: another job is at work there.
        ConfigError: the store ignores conditions.
        DataError, StorageError: the lease cannot be read, or the store does not answer.
    """
    who = f"{what} on {socket.gethostname()} (process {os.getpid()})"
    lease = Lease(lease_objects(work), uuid4().hex, who, clock, this_process(), is_gone)
    wait_for(lease, work)
    ended = Event()
    keeper = Thread(target=_keep, args=(lease, ended), daemon=True)
    keeper.start()
    _held.append((work, lease))
    try:
        yield lease
    finally:
        _held.pop()
        ended.set()
        keeper.join()
        try:
            lease.end()
        except (StorageError, OSError) as error:
            logger.warning("the lease of %s could not be given back: %s", work, error)


def wait_for(lease: Lease, work: AnyPath) -> None:
    """Take a lease, if need be after watching that its holder makes no sign any more.

    Raises:
        LeaseError: it makes one.
    """
    rival = first = lease.take()
    if first is not None:
        console().print(f"{work}: {first.who} was at work there; watching for {WATCH_S:.0f} s at most", markup=False)
    while rival is not None and first is not None:
        if rival.number != first.number:
            raise LeaseError(_refusal(work, rival))
        time.sleep(LOOK_EVERY_S)
        rival = lease.take()


def _refusal(work: AnyPath, rival: Claim) -> str:
    return f"paths.work {work}: {rival.who} is at work there, lease {rival.lease}; wait for its end, or end it"


def check_lease() -> None:
    """Refuse a commit of this process if it held a lease and lost it; processes without one may write.

    Raises:
        LeaseError: another job holds it.
        StorageError: the store does not answer.
    """
    for _, lease in _held:
        lease.check()


def own_permit() -> Permit | None:
    """What processes show that write for this one; none where it holds no lease."""
    return Permit(_held[-1][0], _held[-1][1].number) if _held else None


def _keep(lease: Lease, ended: Event) -> None:
    pause = RENEW_EVERY_S
    while not ended.wait(pause):
        try:
            lease.renew()
            pause = RENEW_EVERY_S
        except LeaseError as error:
            # Not by an exception in the main thread, which may be deep in a library and would go on writing.
            console().print(f"error: {error}", markup=False)
            sys.stdout.flush()
            os._exit(2)
        except (StorageError, OSError) as error:
            logger.warning("the lease could not be renewed, tried again: %s", error)
            pause = TRY_AGAIN_S


def this_process() -> str:
    """Machine, space of process numbers, number and start of this process; empty where the system does not tell."""
    began = _state_and_start(os.getpid())
    return f"{_machine()} {os.getpid()} {began[1]}" if began and _machine() else ""


def is_gone(process: str) -> bool:
    """Whether a process, as `this_process` told of it, ran on this machine and has ended for certain."""
    machine, pid, start = process.rsplit(" ", 2)
    if machine != _machine():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    now = _state_and_start(int(pid))
    return now is not None and (now[0] in ENDED or now[1] != start)


def _machine() -> str:
    """What tells this machine, started when it was, and its space of process numbers (a container has its own)."""
    try:
        return f"{BOOT_ID.read_text().strip()} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _state_and_start(pid: int) -> tuple[str, str] | None:
    try:
        # Behind the name, which stands in parentheses and may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], fields[19]
