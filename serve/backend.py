"""What the service needs of the encoder and the index, wherever they run."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from embedder.index.documents import Document, DocumentName
from embedder.index.living import LivingStats
from embedder.index.opened import Rankings
from embedder.index.search_options import SearchOptions
from embedder.index.writes import Change
from serve.schemas import DeploymentState

DEADLINE: ContextVar[float] = ContextVar("deadline")
"""Until when the request at hand must be answered, by `time.monotonic()`."""


@dataclass(frozen=True)
class Encoded:
    """The vectors (N, D) of the texts of one request, and how many tokens each has."""

    vector_ND: np.ndarray
    tokens: list[int]


class Backend(Protocol):
    """The encoder and the slices of the index, wherever they run; all calls may be repeated without harm."""

    num_slices: int

    @property
    def is_full(self) -> bool:
        """Whether a further request for vectors would be refused."""

    async def encode(self, version: str, texts: list[str], truncate: bool) -> Encoded:
        """The vectors of texts by the model of a version."""

    async def rank(
        self, part: int, version: str, task: str, options: SearchOptions, query_QD: np.ndarray | None, texts: list[str]
    ) -> Rankings:
        """What one slice adds to a search."""

    async def upsert(
        self, part: int, version: str, task: str, documents: list[Document], vector_PD: np.ndarray
    ) -> None:
        """Write documents of one slice."""

    async def delete(self, part: int, version: str, task: str, names: list[DocumentName]) -> int:
        """Remove documents of one slice."""

    async def writes(self, part: int, version: str, task: str) -> pa.Table:
        """All writes of one slice so far."""

    async def changes(self, part: int, version: str, task: str, names: list[DocumentName]) -> list[Change]:
        """Documents of one slice as their last writes left them."""

    async def pending_changes(self, part: int, version: str, task: str, changes: list[Change]) -> list[int]:
        """Which changes of another version `apply_changes` would make in one slice."""

    async def apply_changes(
        self, part: int, version: str, task: str, changes: list[Change], vector_CD: np.ndarray
    ) -> list[int]:
        """Make the changes of another version that are due in one slice; returns which."""

    async def stats(self, part: int, version: str) -> dict[str, list[LivingStats]]:
        """Sizes of the collections of one slice, by task."""

    async def prepare(self, version: str) -> None:
        """Have every replica load a version and try it."""

    async def deployments(self) -> list[DeploymentState]:
        """Which replicas there are."""
