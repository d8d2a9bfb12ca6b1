"""One kind of search of a running service, as the retrievers of frameworks ask it.

search = ServedSearch(url="http://127.0.0.1:8000", task="qa", k=5, filter={"must": [...]})
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr

from embedder.cli.question import KEY
from embedder.index.filters import Filter
from embedder.index.search_options import Mode
from serve.client import Client
from serve.schemas.search_schemas import SearchRequest, SearchResult


def _key_of_environment() -> SecretStr | None:
    key = os.environ.get(KEY)
    return SecretStr(key) if key else None


class ServedSearch(BaseModel):
    """Where the service answers, and all of a search but its query."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    url: str
    task: str
    """Whose documents are searched, with that task's instruction."""
    index: str | None = None
    """Alias; null: the one that is served by default."""
    k: int = Field(default=5, ge=1)
    mode: Mode = "dense"
    filter: Filter | None = None
    """Conditions on the metadata, in Qdrant's vocabulary."""
    api_key: SecretStr | None = Field(default_factory=_key_of_environment, exclude=True)
    """By default that of the environment variable LLM_EMBEDDER_KEY. It is never written down with the rest."""

    # Kept, because a client takes longer to make than a query to answer.
    _client: Client | None = PrivateAttr(default=None)

    def hits(self, query: str, k: int | None = None) -> list[SearchResult]:
        """The best documents, best first.

        Raises:
            ServiceError: the service refuses; errors of the network are httpx's own.
        """
        if self._client is None:
            self._client = Client(self.url, self._key)
        (hits,) = self._client.search(self._request(query, k)).results
        return hits

    async def ahits(self, query: str, k: int | None = None) -> list[SearchResult]:
        """The same without blocking the event loop."""
        # In a thread, because an asynchronous client belongs to one loop, and would have to be made for each call.
        return await asyncio.to_thread(self.hits, query, k)

    @property
    def _key(self) -> str | None:
        return None if self.api_key is None else self.api_key.get_secret_value()

    def _request(self, query: str, k: int | None) -> SearchRequest:
        return SearchRequest(
            query=query, task=self.task, index=self.index, k=k or self.k, mode=self.mode, filter=self.filter
        )


def described(hit: SearchResult) -> dict[str, Any]:
    """A hit's metadata with its name and title, which stand before fields of the same names."""
    return {**(hit.metadata or {}), "id": hit.id, "dataset": hit.dataset, "title": hit.title}
