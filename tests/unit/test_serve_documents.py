"""Documents read, listed, counted and changed over HTTP, and what a search may ask for besides k, in this process."""

from __future__ import annotations

import base64
import json
import zlib

import numpy as np
import pytest
from fastapi.testclient import TestClient

from embedder.data.metadata import metadata_json
from embedder.index.documents import Row
from embedder.index.filters import Filter
from embedder.index.metadata_change import MetadataChange
from serve.api import make_api
from serve.deployments.node_metrics import of_application
from serve.schemas.document_schemas import ChangeRequest, DeleteRequest, ListRequest
from serve.schemas.search_schemas import SearchRequest
from tests.serving import MODEL, documents, local_service, publish, run_config, unit

LIMITS = {"max_inputs": 20, "max_queries": 3, "max_results": 30, "max_changed": 25}
PATH = "/v1/indexes/live/documents"
LISTS = {"must": [{"key": "subject", "match": {"value": "list"}}]}
OF_BOOKS = {"key": "dataset", "match": {"value": "books"}}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    work = tmp_path_factory.mktemp("documents")
    publish(work, MODEL, "v1")
    return local_service(run_config(work, MODEL, **LIMITS))


@pytest.fixture(scope="module")
def client(service):
    with TestClient(make_api(service, lambda *_: None), raise_server_exceptions=False) as one:
        yield one


def post(client, path, status=200, **body):
    """The answer to a body, which must have that status."""
    response = client.post(path, json={"task": "qa", **body})
    assert response.status_code == status, response.text
    return response.json()


def searched(client, **body):
    """The hits of one query."""
    (hits,) = post(client, "/v1/search", **{"query": "Which function sorts a list?", **body})["results"]
    return hits


def listed(client, **body):
    """All documents, page by page."""
    found, cursor = [], None
    while True:
        page = post(client, f"{PATH}/list", **body, cursor=cursor)
        found, cursor = found + page["documents"], page["cursor"]
        if cursor is None:
            return found


def test_list_shows_every_document_once_whatever_the_page(client):
    names = sorted(row.id for row in documents())
    for limit in (1, 7, 20):
        assert [one["id"] for one in listed(client, limit=limit)] == names
    assert [one["id"] for one in listed(client, filter=LISTS, limit=3)] == [n for n in names if n.startswith("list-")]
    one = listed(client, filter={"must": [{"has_id": ["list-sorts"]}]}, with_vectors=True)[0]
    assert (one["text"], one["title"]) == ("This function sorts a list in Python.", "list")
    vectors = post(client, "/v1/embeddings", model="live", input=[one["text"]], input_type="document")["data"]
    assert len(one["vector"]) == len(vectors[0]["embedding"])
    plain = listed(client, limit=20, with_payload=False)[0]
    assert plain == {**dict.fromkeys(plain), "id": names[0], "dataset": "docs"}


def test_cursor_stays_where_it_is_while_documents_come_and_go(client):
    first = post(client, f"{PATH}/list", limit=5)
    last, early = first["documents"][-1]["id"], {"id": "aaa", "text": "early"}
    post(client, PATH, documents=[early, {"id": f"{last}x", "dataset": "docs", "text": "next"}])
    gone = {"id": last, "dataset": "docs"}
    (kept,) = post(client, f"{PATH}/get", documents=[gone])["documents"]
    post(client, f"{PATH}/delete", documents=[gone])
    second = post(client, f"{PATH}/list", limit=5, cursor=first["cursor"])["documents"]
    assert second[0]["id"] == f"{last}x" and not {"aaa", last} & {one["id"] for one in second}
    post(client, PATH, documents=[{name: kept[name] for name in ("id", "dataset", "text", "title", "metadata")}])
    names = [{"id": "aaa"}, {"id": f"{last}x", "dataset": "docs"}]
    assert post(client, f"{PATH}/delete", documents=names)["deleted"] == 2


def test_metadata_that_is_nested_is_removed_by_its_path():
    row = Row("a", "d", "text", None, metadata_json({"author": {"name": "Ada", "born": 1815}, "x": [{"y": 1, "z": 2}]}))
    changed = MetadataChange(remove=["author.name", "x.y", "nothing.here"]).applied(row)
    assert json.loads(changed.metadata) == {"author": {"born": 1815}, "x": [{"z": 2}]}


def with_sum(content: bytes) -> str:
    return base64.urlsafe_b64encode(zlib.crc32(content).to_bytes(4, "big") + content).decode()


ODD_CURSORS = [with_sum(content) for content in (b"x", b"1", b'["a"]', b"[" * 3000, b"null")]


