"""Requests on their way from an ingress to the encoders: small ones several in a call, large ones in pieces.

Small requests (a query, a search) and large ones (texts for an index) stand in two lanes, each with calls of its own,
so that no query waits behind a thousand texts. In a lane those who ask take turns (`fair_queue`), so that no one's
requests wait for all of another's. A request is let in if its lane can do it by its deadline. Of one who asks the
oldest request is sent first and whole, so that of equal requests some end early and not all of them late. What waits
here and not in the replicas costs nothing to drop, and the calls tell the autoscaler how busy the encoders are. Needs
no Ray.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from embedder.config.serve import ServeConfig
from serve.backend import DEADLINE, OWNER, Encoded, Piece, Texts, are_pairs, time_left
from serve.deployments.admission import BEGIN_MARGIN, SMALL_TOKENS, SMALL_TOKENS_TOGETHER, Clock, Room, TokenEstimate
from serve.deployments.fair_queue import FairQueue, is_beyond_share, work_before
from serve.http_errors import ApiError, overloaded

Outcome = Encoded | ApiError
Send = Callable[[str, list[Piece], bool], Awaitable[list[Outcome]]]
"""Version, pieces, and whether to cut texts, to what became of each piece."""

LANES = 2
"""Small requests and large ones."""
MOST_PIECES = 64
"""Pieces that one call takes at most."""
LEFT_OVER = 1e-6
"""Tokens below which an owner has none."""
SMALL_BYTES = 8 * SMALL_TOKENS
"""Of the body of a small request at most, before it is read."""
CALL_CHARACTERS = 8
"""Of a call, for each token of the encoder's batch: about two batches."""


@dataclass(frozen=True)
class Limits:
    """How much one ingress has under way and lets wait."""

    calls: int
    """Of each lane."""
    requests: int
    """That wait, in each lane."""
    texts: int
    """That wait, in each lane; a request is let in while fewer do, however many it has."""
    request_tokens: int
    timeout_s: float
    characters: int
    """Of a call."""

    @classmethod
    def of(cls, settings: ServeConfig, calls: int, characters: int) -> Limits:
        """Those of the settings, with calls of a lane and characters of a call as the encoders take them."""
        return cls(
            calls=calls,
            requests=settings.max_queued_requests,
            texts=settings.max_queued_texts,
            request_tokens=settings.max_request_tokens,
            timeout_s=settings.timeout_s,
            characters=characters,
        )


@dataclass(eq=False)
class _Request:
    version: str
    texts: Texts
    truncate: bool
    deadline: float
    is_small: bool
    work: float
    """Estimated tokens of all texts."""
    done: asyncio.Future[Encoded]
    owner: str = ""
    num_sent: int = 0
    answers: dict[int, Encoded] = field(default_factory=dict)
    """Of the pieces, by the position of their first text."""

    def cut(self, characters: int, *, at_least: int) -> Piece:
        """The next texts that fit, or so many of them although they do not."""
        first = self.num_sent
        while self.num_sent < len(self.texts):
            size = len(self.texts[self.num_sent])
            if self.num_sent - first >= at_least and size > characters:
                break
            characters -= size
            self.num_sent += 1
        return Piece(self.texts[first : self.num_sent], first)

    def add(self, piece: Piece, outcome: Outcome | BaseException, most_tokens: int) -> None:
        """Note what became of a piece; the last one, or a failure, settles the request if anybody still waits."""
        if self.done.done():
            return
        if isinstance(outcome, BaseException):
            self.done.set_exception(outcome)
            return
        self.answers[piece.first] = outcome
        parts = [self.answers[first] for first in sorted(self.answers)]
        tokens = [count for part in parts for count in part.tokens]
        if len(parts) > 1 and sum(tokens) > most_tokens:
            refusal = f"more than {most_tokens} tokens in one request; at most {most_tokens}"
            self.done.set_exception(ApiError(400, refusal, param="input"))
        elif sum(len(part.vector_ND) for part in parts) == len(self.texts):
            vector_ND = parts[0].vector_ND if len(parts) == 1 else np.concatenate([part.vector_ND for part in parts])
            self.done.set_result(Encoded(vector_ND, tokens, outcome.limit))


