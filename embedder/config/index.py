"""How collections are built and searched: what a run file sets under `index`, and what one request may choose."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from embedder.index.filters import Filter

MAX_RESULTS = 1000
"""Greatest k of a search; a service sets its own, lower limit."""

Mode = Literal["dense", "lexical", "hybrid"]


class SearchParameters(BaseModel):
    """How thoroughly an approximate index is searched; null takes the collection's default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    nprobe: int | None = Field(default=None, ge=1, le=65_536)
    """IVF: cells that are looked into."""
    ef_search: int | None = Field(default=None, ge=1, le=65_536)
    """HNSW: length of the list of candidates."""
    k_factor: float | None = Field(default=None, ge=1, le=1000)
    """Refinement: candidates that are scored exactly, in multiples of k."""
    exact: bool = False
    """Look at every vector, whatever the index."""

    def over(self, defaults: SearchParameters) -> SearchParameters:
        """These parameters, with another's where these say nothing."""
        if self == UNSAID:
            return defaults
        given = {name: value for name, value in self.model_dump().items() if value is not None}
        return defaults.model_copy(update=given)


UNSAID = SearchParameters()


class SearchOptions(BaseModel):
    """What a search asks for besides the query."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    k: int = Field(default=10, ge=1, le=MAX_RESULTS)
    """Results a query; fewer only where fewer documents match."""
    mode: Mode = "dense"
    """By vectors, by words (BM25), or both fused by reciprocal rank."""
    filter: Filter | None = None
    parameters: SearchParameters = SearchParameters()


class BuildSettings(BaseModel):
    """How a collection is built; kept with it, so that folding builds it the same way."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    factory: str = "auto"
    """FAISS factory string, or auto: by the number of vectors (`embedder.index.faiss_index`)."""
    lexical: bool = True
    """Whether it can be searched by words too."""
    search: SearchParameters = SearchParameters()
    """Defaults of its searches; null: by the kind of index."""
