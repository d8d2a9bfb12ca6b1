"""Admission by work: how much is ahead, how fast it is done, and so whether a request can be answered in time.

Work is counted in any unit: tokens on the way to an encoder, requests inside a proxy. Needs no Ray; the clock is given.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence, Sized

Clock = Callable[[], float]

SMALL_TOKENS = 1024
"""Estimated, of a small request of one text at most."""
SMALL_TOKENS_TOGETHER = 256
"""The same of several texts: each query that comes meanwhile waits for all of them, and 1,024 tokens took a third of a
second on one processor thread."""
MARGIN = 0.8
"""Share of the time left that the work may take by the estimate: the rest is for its error."""
BEGIN_MARGIN = 0.9
"""The same for what waits, or it is not begun: more, since it was let in by the other one, and less than all, because
queries that come meanwhile go first."""
MEMORY_S = 5.0
"""Busy seconds after which a measurement counts for a third."""
MOST_RETRY_S = 30.0
"""Longest time after which a refused client is told to come back. openai's SDK passes over more than 60 s."""
UNKNOWN_RETRY_S = 1.0
"""The same while nothing was measured yet."""
SPREAD = 0.25
"""By which share the time to come back is drawn out at random, so that clients do not come back together."""
FIRST_RATIO = 0.3
"""Tokens of a character before any were counted."""
FIRST_CHARACTERS = 1000.0
"""How many characters that guess is worth."""
MOST_CHARACTERS = 1e6
"""Characters whose counts are kept; older ones fade."""


class Throughput:
    """Work done a second, measured only while more waits than is under way: an idle service would look slow."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._work = self._seconds = 0.0
        self._mark: float | None = None

    def done(self, work: float | None, *, more: bool) -> None:
        """Note work that has ended; `more` waits, so that the time until the next end is spent on work alone.

        None: it was given up, which says nothing of the speed.
        """
        now = self._clock()
        if self._mark is not None and work is not None:
            seconds = now - self._mark
            # By busy time and not by the clock on the wall: what was measured before a quiet hour still holds.
            fading = math.exp(-seconds / MEMORY_S)
            self._work = self._work * fading + work
            self._seconds = self._seconds * fading + seconds
        self._mark = now if more else None

    @property
    def rate(self) -> float | None:
        """Work a second; None before any was measured."""
        return self._work / self._seconds if self._seconds > 0 and self._work > 0 else None


class Room:
    """What is ahead of the next request, whether that can be done in time, and when to come back if not."""

    def __init__(self, clock: Clock = time.monotonic, chance: Callable[[], float] = random.random) -> None:
        """`chance` gives numbers of [0, 1)."""
        self._clock, self._chance = clock, chance
        self.throughput = Throughput(clock)
        self.ahead = 0.0
        """Work that was let in and is not done."""
        self._mean = 0.0
        self._promised = 0.0

    def enter(self, work: float) -> None:
        """Count work that is let in."""
        self.ahead += work
        self._mean = work if not self._mean else 0.9 * self._mean + 0.1 * work

    def leave(self, work: float) -> None:
        """Count no more what is done, or what nobody waits for."""
        # By sums of floats a little may be left over, which must not count as work.
        self.ahead = 0.0 if self.ahead - work < 1e-6 else self.ahead - work

    def lacks(self, work: float, seconds: float, ahead: float | None = None, margin: float = MARGIN) -> float:
        """Seconds until so much more could be done within a share (`margin`) of `seconds`; 0 if it can be now.

        `ahead` is what is ahead of a request that waits already; by default what is ahead of the next one. Where that
        is nothing it is let in, however much it is: it would never be quicker later.
        """
        rate, ahead = self.throughput.rate, self.ahead if ahead is None else ahead
        if rate is None or not ahead:
            return 0.0
        return max(0.0, (ahead + work) / rate - margin * seconds)

    def come_back(self, lacks: float, work: float = 0.0) -> float:
        """After how many seconds a client that is refused should try again: each is given a turn of its own.

        `work` 0 stands for a request of usual size. Turns are given out no faster than work is done, because clients
        that all come back when there is room for one would be refused again.
        """
        now, rate = self._clock(), self.throughput.rate
        if rate is None:
            return UNKNOWN_RETRY_S * (1 + SPREAD * self._chance())
        turn = max(now + lacks, self._promised)
        self._promised = min(turn + (work or self._mean) / rate, now + MOST_RETRY_S)
        return min(turn - now, MOST_RETRY_S) * (1 + SPREAD * self._chance())


class TokenEstimate:
    """Tokens of texts by their characters, corrected by what the encoder counts."""

    def __init__(self) -> None:
        self._characters, self._tokens = FIRST_CHARACTERS, FIRST_CHARACTERS * FIRST_RATIO
        self._limit = math.inf

    def of(self, texts: Sequence[Sized]) -> float:
        """Tokens of texts as the encoder will read them."""
        ratio, limit = self._tokens / self._characters, self._limit
        return sum(min(len(text) * ratio, limit) for text in texts)

    def learn(self, texts: Sequence[Sized], tokens: Sequence[int], limit: int) -> None:
        """Note how many tokens texts had, of which the encoder reads at most `limit` each."""
        self._limit = limit
        for text, count in zip(texts, tokens, strict=True):
            # One that was cut does not tell how many tokens its characters make.
            if count < limit:
                self._characters += len(text)
                self._tokens += count
        if self._characters > MOST_CHARACTERS:
            self._tokens *= MOST_CHARACTERS / self._characters
            self._characters = MOST_CHARACTERS