class _Lane:
    """The requests of one kind."""

    def __init__(self, limits: Limits, clock: Clock) -> None:
        self._limits = limits
        self.room = Room(clock)
        self.waiting: FairQueue[_Request] = FairQueue()
        self.num_texts = 0
        """Of those that wait."""
        self.owned: dict[str, float] = {}
        """Work of each owner that was let in and is not done."""
        self.calls: set[asyncio.Task[list[Outcome]]] = set()

    def refusal(self, work: float, seconds: float) -> ApiError | None:
        """Why so many more tokens of who asks cannot be let in, which must be done within some seconds."""
        owner = OWNER.get()
        # As if the others went on asking: else what is let in beside one who asks again and again comes too late.
        before = self._work_before(owner, self.owned.get(owner, 0.0), work, dict.fromkeys(self.owned, math.inf))
        lacks = self.room.lacks(work, seconds, before)
        if lacks or self._is_full(owner):
            return overloaded(self.room.come_back(lacks, work))
        return None

    def enter(self, request: _Request) -> None:
        def left(_: asyncio.Future[Encoded]) -> None:
            # However it ended. To 0, because it may stand among those that wait until its turn comes.
            self.finish(request, request.work)

        self.waiting.add(request.owner, request)
        self.num_texts += len(request.texts)
        self.room.enter(request.work)
        self.owned[request.owner] = self.owned.get(request.owner, 0.0) + request.work
        request.done.add_done_callback(left)

    def finish(self, request: _Request, work: float) -> None:
        """Count no more what is done of a request, or what nobody waits for."""
        request.work -= work
        self.room.leave(work)
        left = self.owned.pop(request.owner, 0.0) - work
        # By sums of floats a little may be left over; and owners must not pile up.
        if left > LEFT_OVER:
            self.owned[request.owner] = left

    def leave(self, owner: str) -> None:
        """The oldest request of an owner waits no more."""
        self.num_texts -= len(self.waiting.pop(owner).texts)

    def _is_full(self, owner: str) -> bool:
        """Whether as many wait as may; beyond that an owner may still have its share."""
        owners = len({owner, *self.waiting.owners})
        own = self.waiting.of(owner)
        return is_beyond_share(len(own), len(self.waiting), self._limits.requests, owners) or is_beyond_share(
            sum(len(request.texts) for request in own), self.num_texts, self._limits.texts, owners
        )

    @staticmethod
    def _work_before(owner: str, own: float, work: float, owned: Mapping[str, float]) -> float:
        return work_before(own, (other for one, other in owned.items() if one != owner), work)

    def take(self, characters: int) -> list[tuple[_Request, Piece]]:
        """The pieces of the next call: of those whose turn it is and that have one version, and that nobody left."""
        group: list[tuple[_Request, Piece]] = []
        while self.waiting and len(group) < MOST_PIECES:
            owner, request = self.waiting.first()
            if request.done.done():
                self.leave(owner)
                continue
            if group and (request.version, request.truncate) != (group[0][0].version, group[0][0].truncate):
                break
            # A text longer than a call goes alone; it would never fit otherwise.
            piece = request.cut(characters, at_least=0 if group else 1)
            if not piece.texts:
                break
            size = sum(map(len, piece.texts))
            characters -= size
            group.append((request, piece))
            self.waiting.charge(owner, size)
            if request.num_sent == len(request.texts):
                self.leave(owner)
        return group

    def shed(self, now: float) -> None:
        """Refuse those of which nothing was sent and which, as it turns out, cannot be done in time any more.

        The encoders may have become slower since they were let in: another ingress uses them too, or one has died.
        """
        owned = dict(self.owned)
        for owner in self.waiting.owners:
            line = self.waiting.of(owner)
            waiting = [request for request in line if not request.done.done()]
            # Not below nothing, because sums of floats err a little.
            before = max(0.0, owned.get(owner, 0.0) - sum(request.work for request in line))
            for request in waiting:
                work = self._work_before(owner, before, request.work, owned)
                is_late = self.room.lacks(request.work, request.deadline - now, work, BEGIN_MARGIN) > 0
                if is_late and not request.num_sent:
                    lacks = self.room.lacks(request.work, self._limits.timeout_s, work)
                    request.done.set_exception(overloaded(self.room.come_back(lacks, request.work)))
                    # At once: that it has left is noted later, and others need not wait for it any more.
                    owned[owner] = owned.get(owner, 0.0) - request.work
                else:
                    before += request.work


