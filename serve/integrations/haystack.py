"""A retriever of Haystack: `pip install llm-embedder[haystack]`.

pipeline.add_component("retriever", HaystackRetriever(ServedSearch(url="http://127.0.0.1:8000", task="qa")))
documents = pipeline.run({"retriever": {"query": "how do I copy a dict?"}})["retriever"]["documents"]
"""

from __future__ import annotations

from typing import Any

from haystack import Document, component, default_to_dict

from serve.integrations.served_search import ServedSearch, described
from serve.schemas.search_schemas import SearchResult


@component
class HaystackRetriever:
    """Documents of a running service; their meta has `id`, `dataset` and `title` too."""

    def __init__(self, search: ServedSearch) -> None:
        self._search = search

    def to_dict(self) -> dict[str, Any]:
        """What a pipeline that is written down keeps, without the key."""
        kept: dict[str, Any] = default_to_dict(
            self, search=self._search.model_dump(mode="json", by_alias=True, exclude_none=True)
        )
        return kept

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> HaystackRetriever:
        """The component of a pipeline that was written down."""
        return cls(ServedSearch.model_validate(data["init_parameters"]["search"]))

    @component.output_types(documents=list[Document])
    def run(self, query: str, top_k: int | None = None) -> dict[str, list[Document]]:
        """The best documents, best first; `top_k` in place of the search's `k`."""
        return {"documents": [_document(hit) for hit in self._search.hits(query, top_k)]}

    @component.output_types(documents=list[Document])
    async def run_async(self, query: str, top_k: int | None = None) -> dict[str, list[Document]]:
        """The same without blocking."""
        return {"documents": [_document(hit) for hit in await self._search.ahits(query, top_k)]}


def _document(hit: SearchResult) -> Document:
    return Document(id=hit.id, content=hit.text or "", meta=described(hit), score=hit.score)
