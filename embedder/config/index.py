"""Settings of the job `index`, and of how collections are built and searched."""

from __future__ import annotations

from pydantic import Field

from embedder.config.language import WordsConfig
from embedder.config.paths import ModelReference, Section


class SearchParameters(Section):
    """How thoroughly an approximate index is searched."""

    nprobe: int | None = Field(default=None, ge=1, le=65_536)
    """IVF indexes: cells that are searched. null: the default of the collection, else 128."""
    ef_search: int | None = Field(default=None, ge=1, le=65_536)
    """HNSW indexes: length of the list of candidates. null: the default of the collection, else 128."""
    k_factor: float | None = Field(default=None, ge=1, le=1000)
    """Indexes with refinement: candidates that are scored exactly, in multiples of k. null: the default of the
    collection, else 20."""
    exact: bool = False
    """Compare the query with every vector, whatever the index."""

    def over(self, defaults: SearchParameters) -> SearchParameters:
        """These parameters, with `defaults` where they are null."""
        if self == UNSAID:
            return defaults
        given = {name: value for name, value in self.model_dump().items() if value is not None}
        return defaults.model_copy(update=given)


UNSAID = SearchParameters()


class BuildSettings(Section):
    """How a collection is built; kept with it, so that compaction builds it the same way."""

    factory: str = "auto"
    """FAISS factory string, or auto: by the number of vectors (`embedder.index.faiss_index`)."""
    lexical: bool = True
    """The collection can be searched by words too."""
    words: WordsConfig = WordsConfig()
    """How its queries fall into words."""
    search: SearchParameters = SearchParameters()
    """Defaults of its searches."""


class IndexConfig(Section):
    """How the corpus becomes a version of the index."""

    model: ModelReference | None = None
    """Encoder of the index and of its queries, as `encoder.model`. null: the trained encoder of this run."""
    factory: str = "auto"
    """FAISS factory string; the metric is the inner product of unit vectors. `auto` is exact up to 50,000 passages of a
    task in a shard, then IVF with 4-bit product quantisation and exact refinement."""
    search: SearchParameters = SearchParameters()
    """Defaults of the searches. A request may ask for others."""
    lexical: bool = True
    """Build a lexical index (BM25) too, for searches by words, and by words and vectors together."""
    num_shards: int = Field(default=1, ge=1)
    """Shards of the index. Each holds a slice of every task's passages and is served by a deployment of its own; more
    shards divide memory and time."""
    gpus_per_shard: float = Field(default=0, ge=0)
    """GPUs of each task that builds a shard: the cells of a large one are trained there, which needs faiss-gpu. 0: the
    CPU."""
    alias: str = Field(default="live", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")
    """Alias that names the version from now on: requests that name no index are answered by the alias of the run
    file."""