@pytest.mark.parametrize("cursor", [*ODD_CURSORS, "x", "AAAA", "AAAAAAAA", "é", "W10=", "=" * 8])
def test_cursor_that_is_none_is_refused(client, cursor):
    assert post(client, f"{PATH}/list", 400, cursor=cursor)["error"]["param"] == "cursor"


def test_get_answers_in_the_order_asked_and_count_counts(client):
    names = [{"id": name, "dataset": "docs"} for name in ("queue-opens", "nobody", "dict-copies", "queue-opens")]
    found = post(client, f"{PATH}/get", documents=names)["documents"]
    assert [one["id"] for one in found] == ["queue-opens", "dict-copies"] and found[0]["vector"] is None
    assert post(client, f"{PATH}/count")["count"] == 40
    assert post(client, f"{PATH}/count", filter=LISTS)["count"] == 4
    absent = {"must": [{"is_empty": {"key": "subject"}}]}
    assert post(client, f"{PATH}/count", filter=absent)["count"] == 0


def test_metadata_changes_by_name_and_filter_without_the_encoder_and_is_searched_at_once(client, service):
    before = len(service.backend.encoded)
    changed = post(client, f"{PATH}/metadata", filter=LISTS, set={"state": "new"}, remove=["number"])
    names = [{"id": "dict-sorts", "dataset": "docs"}, {"id": "nobody"}]
    assert changed["changed"] == 4
    assert post(client, f"{PATH}/metadata", documents=names, set={"state": "new"})["changed"] == 1
    assert len(service.backend.encoded) == before
    new = {"must": [{"key": "state", "match": {"value": "new"}}]}
    hits = searched(client, filter=new)
    assert len(hits) == 5 and hits[0]["id"] == "list-sorts"
    assert post(client, f"{PATH}/count", filter={"must": [{"is_null": {"key": "number"}}]})["count"] == 4
    for row in documents():
        if row.id.startswith("list-") or row.id == "dict-sorts":
            own = [{"id": row.id, "dataset": "docs"}]
            assert post(client, f"{PATH}/metadata", documents=own, set=row.metadata, overwrite=True)["changed"] == 1
    assert post(client, f"{PATH}/count", filter=new)["count"] == 0


