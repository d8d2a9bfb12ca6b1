"""Indexes on the wire: aliases, versions and sizes."""

from __future__ import annotations

from embedder.index.sent import Sent
from serve.schemas.strict import Name, Strict


class Versions(Strict):
    """The versions that answered. Both change together, with the alias."""

    model_version: str
    index_version: str


class CollectionState(Strict):
    """The documents of one task."""

    documents: int
    uncompacted: int | None
    """Writes that are not compacted into the index yet; null where the key sees some documents only."""


class IndexState(Versions):
    """The version that an alias serves, and its sizes."""

    name: str
    """The alias."""
    version: str
    model: str
    dimension: int
    reranker: bool
    """A search may ask for it (`rerank_from`), and `/v1/rerank` is answered by it."""
    shards: int
    default: bool
    collections: dict[str, CollectionState]


class IndexList(Strict):
    """Answer of GET /v1/indexes."""

    data: list[IndexState]
    versions: list[str]
    """All there are; an alias can be pointed at each."""


class PointRequest(Sent):
    """Body of PUT /v1/indexes/{name}."""

    version: Name


class PointResponse(Versions):
    """The alias names this version from now on."""

    name: str
    version: str


class Removed(Strict):
    """An alias that is no more; its version stays."""

    name: str
