"""What the service needs of the encoder and the index, wherever they run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from typing_extensions import TypeIs, TypeVarTuple, Unpack

from embedder.config.cutting import PromptedText
from embedder.index.opened import OpenIndex
from embedder.index.search_options import SearchOptions
from serve.http_errors import ApiError
from serve.schemas.state_schemas import DeploymentState

Ts = TypeVarTuple("Ts")
R = TypeVar("R")

CALL_FORMAT = 4
"""Number of what the calls from ingress to replicas carry and bring back: another one for other arguments or types."""

DEADLINE: ContextVar[float] = ContextVar("deadline")
"""Until when the request at hand must be answered, by `time.monotonic()`."""

OWNER: ContextVar[str] = ContextVar("owner", default="")
"""Who asks, by the name of the key or else by address: what waits is shared out among owners."""


def time_left(now: float | None = None) -> float:
    """Seconds until the request at hand must be answered; never 0, so that what is ready is still taken."""
    return max(0.001, DEADLINE.get() - (time.monotonic() if now is None else now))


def check_format(call_format: int) -> None:
    """Refuse a call that is meant for another version of this code: during an update both run.

    Raises:
        ApiError: which has the caller try another replica, and then the client.
    """
    if call_format != CALL_FORMAT:
        raise ApiError(503, "the service is being updated; try again")


QUICK_CALLS: tuple[Callable[..., Any], ...] = (
    OpenIndex.rank,
    OpenIndex.documents,
    OpenIndex.page,
    OpenIndex.count,
    OpenIndex.stats,
    OpenIndex.age_s,
)
"""Methods that take milliseconds: a call that hangs is made again."""
LONG_CALLS: tuple[Callable[..., Any], ...] = (
    OpenIndex.upsert,
    OpenIndex.delete,
    OpenIndex.change,
    OpenIndex.waiting,
    OpenIndex.put_vectors,
)
"""Methods whose work may be long: while a replica lives, its call is waited for."""
INDEX_CALLS = {method.__name__: method for method in (*QUICK_CALLS, *LONG_CALLS)}
"""All that a replica runs, by the name under which it travels."""


def may_take_long(method: Callable[..., Any], arguments: Sequence[Any]) -> bool:
    """Tell whether a call may take long although nothing hangs: made again it would hold up a second replica too."""
    return method in LONG_CALLS or any(isinstance(one, SearchOptions) and one.may_take_long for one in arguments)


@dataclass(frozen=True)
class Pair:
    """A query and a text that the reranker reads together."""

    query: PromptedText
    text: str

    def __len__(self) -> int:
        return len(self.query) + len(self.text)


Texts = list[PromptedText] | list[Pair]
"""What a request wants read: texts by the encoder, or pairs by the reranker."""


def are_pairs(texts: Texts) -> TypeIs[list[Pair]]:
    """Tell whether the reranker is to read them."""
    return bool(texts) and isinstance(texts[0], Pair)


@dataclass(frozen=True)
class Encoded:
    """The vectors (N, D) of the texts of one request, or the scores (N, 1) of its pairs, and the tokens of each."""

    vector_ND: np.ndarray
    tokens: list[int]
    limit: int = sys.maxsize
    """Tokens of a text or pair that the model reads at most."""


@dataclass(frozen=True)
class Piece:
    """Texts of one request that follow each other, on their way to an encoder: all of them, or a part."""

    texts: Texts
    first: int = 0
    """Position of the first one in the request."""
    seconds: float = float("inf")
    """Until nobody waits for them any more: clocks of two machines differ, so that no time of day travels."""
    is_small: bool = True
    """The request goes before large ones."""


class Backend(Protocol):
    """The encoder and the slices of the index, wherever they run; all calls may be repeated without harm."""

    @property
    def num_slices(self) -> int:
        """Slices of the index."""

    def refusal(self, num_bytes: int) -> ApiError | None:
        """Why a request for vectors whose body has so many bytes would be refused, before it is read."""

    async def encode(self, version: str, texts: Texts, truncate: bool) -> Encoded:
        """The vectors of texts by the encoder of a version, or the scores of pairs by its reranker."""

    async def call(
        self, part: int, version: str, method: Callable[[OpenIndex, Unpack[Ts]], R], *arguments: Unpack[Ts]
    ) -> R:
        """Call a method of INDEX_CALLS on the index of one slice; `version` is the key of one.

        It may be made again after the replica has died; `delete` and `change` then count what
        was left.
        """

    async def prepare(self, version: str) -> None:
        """Have every replica load a version, by its key, and try it."""

    async def deployments(self) -> list[DeploymentState]:
        """The replicas of every deployment, by state."""

    async def metrics(self) -> str:
        """The metrics of the service, as Prometheus reads them."""
