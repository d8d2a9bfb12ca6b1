"""A lease on a run: the one process that may write there, told by numbered objects of which the highest counts.

A holder puts the next number every 10 seconds. A rival that has seen no new number for 30 seconds, by its own clock,
puts the next one itself and is the holder from then on. A holder that could not renew for 20 seconds, counted from the
moment it began to, takes itself for none until it has. So no two clocks need to show the same time, and the slowest may
run a fifth slower than the fastest.

The number under which a lease was taken is the lease's own: renewals carry it, and so do writers of other processes,
who show it before each commit (`check_holder`). This file is the protocol alone; threads and waiting are in
embedder.storage.holding.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import inf

from embedder.errors import DataError, LeaseError
from embedder.storage.numbered import NumberedObjects

RENEW_EVERY_S = 10.0
"""Between two renewals of a holder."""
VALID_S = 20.0
"""From the beginning of a renewal: for so long a holder takes the lease for its own without asking."""
WATCH_S = 30.0
"""Without a new number, after which a rival takes the lease over."""
KEPT = 8
"""Objects that a holder leaves behind it, for those who are reading them."""
READS = 20
"""Of the newest object, which may be removed between a listing and its reading."""


@dataclass(frozen=True)
class Claim:
    """One object, by which a process says that it holds the run."""

    number: int
    """Of the object."""
    lease: int
    """The number under which this holder took the lease."""
    holder: str
    """A name of its own, never used again."""
    who: str
    """Which job that is, and where, for people."""
    process: str = ""
    """Its process, for others on the same machine; empty where that cannot be told."""
    ended: bool = False
    """The holder is done: the lease is free."""


def newest(objects: NumberedObjects) -> Claim | None:
    """The claim that counts, none where nobody ever made one.

    Raises:
        DataError: it is damaged.
        StorageError: the store does not answer.
    """
    for _ in range(READS):
        number = objects.latest()
        if not number:
            return None
        content = objects.get(number)
        if content is not None:
            try:
                return Claim(**json.loads(content))
            except (ValueError, TypeError) as error:
                raise DataError(
                    f"lease {number} of the run is damaged ({error}); remove it if no job is at work there"
                ) from error
        # Gone since it was listed, so there is a newer one.
    raise DataError("the lease of the run changes faster than it can be read; run it again")


def check_holder(objects: NumberedObjects, lease: int) -> None:
    """Refuse a commit under a lease that has passed on to another holder, or has ended.

    Raises:
        LeaseError: it has.
        DataError, StorageError: the lease cannot be read.
    """
    claim = newest(objects)
    if claim is None or claim.lease != lease or claim.ended:
        raise LeaseError(_lost(lease, claim))


class Lease:
    """One process's hold on a run, or its wish for it.

    `clock` tells seconds that pass while the machine sleeps too; `is_gone` tells of a process whether it is known to
    have ended.
    """

    def __init__(
        self,
        objects: NumberedObjects,
        holder: str,
        who: str,
        clock: Callable[[], float],
        process: str = "",
        is_gone: Callable[[str], bool] = lambda process: False,
    ) -> None:
        self.number = 0
        """Under which it is held; 0: it is not."""
        self._objects, self._clock, self._is_gone = objects, clock, is_gone
        self._holder, self._who, self._process = holder, who, process
        self._last = 0
        self._tried = 0, -inf
        self._valid_until = -inf
        self._watched: tuple[int, float] | None = None
        # The thread that renews and the one that commits both come here.
        self._lock = threading.RLock()

    def take(self) -> Claim | None:
        """Take the lease if it is free; else the claim that is in the way, to be asked again a little later.

        Raises:
            DataError, StorageError: the lease cannot be read, or the store does not answer.
        """
        claim, now = newest(self._objects), self._clock()
        if claim is None or claim.ended or (claim.process and self._is_gone(claim.process)):
            return self._take_after(claim)
        if claim.holder == self._holder:
            # An earlier call was cut off between its put and its answer.
            self.number, self._last = claim.lease, claim.number
            self.renew()
            return None
        if self._watched is None or self._watched[0] != claim.number:
            self._watched = claim.number, now
        return self._take_after(claim) if now - self._watched[1] >= WATCH_S else claim

    def _take_after(self, claim: Claim | None) -> Claim | None:
        began, number = self._clock(), claim.number + 1 if claim else 1
        if not self._put(number, number):
            return newest(self._objects)
        self.number, self._last, self._valid_until = number, number, began + VALID_S
        return None

    def renew(self) -> None:
        """Put the next number, and remove old ones.

        Raises:
            LeaseError: another process holds the lease by now.
            StorageError: the store does not answer; to be tried again.
        """
        with self._lock:
            number = self._last + 1
            if self._tried[0] != number:
                # Of a put whose answer was lost the first try counts: a rival may have seen the object since.
                self._tried = number, self._clock()
            if not self._put(number, self.number):
                raise LeaseError(_lost(self.number, newest(self._objects)))
            self._last, self._valid_until = number, self._tried[1] + VALID_S
            for old in self._objects.numbers():
                if old <= number - KEPT:
                    self._objects.remove(old)

    def check(self) -> None:
        """Refuse a commit of this process when the lease is no longer its own.

        Raises:
            LeaseError: another process holds it.
            StorageError: it must be renewed first, and the store does not answer.
        """
        with self._lock:
            while self._clock() >= self._valid_until:
                self.renew()

    def end(self) -> None:
        """Give the lease back, so that the next job need not wait."""
        with self._lock:
            if self._put(self._last + 1, self.number, ended=True):
                self._last += 1

    def _put(self, number: int, lease: int, *, ended: bool = False) -> bool:
        """Make a claim; tells whether it is the one that counts."""
        claim = Claim(number, lease, self._holder, self._who, self._process, ended)
        content = json.dumps(asdict(claim)).encode()
        # Of a put that was given up without an answer the next one fails, though the object is ours.
        is_there = self._objects.put(number, content) or self._objects.get(number) == content
        return is_there and self._is_newest(number)

    def _is_newest(self, number: int) -> bool:
        # Asked for although the object is there: who slept since it knew of the last number may have written below it,
        # where old numbers have been removed.
        return self._objects.latest() == number


def _lost(lease: int, claim: Claim | None) -> str:
    now = "nobody holds it" if claim is None or claim.ended else f"{claim.who} holds lease {claim.lease}"
    return f"lease {lease} of the run is lost, {now}; nothing more is written; run it again after that has ended"
