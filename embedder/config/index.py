"""Settings of the job `index`: how collections are built, and how they are searched by default."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from embedder.config.paths import ModelReference, Section


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


class BuildSettings(BaseModel):
    """How a collection is built; kept with it, so that compaction builds it the same way."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    factory: str = "auto"
    """FAISS factory string, or auto: by the number of vectors (`embedder.index.faiss_index`)."""
    lexical: bool = True
    """Whether it can be searched by words too."""
    search: SearchParameters = SearchParameters()
    """Defaults of its searches; null: by the kind of index."""


class IndexConfig(Section):
    """Corpus to a version of the index."""

    model: ModelReference | None = None
    """Encoder of the bundle; null: the trained one of this run."""
    factory: str = "auto"
    """FAISS factory string (the metric is the inner product of unit vectors), or auto: exact up to 50,000 passages of a
    task in a shard, then IVF with 4-bit product quantisation and exact refinement."""
    search: SearchParameters = SearchParameters()
    """Defaults of the searches; null: by the kind of index. A request may ask for others."""
    lexical: bool = True
    """Whether the index can be searched by words too, and by words and vectors together."""
    num_shards: int = Field(default=1, ge=1)
    """Every shard holds its slice of each task's passages, and is served by a deployment of its own."""
    alias: str = Field(default="live", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")
    """Name under which the version that the job builds is served from then on."""

    @property
    def build_settings(self) -> BuildSettings:
        """What a collection keeps of these."""
        return BuildSettings(factory=self.factory, lexical=self.lexical, search=self.search)
