"""A retriever of LlamaIndex: `pip install llm-embedder[llama-index]`.

retriever = LlamaIndexRetriever(ServedSearch(url="http://127.0.0.1:8000", task="qa"))
nodes = retriever.retrieve("how do I copy a dict?")
"""

from __future__ import annotations

from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from serve.integrations.served_search import ServedSearch, described
from serve.schemas.search_schemas import SearchResult


class LlamaIndexRetriever(BaseRetriever):
    """Nodes of a running service; their metadata has `id`, `dataset` and `title` too."""

    def __init__(self, search: ServedSearch) -> None:
        super().__init__()
        self._search = search

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [_node(hit) for hit in self._search.hits(query_bundle.query_str)]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [_node(hit) for hit in await self._search.ahits(query_bundle.query_str)]


def _node(hit: SearchResult) -> NodeWithScore:
    return NodeWithScore(node=TextNode(id_=hit.id, text=hit.text or "", metadata=described(hit)), score=hit.score)
