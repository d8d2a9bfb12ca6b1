"""Settings of the service."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from embedder.config.paths import AbsolutePath, EncodingDtype, Section


class ServeConfig(Section):
    """What the service serves, its limits, its writes and its replicas."""

    bundle: AbsolutePath | None = None
    """Folder of a single bundle to deploy, from which no alias can be moved. null: the versions of this run's index
    that aliases name, `index.alias` first of all."""
    max_versions: int = Field(default=3, ge=1)
    """Versions that aliases may name at a time. Each takes memory in every replica."""
    api_keys_file: AbsolutePath | None = None
    """File with a key in each line: role, scope, hash (`python -m serve.new_key`). It is read again when it changes;
    while it cannot be read no key is valid. null: no key is asked for, which a service that listens beyond loopback
    refuses."""
    audit_file: AbsolutePath | None = None
    """File to which a JSON line is added for every write, every call of an admin and every refusal by role or scope.
    null: the lines are in the service's log alone."""
    cors_origins: list[str] | None = None
    """Origins, such as `https://app.example`, whose pages may ask the service from a browser; `*` stands for all. null:
    all where keys are asked for, because a page can do nothing without one, and none where they are not."""
    read_only: bool = False
    """Refuse to write and delete documents and to move aliases, for every key. What others write to the same folder is
    found, aliases that they move are followed, and nothing is compacted or encoded here."""
    insecure: bool = False
    """Listen beyond loopback without keys, in a network that keeps strangers out by itself."""
    host_names: list[str] = Field(default=[])
    """Names, beside `localhost` and loopback addresses, under which a service without keys answers, such as that of a
    front on the same machine. Others are refused, because a page of any site can let its own name point to loopback.
    With keys, or `insecure`, every name will do."""

    max_body_bytes: int = Field(default=8 * 2**20, ge=1024)
    """Bytes of a request body. Larger ones are refused before they are parsed."""
    max_body_values: int = Field(default=100_000, ge=1000)
    """Keys and values in the JSON of a body, counted before it is parsed: of many small ones a body of a few MiB would
    hold up the service for seconds."""
    max_inputs: int = Field(default=2048, ge=1)
    """Texts or documents of a request."""
    max_queries: int = Field(default=64, ge=1)
    """Queries of a search."""
    max_characters: int = Field(default=65_536, ge=1)
    """Characters of a text."""
    max_request_characters: int = Field(default=2 * 2**20, ge=1)
    """Characters of all texts of a request together, with their instructions. To make tokens of as many takes a CPU one
    to four seconds."""
    max_request_tokens: int = Field(default=300_000, ge=1)
    """Tokens of all texts of a request together, as the model reads them."""
    max_pairs: int = Field(default=512, ge=1)
    """Pairs of a query and a text that the reranker reads for one request, where the index has one: documents of a
    reranking, or `rerank_from` of a search for each query."""
    max_results: int = Field(default=100, ge=1, le=1000)
    """Greatest k of a search."""
    max_changed: int = Field(default=10_000, ge=1)
    """Documents that fit the filter of one call which deletes them or changes their metadata. Where more fit, none is
    touched."""
    max_answer_bytes: int = Field(default=16 * 2**20, ge=1024)
    """Bytes of the hits of a search: text, title, metadata and names. What exceeds it is refused before it is fetched,
    with `with_payload: false` as a way out."""
    timeout_s: float = Field(default=30.0, gt=0)
    """Seconds that a request may take, retries included."""
    retries: int = Field(default=3, ge=0, le=10)
    """How often a call is repeated whose replica died, within the time of the request. All calls may be repeated:
    vectors and searches change nothing, and writes have ids."""

    dtype: EncodingDtype | None = None
    """Number format of encoding, as `encoder.dtype`. null: that of the index's vectors. In another format each version
    is tried on 64 of its texts as it is loaded, and refused if the cosine of any to its vector is below 0.999."""
    batch_tokens: int = Field(default=2048, ge=64)
    """Tokens that an encoder takes together. A GPU wants 16,384 and more. A thread of a CPU computes 512 of them at a
    time, the shortest texts first, because what they become on the way must fit its cache."""
    max_queued_requests: int = Field(default=200, ge=1)
    """Requests that wait for a call to the encoder, in each lane of each ingress. Further ones get status 429, and
    before that those that the encoders cannot do within `timeout_s`."""
    max_queued_texts: int = Field(default=4096, ge=1)
    """Texts of these waiting requests together: a bound of memory."""
    compact_after_rows: int = Field(default=1000, ge=1)
    """Writes to a collection after which its shard builds a new generation of it in the background."""

    layout: Literal["auto", "together", "apart"] = "auto"
    """`together`: each replica answers HTTP, encodes and searches by itself. `apart`: the ingress, the encoder and each
    slice of the index are deployments of their own. `auto`: together on CPUs where all versions of model and index, in
    all replicas that fit on a node, take at most half of its memory. The start of the service says which and why."""
    min_replicas: int = Field(default=1, ge=1)
    """Least number of replicas: together of the service, apart of the encoder, of each slice, and, up to
    `max_ingress_replicas`, of the ingress."""
    max_replicas: int = Field(default=4, ge=1)
    """Greatest number of replicas: together of the service, apart of the encoder and of each slice."""
    target_ongoing_requests: int = Field(default=2, ge=1)
    """Apart: calls of an encoder replica, waiting or running, above which another one is started; an ingress has as
    many calls of small requests, and as many of large ones, under way for each of `max_replicas`. Together: eight times
    as many requests of a replica, above which another one is started."""
    upscale_delay_s: float = Field(default=10.0, ge=0)
    """Seconds for which the load must stay high before replicas are added."""
    downscale_delay_s: float = Field(default=300.0, ge=0)
    """Seconds for which the load must stay low before replicas are removed."""
    surge_percent: int = Field(default=100, ge=0, le=100)
    """New replicas that an update may start before it stops old ones, in percent. 0 leaves a gap where there is a
    single replica."""
    max_ingress_replicas: int = Field(default=2, ge=1)
    """Apart: greatest number of replicas of the ingress, which answers HTTP."""
    cpus_per_replica: float = Field(default=1.0, gt=0)
    """CPUs of a replica that encodes; slices and ingress ask for little. Apart they are its threads too. Together it
    computes as many batches at a time, two at least if the machine has two cores."""
    gpus_per_replica: float = Field(default=0, ge=0)
    """GPUs of an encoder replica. 0: the CPU."""

    def origins(self, *, has_keys: bool) -> list[str]:
        """Origins whose pages may ask the service."""
        if self.cors_origins is None:
            return ["*"] if has_keys else []
        return self.cors_origins

    @model_validator(mode="after")
    def replicas_are_ordered(self) -> ServeConfig:
        """Refuse a least number of replicas above the greatest."""
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} exceeds max_replicas {self.max_replicas}")
        return self
