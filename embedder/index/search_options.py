"""Options of one search: how many results, in which mode, with which filter."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SkipValidation

from embedder.config.index import SearchParameters
from embedder.index.filters import Filter
from embedder.index.results import EVERYTHING, Shown

MAX_RESULTS = 1000
"""Greatest k of a search; a service sets its own, lower limit."""


Mode = Literal["dense", "lexical", "hybrid"]


class SearchOptions(BaseModel):
    """A search's request besides its query."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    k: int = Field(default=10, ge=1, le=MAX_RESULTS)
    """Results a query; fewer only where fewer documents match."""
    mode: Mode = "dense"
    """By vectors, by words (BM25), or both fused by reciprocal rank."""
    # Not validated again: where the service adds a condition of its own, the whole may exceed what a client may send.
    filter: SkipValidation[Filter | None] = None
    parameters: SearchParameters = SearchParameters()
    shown: Shown = EVERYTHING
    seconds: float | None = None
    """After so many a search by words gives up, between two of its queries."""

    @property
    def may_take_long(self) -> bool:
        """Tell whether a request within the limits can take seconds; then it must not be made a second time."""
        return self.mode != "dense"