def test_deletion_by_filter_removes_what_fits_or_nothing_if_it_is_too_much(client):
    rows = [{"id": f"d{i}", "text": "x", "metadata": {"batch": i // 12}} for i in range(24)]
    for first in (0, 12):
        post(client, PATH, documents=rows[first : first + 12])
    refused = post(client, f"{PATH}/delete", 400, filter={})
    assert "64 documents fit; at most 25" in refused["error"]["message"]
    refused = post(client, f"{PATH}/metadata", 400, filter={}, set={"a": 1})
    assert "at most 25" in refused["error"]["message"] and post(client, f"{PATH}/count")["count"] == 64
    both = {"must_not": [{"is_empty": {"key": "batch"}}]}
    assert post(client, f"{PATH}/delete", filter={"must": [{"key": "batch", "match": {"value": 0}}]})["deleted"] == 12
    # More than one call to the shards is given at a time.
    for first in (0, 12):
        post(client, PATH, documents=rows[first : first + 12])
    assert post(client, f"{PATH}/delete", filter=both)["deleted"] == 24 and post(client, f"{PATH}/count")["count"] == 40


def test_vectors_are_written_asked_for_and_answered(client, service):
    hits = searched(client, with_vectors=True, k=2)
    vector = hits[0]["vector"]
    assert abs(np.linalg.norm(vector) - 1) < 1e-5
    before = len(service.backend.encoded)
    scaled = [1e30 * one for one in vector]
    again = searched(client, query=None, vector=scaled, k=2)
    assert again[0]["id"] == hits[0]["id"] and abs(again[0]["score"] - 1) < 1e-5
    many = post(client, "/v1/search", vector=[scaled, hits[1]["vector"]], k=1)["results"]
    assert [one[0]["id"] for one in many] == [hit["id"] for hit in hits]
    post(client, PATH, documents=[{"id": "given", "text": "unlike it", "vector": [3 * one for one in vector]}])
    assert len(service.backend.encoded) == before
    found = {hit["id"]: hit for hit in searched(client, query=None, vector=vector, k=2, with_vectors=True)}
    assert found.keys() == {hits[0]["id"], "given"}
    assert np.abs(unit(found["given"]["vector"]) - unit(vector)).max() < 1e-6
    mixed = [{"id": "given", "text": "x", "vector": vector}, {"id": "encoded", "text": "A zebra has stripes."}]
    post(client, PATH, documents=mixed)
    assert [text.rpartition(": ")[2] for text in service.backend.encoded[-1]] == ["A zebra has stripes."]
    assert searched(client, query="zebra stripes", k=1)[0]["id"] == "encoded"
    assert post(client, f"{PATH}/delete", documents=[{"id": "given"}, {"id": "encoded"}])["deleted"] == 2


def test_offset_and_score_threshold_cut_the_same_ranking(client):
    for mode in ("dense", "lexical", "hybrid"):
        whole = searched(client, k=10, mode=mode)
        assert searched(client, k=4, offset=3, mode=mode) == whole[3:7]
        least = whole[4]["score"]
        kept = searched(client, k=10, score_threshold=least, mode=mode)
        assert kept == [hit for hit in whole if hit["score"] >= least]
    assert searched(client, offset=20, k=10, filter=LISTS) == []


def test_groups_are_the_best_values_with_their_best_hits(client):
    whole = searched(client, k=30)
    for size in (1, 3):
        hits = searched(client, k=4, group_by="subject", group_size=size, with_payload=False)
        assert all(hit["text"] is hit["metadata"] is None for hit in hits)
        subjects = list(dict.fromkeys(hit["metadata"]["subject"] for hit in whole))[:4]
        assert list(dict.fromkeys(hit["group"] for hit in hits)) == subjects
        for subject in subjects:
            filter_ = {"must": [{"key": "subject", "match": {"value": subject}}]}
            best = [hit["id"] for hit in searched(client, k=size, filter=filter_)]
            assert [hit["id"] for hit in hits if hit["group"] == subject] == best
    assert {hit["group"] for hit in searched(client, k=5, group_by="dataset")} == {"docs"}
    assert searched(client, k=5, group_by="nothing") == []
    assert [hit["group"] for hit in searched(client, k=3, group_by="number", mode="lexical")] == [
        hit["metadata"]["number"] for hit in searched(client, k=3, mode="lexical")
    ]


def test_filters_and_groups_name_fields_within_objects_by_their_path(client):
    books = {
        "one": {"author": {"name": "Ada", "born": 1815}},
        "two": {"author": [{"name": "Grace", "born": 1906}, {"name": "Ada", "born": 1815}]},
        "none": {"author": {}},
    }
    rows = [
        {"id": name, "dataset": "books", "text": f"The book {name}.", "metadata": kept} for name, kept in books.items()
    ]
    post(client, PATH, documents=rows)

    def found(*conditions, key="must"):
        return [one["id"] for one in listed(client, filter={"must": [OF_BOOKS, {key: list(conditions)}]})]

    for name in ("author.name", "author[].name"):
        assert found({"key": name, "match": {"value": "Ada"}}) == ["one", "two"]
        assert found({"key": name, "match": {"value": "Grace"}}) == ["two"]
        assert found({"is_empty": {"key": name}}) == found({"is_null": {"key": "author"}}) == ["none"]
    # Met by two authors, of whom neither is both.
    both = [{"key": "author.name", "match": {"value": "Grace"}}, {"key": "author.born", "range": {"lt": 1900}}]
    assert found(*both) == ["two"]
    assert found({"key": "author.name", "match": {"value": "Grace"}}, key="must_not") == ["none", "one"]
    wanted = {"must": OF_BOOKS}
    hits = searched(client, k=3, group_by="author.name", group_size=2, filter=wanted)
    groups = {name: {hit["id"] for hit in hits if hit["group"] == name} for name in ("Ada", "Grace")}
    assert groups == {"Ada": {"one", "two"}, "Grace": {"two"}} and len(hits) == 3
    post(client, f"{PATH}/delete", filter=wanted)


def test_batch_answers_each_search_as_alone(client):
    searches = [
        {"query": "sorts a list", "task": "qa", "k": 2},
        {"query": "sorts a list", "task": "tool", "k": 1, "filter": LISTS, "mode": "hybrid"},
        {"query": "a queue", "task": "chat", "k": 3, "group_by": "session"},
    ]
    answers = client.post("/v1/search/batch", json={"searches": searches}).json()["answers"]
    alone = [client.post("/v1/search", json=one).json() for one in searches]
    assert [one["results"] for one in answers] == [one["results"] for one in alone]


@pytest.mark.parametrize(
    ("searches", "message"),
    [
        ([{"query": ["a", "b"]}, {"query": ["a", "b"]}], "query: 4 queries; at most 3"),
        ([{"query": "a"}, {"query": "b", "task": "nothing"}], "searches.1: task 'nothing'"),
        ([{"query": "a"}, {"query": "b", "k": 31}], "searches.1: k 31: at most 30"),
        ([{"query": "a", "filter": {"should": [LISTS] * 100}}] * 3, "600 clauses together; at most 256"),
        ([{"query": "a", "limit": 3}], "searches.0.limit: unknown field; did you mean k?"),
    ],
)
def test_batch_is_bounded_as_one_search_is(client, searches, message):
    answer = client.post("/v1/search/batch", json={"searches": [{"task": "qa", **one} for one in searches]})
    assert answer.status_code == 400 and message in answer.json()["error"]["message"], answer.text


@pytest.mark.parametrize(
    "request_",
    [
        SearchRequest(query="x", task="qa"),
        SearchRequest(vector=[1.0], task="qa", group_by="subject"),
        ListRequest(task="qa"),
        ChangeRequest(task="qa", filter=Filter(), overwrite=True),
        DeleteRequest(task="qa", filter=Filter.model_validate(LISTS)),
    ],
)
def test_request_that_our_client_sends_whole_is_the_same_when_it_is_read(request_):
    sent = request_.model_dump_json(by_alias=True, exclude_none=True)
    assert type(request_).model_validate_json(sent) == request_


WIDE = [1.0] * 384


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/v1/search", {}, "give exactly one of query, vector"),
        ("/v1/search", {"query": "x", "vector": WIDE}, "give exactly one of query, vector"),
        ("/v1/search", {"vector": [1.0, 2.0]}, "vector: a vector of width 2; this index has 384"),
        ("/v1/search", {"vector": [0.0] * 384}, "has no direction"),
        ("/v1/search", {"vector": [WIDE] * 4}, "vector: 4 queries; at most 3"),
        ("/v1/search", {"vector": WIDE, "mode": "hybrid"}, "needs the words of a query"),
        ("/v1/search", {"query": "x", "group_by": "f[0].g"}, "group_by: [0]: a list cannot be asked"),
        (
            PATH,
            {"documents": [{"id": "a", "text": "x", "metadata": {"a": {"b": [1, "c"]}}}]},
            "documents.0.metadata.a.b: a",
        ),
        ("/v1/search", {"query": "x", "group_size": 2}, "group_size is given without group_by"),
        ("/v1/search", {"query": "x", "group_by": "f", "offset": 1}, "offset and group_by"),
        ("/v1/search", {"query": ["x", "y"], "group_by": "f"}, "group_by takes one query"),
        ("/v1/search", {"query": "x", "group_by": "f", "group_size": 4}, "k 10 times group_size 4: at most 30"),
        ("/v1/search", {"query": "x", "offset": 21}, "offset 21 and k 10: at most 30 together"),
        ("/v1/search", {"query": "x", "with_vector": True}, "did you mean with_vectors?"),
        ("/v1/search", {"query": "x", "filter": {"must": [{"has_id": [1] * 1025}]}}, "at most 1024"),
        ("/v1/search", {"query": "x", "filter": {"must": [{"is_null": {}}]}}, "filter.must.0.is_null.key"),
        (PATH, {"documents": [{"id": "a", "text": "x", "vector": [1.0]}]}, "documents: a vector of width 1"),
        (PATH, {"documents": [{"id": "a", "text": "x", "embedding": WIDE}]}, "did you mean vector?"),
        (f"{PATH}/get", {"ids": ["a"]}, "did you mean documents?"),
        (f"{PATH}/get", {"documents": [{"id": str(i)} for i in range(21)]}, "documents: 21; at most 20"),
        (f"{PATH}/list", {"limit": 21}, "limit 21: at most 20"),
        (f"{PATH}/list", {"offset": 3}, "did you mean cursor?"),
        (f"{PATH}/count", {"task": "nothing"}, "task 'nothing'"),
        (f"{PATH}/delete", {}, "give exactly one of documents, filter"),
        (f"{PATH}/delete", {"documents": [{"id": "a"}], "filter": {}}, "give exactly one of documents, filter"),
        (f"{PATH}/metadata", {"filter": {}}, "give set, remove or overwrite"),
        (f"{PATH}/metadata", {"filter": {}, "set": {"a": 1}, "remove": ["a"]}, "'a' is set and removed"),
        (f"{PATH}/metadata", {"filter": {}, "remove": ["a"], "overwrite": True}, "leave remove out"),
        (f"{PATH}/metadata", {"filter": {}, "payload": {"a": 1}}, "did you mean set?"),
        (f"{PATH}/metadata", {"filter": {}, "set": {"dataset": "x"}}, "field of its own"),
    ],
)
def test_refusal_says_what_is_wrong_and_nothing_is_passed_over(client, path, body, message):
    answer = post(client, path, 400, **body)
    assert message in answer["error"]["message"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_vector_that_is_not_finite_is_refused(client, number):
    body = f'{{"task": "qa", "vector": [{number}{", 1.0" * 383}]}}'
    answer = client.post("/v1/search", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and "finite" in answer.json()["error"]["message"], answer.text


def test_service_that_only_reads_refuses_every_change_and_answers_the_rest(client, service, monkeypatch):
    monkeypatch.setattr(service, "settings", service.settings.model_copy(update={"read_only": True}))
    changes = [
        client.post(PATH, json={"task": "qa", "documents": [{"id": "a", "text": "b"}]}),
        client.post(f"{PATH}/delete", json={"task": "qa", "filter": {}}),
        client.post(f"{PATH}/metadata", json={"task": "qa", "filter": {}, "overwrite": True}),
        client.put("/v1/indexes/live", json={"version": "v1"}),
        client.delete("/v1/indexes/live"),
    ]
    assert [(one.status_code, one.json()["error"]["code"]) for one in changes] == [(403, "read_only")] * 5
    assert post(client, f"{PATH}/count")["count"] == 40 and searched(client)[0]["id"] == "list-sorts"
    assert client.post("/v1/nothing", json={}).status_code == 404


def test_metrics_are_answered_as_prometheus_reads_them(client):
    answer = client.get("/metrics")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain; version=0.0.4")


def test_metrics_of_several_nodes_are_one_text_without_those_of_other_applications():
    head = "# HELP ray_embedder_a Of a\n# TYPE ray_embedder_a counter\n"
    first = f'{head}ray_embedder_a{{application="one",n="1"}} 1.0\nray_embedder_a{{application="two"}} 2.0\n'
    second = f'# TYPE ray_other gauge\nray_other 1.0\n{head}ray_embedder_a{{application="one",n="2"}} 3.0\n'
    assert of_application([first, second], "one") == (
        f'{head}ray_embedder_a{{application="one",n="1"}} 1.0\nray_embedder_a{{application="one",n="2"}} 3.0\n'
    )


def test_names_as_long_as_they_may_be_can_be_listed_page_by_page(client):
    names = [f"{number}" + "\N{GRINNING FACE}" * 300 for number in range(3)]
    post(client, PATH, documents=[{"id": name, "text": "long", "dataset": "long-names"} for name in names])
    wanted = {"must": [{"key": "dataset", "match": {"value": "long-names"}}]}
    assert [one["id"] for one in listed(client, limit=1, filter=wanted)] == names
    post(client, f"{PATH}/delete", filter=wanted)


def test_groups_by_id_where_metadata_has_another_id(client):
    rows = [{"id": f"g{i}", "text": f"sorts a list {i}", "dataset": "g", "metadata": {"id": 1.5}} for i in range(40)]
    for i in range(0, 40, 20):
        post(client, PATH, documents=rows[i : i + 20])
    assert searched(client, k=2, group_by="id")
    post(client, f"{PATH}/delete", filter={"must": [{"key": "dataset", "match": {"value": "g"}}]}, status=400)


def test_field_that_is_read_twice_costs_once(client):
    documents = [{"text": "x" * 2000} for _ in range(3)]
    once = post(client, "/v1/rerank", model="live", query="x", documents=documents, rank_fields=["text"])
    often = post(client, "/v1/rerank", model="live", query="x", documents=documents, rank_fields=["text"] * 64)
    assert [one["relevance_score"] for one in once["results"]] == [one["relevance_score"] for one in often["results"]]


def test_unknown_field_of_any_length_and_not_a_number_are_refused_quickly(client):
    answer = client.post("/v1/search", content=json.dumps({"task": "qa", "query": "x", "y" * 500_000: 1}))
    assert answer.status_code in {400, 422} and len(answer.content) < 10_000
    content = '{"query": "x", "documents": [{"text": "y", "score": NaN}]}'
    assert "another value than" not in client.post("/v1/rerank", content=content).text


@pytest.mark.parametrize("name", ["query", "passage", "_query", "document"])
def test_prompt_without_a_task_is_refused(client, name):
    assert client.post("/embed", json={"inputs": "x", "prompt_name": name}).status_code in {400, 422}


def test_failure_that_nobody_expected_is_counted_as_one(service, monkeypatch):
    counted = []
    with TestClient(make_api(service, lambda *told: counted.append(told)), raise_server_exceptions=False) as one:

        async def fails(*_: object, **__: object) -> None:
            raise RuntimeError("of a kind that nobody knows")

        monkeypatch.setattr(service.backend, "encode", fails)
        assert one.post("/v1/embeddings", json={"model": "live", "input": "x"}).status_code == 500
    assert [status for _, status, _ in counted] == [500]
