"""The settings of the service: the run file's `serve` section. Needs no torch, as all of the run file."""

from __future__ import annotations

from pydantic import Field, model_validator

from embedder.config.paths import AbsolutePath, Section


class ServeConfig(Section):
    """The online service: what it serves, its limits, its replicas."""

    bundle: AbsolutePath | None = None
    """A single bundle to deploy, which no alias can be moved from; null: the versions of this run's index that aliases
    name, `index.alias` before all."""
    max_versions: int = Field(default=3, ge=1)
    """Versions that aliases may name at a time; each takes memory in every replica."""
    api_keys_file: AbsolutePath | None = None
    """One key a line, with its role before it: `read KEY`, `write KEY`, `admin KEY`. Read again when it changes. Null:
    no key is asked for, which a service that listens beyond loopback refuses."""
    insecure: bool = False
    """Listen beyond loopback without keys, for a network that keeps strangers out by itself."""

    max_body_bytes: int = Field(default=8 * 2**20, ge=1024)
    """Larger request bodies are refused before they are parsed."""
    max_inputs: int = Field(default=2048, ge=1)
    """Texts or documents of one request."""
    max_queries: int = Field(default=64, ge=1)
    """Queries of one search."""
    max_characters: int = Field(default=65_536, ge=1)
    """Characters of one text."""
    max_request_tokens: int = Field(default=300_000, ge=1)
    """Tokens of all texts of a request together, as the model reads them."""
    max_results: int = Field(default=100, ge=1, le=1000)
    """Greatest k of a search."""
    timeout_s: float = Field(default=30.0, gt=0)
    """Deadline of one request, retries included."""
    retries: int = Field(default=3, ge=0, le=10)
    """How often a call whose replica died is made again, within the deadline."""

    batch_tokens: int = Field(default=2048, ge=64)
    """Tokens that the encoder takes together. A GPU wants 16,384 and more; a thread of a CPU computes 512 of them at a
    time, the shortest texts first."""
    max_queued_requests: int = Field(default=200, ge=1)
    """Requests waiting for a call to the encoder, in each ingress; further ones get status 429."""
    max_queued_texts: int = Field(default=4096, ge=1)
    """Texts of these requests together, so that a request of many costs what as many requests of one do."""
    replay_writes: bool = True
    """Whether what was written to a version is written to the next one too before an alias moves to it."""
    compact_after_rows: int = Field(default=1000, ge=1)
    """Writes to a collection after which its shard builds a new generation in the background."""

    min_replicas: int = Field(default=1, ge=1)
    """Of the encoder; shards have as many."""
    max_replicas: int = Field(default=4, ge=1)
    target_ongoing_requests: int = Field(default=2, ge=1)
    """Calls of an encoder, waiting or worked on, above which another one is started. An ingress has as many under way
    for each of `max_replicas`, and sends in one call what waits beyond that."""
    upscale_delay_s: float = Field(default=10.0, ge=0)
    """How long the load must stay high before replicas are added."""
    downscale_delay_s: float = Field(default=300.0, ge=0)
    """How long it must stay low before they are removed."""
    surge_percent: int = Field(default=100, ge=0, le=100)
    """New replicas that an update may start before it stops old ones; 0 leaves a gap where there is one replica."""
    max_ingress_replicas: int = Field(default=2, ge=1)
    cpus_per_replica: float = Field(default=1.0, gt=0)
    """Of the encoder, and its threads; shards and ingress ask for little."""
    gpus_per_replica: float = Field(default=0, ge=0)

    @model_validator(mode="after")
    def replicas_are_ordered(self) -> ServeConfig:
        """Refuse a least number of replicas above the greatest."""
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} exceeds max_replicas {self.max_replicas}")
        return self