class Coalescer:
    """The requests of one ingress."""

    def __init__(self, send: Send, limits: Limits, clock: Clock = time.monotonic) -> None:
        """`clock` is that of the deadlines."""
        self._send, self._limits, self._clock = send, limits, clock
        # The encoder and the reranker read at most so many tokens, each its own number.
        self._of_texts, self._of_pairs = TokenEstimate(), TokenEstimate()
        self._small, self._large = _Lane(limits, clock), _Lane(limits, clock)

    def refusal(self, num_bytes: int) -> ApiError | None:
        """Why a request whose body has so many bytes would be refused, before it is read."""
        # Its tokens are not known yet: refused here is only what would be refused with a single one.
        lane = self._small if num_bytes <= SMALL_BYTES else self._large
        return lane.refusal(0.0, self._limits.timeout_s)

    def _estimate(self, texts: Texts) -> TokenEstimate:
        return self._of_pairs if are_pairs(texts) else self._of_texts

    async def encode(self, version: str, texts: Texts, truncate: bool) -> Encoded:
        """The vectors of one request's texts, or the scores of its pairs.

        Raises:
            ApiError: it cannot be done in time, or what the encoder says of it.
            TimeoutError: its deadline has passed.
        """
        work = self._estimate(texts).of(texts)
        is_small = work <= (SMALL_TOKENS if len(texts) == 1 else SMALL_TOKENS_TOGETHER)
        lane = self._small if is_small else self._large
        left = time_left(self._clock())
        if refused := lane.refusal(work, left):
            raise refused
        done: asyncio.Future[Encoded] = asyncio.get_running_loop().create_future()
        lane.enter(_Request(version, texts, truncate, DEADLINE.get(), is_small, work, done, OWNER.get()))
        self._send_on(lane)
        try:
            return await asyncio.wait_for(done, left)
        except asyncio.TimeoutError as error:
            raise TimeoutError from error

    def _send_on(self, lane: _Lane) -> None:
        """Begin calls with what waits, as many as may be under way."""
        while len(lane.calls) < self._limits.calls and (group := lane.take(self._limits.characters)):
            call = asyncio.create_task(self._call(group))
            lane.calls.add(call)
            # By callbacks: whoever asked may be gone by then, and the next call must begin all the same.
            call.add_done_callback(partial(self._called, lane, group))
            for request, _ in group:
                request.done.add_done_callback(partial(_drop, call, group))

    def _called(self, lane: _Lane, group: list[tuple[_Request, Piece]], call: asyncio.Task[list[Outcome]]) -> None:
        """Tell everybody who waits what a call has brought, and begin the next one."""
        lane.calls.discard(call)
        done: float | None = None
        # Asked first, because `exception` of a cancelled task raises.
        if not call.cancelled():
            failure = call.exception()
            outcomes: Sequence[Outcome | BaseException] = call.result() if failure is None else [failure] * len(group)
            done = sum(self._note(lane, *sent, outcome) for sent, outcome in zip(group, outcomes, strict=True))
        self._send_on(lane)
        lane.room.throughput.done(done, more=bool(lane.waiting))
        lane.shed(self._clock())

    def _note(self, lane: _Lane, request: _Request, piece: Piece, outcome: Outcome | BaseException) -> float:
        """Note what became of a piece; returns the work that was done, in the unit in which it waited."""
        estimate = self._estimate(piece.texts)
        if isinstance(outcome, BaseException):
            # A text that is refused was work too: else a few bad requests would make the encoders look slow.
            is_answer = isinstance(outcome, ApiError) and outcome.status == 400
            work = estimate.of(piece.texts) if is_answer else 0.0
        else:
            # Before the estimate learns, so that it leaves as what it came in as.
            work = estimate.of(piece.texts)
            if not request.done.done():
                work = min(request.work, work)
                lane.finish(request, work)
            estimate.learn(piece.texts, outcome.tokens, outcome.limit)
        request.add(piece, outcome, self._limits.request_tokens)
        return work

    async def _call(self, group: list[tuple[_Request, Piece]]) -> list[Outcome]:
        # A task has a context of its own: this deadline is seen by this call alone. The latest counts, because each
        # request leaves by its own deadline in `encode`.
        DEADLINE.set(max(request.deadline for request, _ in group))
        now, first = self._clock(), group[0][0]
        pieces = [Piece(piece.texts, piece.first, request.deadline - now, request.is_small) for request, piece in group]
        return await self._send(first.version, pieces, first.truncate)


def _drop(call: asyncio.Task[list[Outcome]], group: list[tuple[_Request, Piece]], _: asyncio.Future[Encoded]) -> None:
    """Cancel a call that nobody waits for any more."""
    if all(request.done.done() for request, _ in group):
        call.cancel()
