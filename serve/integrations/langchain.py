"""A retriever of LangChain: `pip install llm-embedder[langchain]`.

retriever = LangChainRetriever(search=ServedSearch(url="http://127.0.0.1:8000", task="qa"))
documents = retriever.invoke("how do I copy a dict?")
"""

from __future__ import annotations

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever

from serve.integrations.served_search import ServedSearch, described
from serve.schemas.search_schemas import SearchResult


class LangChainRetriever(BaseRetriever):
    """Documents of a running service; their metadata has `id`, `dataset`, `title` and `score` too."""

    search: ServedSearch

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        return [_document(hit) for hit in self.search.hits(query)]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun
    ) -> list[Document]:
        return [_document(hit) for hit in await self.search.ahits(query)]


def _document(hit: SearchResult) -> Document:
    return Document(id=hit.id, page_content=hit.text or "", metadata={**described(hit), "score": hit.score})
