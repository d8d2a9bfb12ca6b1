"""The reranker of an index in the service: scores and order as offline, limits, versions with and without one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from embedder.data.rows import titled
from embedder.index.bundle import verify
from embedder.index.catalog import Catalog
from embedder.index.opened import OpenIndex
from embedder.training.cross_encoder import CrossEncoder
from serve.api import make_api
from serve.client import Client
from serve.schemas.rerank_schemas import RerankRequest
from serve.schemas.search_schemas import SearchRequest
from tests.cluster.conftest import free_port
from tests.serving import local_service, publish, run_config, write_reranker
from tests.web_server import answering

QUERY = "Which function sorts a list?"
TEXTS = ["a cat sleeps", "", "sorts a list", "sorts a list of dicts " * 40]
LIMITS = {"max_pairs": 20, "max_request_characters": 10_000, "max_results": 30}
NO_RERANKER = "plain"
"""The alias of an index without one."""


@dataclass(frozen=True)
class Served:
    """A service over an index with a reranker and one without, and the same reranker offline."""

    client: TestClient
    url: str
    offline: CrossEncoder
    work: Path

    def post(self, path: str, status: int = 200, **body: object):
        """The answer to a body, which must have that status."""
        answer = self.client.post(path, json=body)
        assert answer.status_code == status, answer.text
        return answer.json()

    def hits(self, **body: object):
        """The hits of one search."""
        (hits,) = self.post("/v1/search", task="qa", **{"query": QUERY, **body})["results"]
        return hits


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, tiny_encoder_folder: Path):
    work = tmp_path_factory.mktemp("reranked")
    offline = write_reranker(tiny_encoder_folder, work / "trained")
    publish(work, tiny_encoder_folder, "v1", reranker=work / "trained")
    publish(work, tiny_encoder_folder, "v2", alias=NO_RERANKER, shards=1)
    api = make_api(local_service(run_config(work, tiny_encoder_folder, **LIMITS)), lambda *_: None)
    with answering(api, free_port()) as url, TestClient(api) as client:
        yield Served(client, url, offline, work)


def logistic(scores: list[float]) -> list[float]:
    return [float(1 / (1 + np.exp(-score))) for score in scores]


def test_rerank_gives_the_scores_of_the_reranker_and_an_empty_text_fits_nothing(served: Served):
    wanted = served.offline.score([(QUERY, text) for text in TEXTS])
    assert len(set(wanted)) == len(TEXTS)
    raw = served.post("/v1/rerank", query=QUERY, documents=TEXTS, raw_scores=True)
    given = {one["index"]: one["relevance_score"] for one in raw["results"]}
    assert [given[i] for i in (0, 2, 3)] == pytest.approx([wanted[i] for i in (0, 2, 3)], abs=1e-5)
    order = sorted((0, 2, 3), key=lambda i: -wanted[i])
    assert [one["index"] for one in raw["results"]] == [*order, 1]
    bounded = served.post("/v1/rerank", query=QUERY, documents=TEXTS)["results"]
    expected = [*logistic([wanted[i] for i in order]), 0.0]
    assert [one["relevance_score"] for one in bounded] == pytest.approx(expected, abs=1e-6)
    tei = served.post("/rerank", query=QUERY, texts=TEXTS)
    assert [one["index"] for one in tei] == [one["index"] for one in bounded]
    scores = [one["relevance_score"] for one in bounded]
    assert [one["score"] for one in tei] == pytest.approx(scores, abs=1e-6)
    rows = served.offline.tokenize([(QUERY, text) for text in TEXTS])
    assert raw["usage"]["total_tokens"] == sum(len(row) - 1 for row in rows)
    long = served.post("/v1/rerank", 400, query=QUERY, documents=TEXTS, truncation=False)
    assert long["error"]["message"].startswith("text 3: ")
    assert served.post("/v1/rerank", query=QUERY, documents=[""])["results"][0]["relevance_score"] == 0


def test_search_answers_the_best_hits_in_the_order_of_the_reranker(served: Served):
    found = served.hits(k=10)
    wanted = served.offline.score([(QUERY, titled(hit["title"], hit["text"])) for hit in found])
    order = sorted(range(10), key=lambda i: -wanted[i])
    assert order != list(range(10))
    best = served.hits(k=4, offset=1, rerank_from=10)
    assert [hit["id"] for hit in best] == [found[i]["id"] for i in order[1:5]]
    scores = logistic([wanted[i] for i in order])
    assert [hit["score"] for hit in best] == pytest.approx(scores[1:5], abs=1e-6)
    above = served.hits(k=10, rerank_from=10, score_threshold=(scores[2] + scores[3]) / 2)
    assert [hit["id"] for hit in above] == [found[i]["id"] for i in order[:3]]
    bare = served.hits(k=4, offset=1, rerank_from=10, with_payload=False)
    assert [hit["id"] for hit in bare] == [hit["id"] for hit in best] and {hit["text"] for hit in bare} == {None}


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_reranking_of_several_queries_is_that_of_each(served: Served, mode: str):
    queries = [QUERY, "opens a socket", "zzz"]
    body = {"task": "qa", "k": 2, "rerank_from": 5, "mode": mode}
    together = served.post("/v1/search", query=queries, **body)
    assert together["time_ms"]["rerank"] > 0 == served.post("/v1/search", query=QUERY, task="qa")["time_ms"]["rerank"]
    batch = served.post("/v1/search/batch", searches=[{"query": query, **body} for query in queries])["answers"]
    for i, query in enumerate(queries):
        (alone,) = served.post("/v1/search", query=query, **body)["results"]
        for other in (together["results"][i], batch[i]["results"][0]):
            assert [hit["id"] for hit in other] == [hit["id"] for hit in alone]
            assert [hit["score"] for hit in other] == pytest.approx([hit["score"] for hit in alone], abs=1e-5)


def test_prompt_holds_the_passages_that_the_reranker_found_best(served: Served):
    best = served.hits(k=2, rerank_from=10)
    answer = served.post("/v1/retrieve/qa", query=QUERY, k=2, rerank_from=10)
    assert [one["id"] for one in answer["passages"]] == [hit["id"] for hit in best]


def test_our_client_asks_for_the_reranker(served: Served):
    with Client(served.url) as client:
        found = client.search(SearchRequest(query=QUERY, task="qa", k=2, rerank_from=10)).results[0]
        assert [hit.id for hit in found] == [hit["id"] for hit in served.hits(k=2, rerank_from=10)]
        ranked = client.rerank(RerankRequest(query=QUERY, documents=TEXTS)).results
        assert ranked[-1].index == 1 and ranked[-1].relevance_score == 0
        assert {one.name: one.reranker for one in client.indexes().data} == {"live": True, NO_RERANKER: False}


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/v1/rerank", {"documents": ["x"] * 21}, "documents: 21 pairs for the reranker; at most 20"),
        ("/v1/rerank", {"documents": ["x" * 500] * 20}, "documents: 10560 characters for the reranker"),
        ("/v1/rerank", {"documents": TEXTS, "truncation": False}, "tokens; the model reads 64"),
        ("/v1/rerank", {"documents": ["x"], "task": "none"}, "task 'none'"),
        ("/v1/search", {"k": 1, "rerank_from": 21}, "rerank_from: 21 pairs for the reranker; at most 20"),
        ("/v1/search", {"query": [QUERY] * 3, "k": 1, "rerank_from": 7}, "rerank_from: 21 pairs"),
        ("/v1/search", {"k": 1, "rerank_from": 31}, "rerank_from: 31 pairs"),
        ("/v1/search", {"k": 5, "offset": 1, "rerank_from": 5}, "rerank_from 5 is less than offset 1 and k 5"),
        ("/v1/search", {"k": 1, "rerank_from": 0}, "rerank_from"),
        ("/v1/search", {"k": 1, "rerank_from": 5, "group_by": "subject"}, "rerank_from and group_by"),
        ("/v1/search", {"k": 1, "rerank_from": 5, "query": None, "vector": [1.0] * 32}, "rerank_from and vector"),
        ("/v1/search", {"k": 1, "rerank_from": 5, "index": NO_RERANKER}, "the index has no reranker"),
        ("/v1/search", {"k": 1, "rerank": 5}, "did you mean rerank_from"),
        ("/v1/retrieve/qa", {"k": 1, "rerank_from": 31}, "rerank_from 31: at most 30"),
    ],
)
def test_what_the_reranker_is_not_asked_is_refused_by_name(served: Served, path: str, body, said: str):
    task = {} if path.startswith("/v1/re") else {"task": "qa"}
    error = served.post(path, 400, **{"query": QUERY, **task, **body})["error"]
    assert said in error["message"]


def test_searches_of_a_batch_share_the_pairs_of_a_request(served: Served):
    one = {"query": QUERY, "task": "qa", "k": 1, "rerank_from": 7}
    refused = served.post("/v1/search/batch", 400, searches=[one] * 3)["error"]
    assert "21 pairs for the reranker; at most 20" in refused["message"]


def test_index_without_a_reranker_ranks_by_cosines(served: Served):
    served.client.put("/v1/indexes/live", json={"version": "v2"}).raise_for_status()
    try:
        raw = served.post("/v1/rerank", query=QUERY, documents=[QUERY, "a cat", ""], raw_scores=True)["results"]
        assert raw[0]["relevance_score"] == pytest.approx(1, abs=1e-5) and raw[-1]["relevance_score"] == -1
    finally:
        served.client.put("/v1/indexes/live", json={"version": "v1"}).raise_for_status()
    assert served.post("/v1/rerank", query=QUERY, documents=["", "x"])["results"][1]["relevance_score"] == 0


def test_snapshot_keeps_the_reranker_and_one_that_was_altered_is_not_served(served: Served):
    catalog = Catalog(served.work / "indexes")
    bundle = catalog.bundle("v1")
    OpenIndex.open(bundle, catalog.state("v1", "live")).snapshot(catalog, "v3")
    assert verify(catalog.bundle("v3")).has_reranker
    weights = catalog.bundle("v3") / "reranker" / "model.safetensors"
    # Another file, because a snapshot links those of the version.
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.unlink()
    weights.write_bytes(content)
    refused = served.client.put("/v1/indexes/live", json={"version": "v3"})
    assert refused.status_code == 503 and served.hits(k=1, rerank_from=5)
