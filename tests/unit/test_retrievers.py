"""Retrievers of the frameworks, by the real packages, against a service behind a real HTTP server."""

from __future__ import annotations

import asyncio

import pytest
from pydantic import ValidationError

from serve.client import ServiceError
from serve.integrations.served_search import ServedSearch
from tests.cluster.conftest import free_port
from tests.serving import MODEL, guarded_api
from tests.web_server import answering

KEY = "reading-key-of-a-test"
QUERY = "Which function sorts a list?"
LISTS = {"must": [{"key": "subject", "match": {"any": ["list", "lock"]}}]}


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    api = guarded_api(tmp_path_factory.mktemp("retrievers"), MODEL, f"read {KEY}\n")
    with answering(api, free_port()) as served:
        yield served


@pytest.fixture
def search(url, monkeypatch):
    monkeypatch.setenv("LLM_EMBEDDER_KEY", KEY)
    return ServedSearch(url=url, task="qa", k=3, filter=LISTS)


@pytest.fixture
def refused(url):
    return ServedSearch(url=url, task="qa", api_key="a-wrong-key-of-a-test")


def expected(search):
    hits = search.hits(QUERY)
    assert hits[0].id == "list-sorts" and {hit.title for hit in hits} <= {"list", "lock"} and len(hits) == 3
    return [(hit.id, hit.text, pytest.approx(hit.score)) for hit in hits]


def test_search_hides_its_key_and_refuses_what_it_does_not_know(search, url):
    assert KEY not in repr(search) and KEY not in search.model_dump_json()
    assert search.api_key.get_secret_value() == KEY
    with pytest.raises(ValidationError, match="top_k"):
        ServedSearch(url=url, task="qa", top_k=3)


def test_langchain_retrieves_with_and_without_waiting(search, refused):
    pytest.importorskip("langchain_core", reason="llm-embedder[langchain] is not installed")
    from serve.integrations.langchain import LangChainRetriever

    retriever = LangChainRetriever(search=search)

    async def ask():
        # Twice, and in another loop than the call after it: no connection of one may be left to the other.
        return [await retriever.ainvoke(QUERY), (await retriever.abatch([QUERY]))[0]]

    for documents in [retriever.invoke(QUERY), *asyncio.run(ask()), *asyncio.run(ask())]:
        found = [(one.id, one.page_content, one.metadata["score"]) for one in documents]
        assert found == expected(search)
        assert documents[0].metadata["subject"] == "list" and documents[0].metadata["dataset"] == "docs"
    with pytest.raises(ServiceError, match="401"):
        LangChainRetriever(search=refused).invoke(QUERY)


def test_llama_index_retrieves_with_and_without_waiting(search, refused):
    pytest.importorskip("llama_index.core", reason="llm-embedder[llama-index] is not installed")
    from serve.integrations.llama_index import LlamaIndexRetriever

    retriever = LlamaIndexRetriever(search)
    for nodes in (retriever.retrieve(QUERY), asyncio.run(retriever.aretrieve(QUERY))):
        assert [(one.node.node_id, one.node.text, one.score) for one in nodes] == expected(search)
        assert nodes[0].metadata["title"] == "list" and nodes[0].metadata["number"] == 0
    with pytest.raises(ServiceError, match="401"):
        LlamaIndexRetriever(refused).retrieve(QUERY)


def test_haystack_retrieves_in_a_pipeline_that_is_written_down_without_the_key(search, monkeypatch):
    monkeypatch.setenv("HAYSTACK_TELEMETRY_ENABLED", "False")
    pytest.importorskip("haystack", reason="llm-embedder[haystack] is not installed")
    from haystack import Pipeline

    from serve.integrations.haystack import HaystackRetriever

    pipeline = Pipeline()
    pipeline.add_component("retriever", HaystackRetriever(search))
    written = pipeline.dumps()
    assert KEY not in written
    again = Pipeline.loads(written, allowed_modules=["serve.integrations.haystack"])
    given = {"retriever": {"query": QUERY}}
    for answer in (pipeline.run(given), again.run(given), asyncio.run(pipeline.run_async(given))):
        documents = answer["retriever"]["documents"]
        assert [(one.id, one.content, one.score) for one in documents] == expected(search)
        assert documents[0].meta["session"] == "s0"
    fewer = pipeline.run({"retriever": {"query": QUERY, "top_k": 1}})["retriever"]["documents"]
    assert [one.id for one in fewer] == ["list-sorts"]
