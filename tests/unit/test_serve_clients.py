"""Clients of others, unchanged: paths, fields, headers and forms of requests that they send, and what is answered."""

from __future__ import annotations

import gzip
import json
from copy import copy

import openai
import pytest
from fastapi.testclient import TestClient

from embedder.config.tasks import BUILTIN_TASKS
from embedder.index.sent import ANY
from serve.api import make_api
from serve.middleware.incoming import route_path
from serve.schemas.document_schemas import DeleteRequest, UpsertRequest
from serve.schemas.embedding_schemas import EmbeddingRequest, TeiRequest
from serve.schemas.index_schemas import PointRequest
from serve.schemas.rerank_schemas import RerankRequest, TeiRerankRequest
from serve.schemas.search_schemas import RetrieveRequest, SearchRequest
from tests.serving import MODEL, guarded_api, unit

READ, WRITE = {"Authorization": "Bearer reading-key-of-a-test"}, {"Authorization": "Bearer writing-key-of-a-test"}
KEYS = "read reading-key-of-a-test\nwrite writing-key-of-a-test\nadmin admin-key-of-the-test\n"
DOCUMENTS = "/v1/indexes/live/documents"
EMBEDDING = {"model": "live", "input": "a"}
WITH_JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    """The routes of a service with keys."""
    return guarded_api(tmp_path_factory.mktemp("clients"), MODEL, KEYS)


@pytest.fixture(scope="module")
def client(api):
    with TestClient(api, raise_server_exceptions=False, headers=READ, follow_redirects=False) as one:
        yield one


@pytest.fixture(scope="module")
def stranger(api):
    """A client without a key."""
    return TestClient(api, raise_server_exceptions=False, follow_redirects=False)


def write(client, *documents, status=200):
    """Write documents to the task `tool`."""
    answer = client.post(DOCUMENTS, json={"task": "tool", "documents": list(documents)}, headers=WRITE)
    assert answer.status_code == status, answer.text
    return answer.json()


def ids(client, query, mode="lexical", **fields):
    """Ids of the hits of one query in the task `tool`."""
    body = {"task": "tool", "query": query, "mode": mode, **fields}
    answer = client.post("/v1/search", json=body)
    assert answer.status_code == 200, answer.text
    return [hit["id"] for hit in answer.json()["results"][0]]


def of_dataset(name):
    return {"must": [{"key": "dataset", "match": {"value": name}}]}


# Nulls, and fields of other services' clients.

BODIES = {
    EmbeddingRequest: {"model": "live", "input": ["a"]},
    TeiRequest: {"inputs": "a"},
    RerankRequest: {"query": "q", "documents": ["a", "b"]},
    TeiRerankRequest: {"query": "q", "texts": ["a", "b"]},
    SearchRequest: {"query": "q", "task": "qa"},
    RetrieveRequest: {"query": "q"},
    UpsertRequest: {"task": "qa", "documents": [{"id": "a", "text": "b", "title": None, "metadata": None}]},
    DeleteRequest: {"task": "qa", "documents": [{"id": "a", "dataset": None}]},
    PointRequest: {"version": "v1"},
}
"""A least body of every request."""


@pytest.mark.parametrize("request_type", BODIES)
def test_request_takes_null_for_every_optional_field_as_not_said(request_type):
    least = BODIES[request_type]
    optional = [field.alias or name for name, field in request_type.model_fields.items() if not field.is_required()]
    nulls = dict.fromkeys([*optional, "of_another_service"])
    assert request_type.model_validate({**nulls, **least}) == request_type.model_validate(least)


@pytest.mark.parametrize("request_type", BODIES)
def test_request_passes_over_known_fields_of_others_and_tells_the_nearest_of_unknown_ones(request_type):
    least = BODIES[request_type]
    for name, taken in request_type.PASSED_OVER.items():
        value = {"any": "thing"} if taken is ANY else taken
        assert request_type.model_validate({**least, name: value}) == request_type.model_validate(least)
        if taken is not ANY:
            with pytest.raises(ValueError, match=f"(?s){name}.*only"):
                request_type.model_validate({**least, name: "another"})
    required = next(name for name, field in request_type.model_fields.items() if field.is_required())
    with pytest.raises(ValueError, match=f"(?s){required}x.*unknown field; did you mean {required}"):
        request_type.model_validate({**least, f"{required}x": 1})
    for name, meant in request_type.MEANT.items():
        with pytest.raises(ValueError, match=f"did you mean {meant}"):
            request_type.model_validate({**least, name: 1})


def test_embeddings_take_what_clients_add(client):
    """Cases 01-litellm-null-encoding-format and 16-unknown-field, and Voyage's names."""
    plain = client.post("/v1/embeddings", json=EMBEDDING).json()["data"]
    added = {"encoding_format": None, "dimensions": None, "user": "u", "metadata": {}, "normalize": True, "priority": 0}
    added |= {"truncate_prompt_tokens": -1, "add_special_tokens": True, "truncation": True, "output_dtype": "float"}
    for fields in [added, *({name: value} for name, value in added.items()), {"output_dimension": 384}]:
        answer = client.post("/v1/embeddings", json=EMBEDDING | fields)
        assert answer.status_code == 200 and answer.json()["data"] == plain, (fields, answer.text)
    for name, value in {"truncation": False, "output_dimension": 383, "output_dtype": "int8"}.items():
        refused = client.post("/v1/embeddings", json={"model": "live", "input": "word " * 500, name: value})
        assert refused.status_code == 400, (name, refused.text)
    twice = client.post("/v1/embeddings", json=EMBEDDING | {"truncate": True, "truncation": False})
    assert twice.status_code == 400 and "truncate" in twice.json()["error"]["message"]


def test_tei_routes_take_what_haystack_continue_and_hugging_face_send(client):
    """Case 07-tei-rerank."""
    given = client.post("/embed", json={"inputs": ["hello"], "truncate": True, "normalize": False})
    at_root = client.post("/", json={"inputs": ["hello"], "truncation_direction": "Right", "prompt_name": None})
    assert given.status_code == at_root.status_code == 200 and given.json() == at_root.json()
    assert abs((unit(given.json()) ** 2).sum() - 1) < 1e-5
    body = {"query": "sort a list", "texts": ["A cat sleeps.", "How to sort a list", ""], "raw_scores": False}
    ranked = client.post("/rerank", json={**body, "truncate": None, "truncation_direction": "Right"}).json()
    assert [one["index"] for one in ranked] == [1, 0, 2] and all(set(one) == {"index", "score"} for one in ranked)
    raw = client.post("/rerank", json={**body, "raw_scores": True, "return_text": True}).json()
    assert raw[0]["text"] == "How to sort a list"
    assert [(1 + one["score"]) / 2 for one in raw] == pytest.approx([one["score"] for one in ranked], abs=1e-6)
    refused = client.post("/rerank", json={"query": "q", "texts": []})
    assert refused.status_code == 422 and refused.json()["error"].startswith("texts")
    cohere = client.post("/rerank", json={"query": "q", "documents": ["a", "b"]}).json()
    assert len(cohere["results"]) == 2


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_rerank_leaves_documents_out_and_takes_what_clients_send(client, path):
    """Cases 08-rerank-document-null and 09-rerank-fields-of-clients."""
    least = {"model": "live", "query": "q", "documents": ["a", "b"]}
    added = [
        {},
        {"max_tokens_per_doc": 512},
        {"max_chunks_per_doc": 10},
        {"top_n": 3},
        {"top_n": 0},
        {"top_n": None},
        {"return_documents": None},
        {"documents": [{"text": "a", "title": "t", "year": 2020}, "b"]},
    ]
    for fields in added:
        answer = client.post(path, json={**least, **fields})
        assert answer.status_code == 200, (fields, answer.text)
        assert all(set(one) == {"index", "relevance_score"} for one in answer.json()["results"])
        assert len(answer.json()["results"]) == 2
    empty = client.post(path, json={**least, "documents": ["", "b"]}).json()["results"]
    assert empty[1] == {"index": 0, "relevance_score": 0}


def test_rerank_compares_the_fields_that_are_named_and_gives_documents_back_whole(client):
    documents = [{"text": "nothing", "title": "a cat"}, {"title": "sort a list", "tags": ["x"]}]
    body = {"query": "sort a list", "documents": documents, "rank_fields": ["title"], "return_documents": True}
    results = client.post("/v1/rerank", json=body).json()["results"]
    assert [one["document"] for one in results] == documents[::-1] and results[0]["relevance_score"] > 0.99
    for fields in ({"rank_fields": None}, {"rank_fields": ["tags"]}):
        refused = client.post("/v1/rerank", json={**body, **fields})
        assert refused.status_code == 400 and "documents." in refused.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank"])
@pytest.mark.parametrize("documents", ['["\\ud800"]', '[{"text": "\\ud800"}]', '[{"text": "a", "b": ["\\ud800"]}]'])
def test_rerank_refuses_what_is_no_unicode(client, path, documents):
    sent = f'{{"query": "q", "return_documents": true, "documents": {documents}}}'
    refused = client.post(path, content=sent, headers=WITH_JSON)
    assert refused.status_code in {400, 422}, refused.text
    assert client.post("/rerank", content='{"query": "q", "texts": ["\\ud800"]}', headers=WITH_JSON).status_code == 422


def test_rerank_answers_voyage_in_its_shape(client):
    body = {"query": "q", "documents": ["a", "b"], "model": "live", "top_k": 1, "truncation": True}
    answer = client.post("/v1/rerank", json={**body, "return_documents": True}).json()
    assert answer["object"] == "list" and len(answer["data"]) == 1
    best = answer["data"][0]
    assert best == {**answer["results"][0], "document": ["a", "b"][best["index"]]}
    assert client.post("/v1/rerank", json={**body, "top_k": None}).json()["data"][1]["index"] in {0, 1}
    long = {**body, "documents": ["word " * 500], "truncation": False}
    assert client.post("/v1/rerank", json=long).status_code == 400


# Paths and methods.


def test_every_path_of_a_client_leads_to_its_route_without_a_redirect(client):
    """Cases 04-trailing-slash and 27-without-v1."""
    paths = ["/v1/embeddings/", "/v1//embeddings", "//v1/embeddings//", "/embeddings", "/embeddings/"]
    paths += ["/openai/v1/embeddings", "/openai/deployments/live/embeddings?api-version=2024-10-21"]
    for path in paths:
        answer = client.post(f"http://testserver{path}", json=EMBEDDING)
        assert answer.status_code == 200, (path, answer.text)
    assert client.get("/models").json() == client.get("/v1/models/").json()


def test_openai_and_azure_clients_work_with_any_base_url(client, stranger):
    wanted = client.post("/v1/embeddings", json=EMBEDDING).json()["data"][0]["embedding"]
    common = {"api_key": "reading-key-of-a-test", "http_client": stranger, "max_retries": 0}
    for base in ("/v1", "/v1/", "/v1//", ""):
        plain = openai.OpenAI(base_url=f"http://testserver{base}", **common)
        assert plain.embeddings.create(model="live", input="a", user="u").data[0].embedding == pytest.approx(wanted)
    azure = openai.AzureOpenAI(azure_endpoint="http://testserver", api_version="2024-10-21", **common)
    assert azure.embeddings.create(model="live", input="a").data[0].embedding == pytest.approx(wanted)


def test_key_of_azures_header_is_taken(stranger):
    """Case 27-without-v1, its second half."""
    answer = stranger.post(
        "/openai/deployments/live/embeddings", json=EMBEDDING, headers={"api-key": "reading-key-of-a-test"}
    )
    assert answer.status_code == 200
    both = {"api-key": "reading-key-of-a-test", "Authorization": "Bearer wrong"}
    assert stranger.post("/v1/embeddings", json=EMBEDDING, headers=both).status_code == 401


@pytest.mark.parametrize("key", ["reading-key-of-a-test", "writing-key-of-a-test", "admin-key-of-the-test"])
def test_path_that_is_none_is_404_and_a_wrong_method_405_for_every_key(client, key):
    asked = [("POST", "/nowhere"), ("PUT", "/v1/nowhere"), ("DELETE", "/health/x"), ("GET", "/redoc")]
    wrong = [("PUT", "/v1/embeddings"), ("DELETE", "/v1/models"), ("PATCH", "/health"), ("GET", "/v1/search")]
    headers = {"Authorization": f"Bearer {key}"}
    assert {client.request(*one, headers=headers).status_code for one in asked} == {404}
    assert {client.request(*one, headers=headers).status_code for one in wrong} == {405}
    assert client.get("/v1/search", headers=headers).headers["allow"] == "POST"


def test_path_that_is_none_asks_for_a_key(stranger):
    assert stranger.post("/nowhere").status_code == 401 and stranger.put("/v1/embeddings").status_code == 401


@pytest.mark.parametrize(
    ("path", "prefix", "route"),
    [
        ("/emb/v1/embeddings", "/emb", "/v1/embeddings"),
        ("/emb/v1/embeddings/", "/emb/", "/v1/embeddings"),
        ("/emb", "/emb", "/"),
        ("/embed", "/emb", "/embed"),
        ("/v1/models", "/emb", "/v1/models"),
        ("/emb/emb", "/emb", "/emb"),
        ("/", "", "/"),
        ("", "", "/"),
        ("/a/../embeddings", "", "/a/../embeddings"),
    ],
)
def test_route_path_is_without_prefix_and_empty_parts(path, prefix, route):
    assert route_path({"method": "GET", "path": path, "root_path": prefix}) == route


def test_service_below_a_prefix_asks_for_the_same_roles(api):
    """Case 05-route-prefix: Ray gives the prefix in `root_path` and leaves it in the path, as a server does."""
    with TestClient(api, root_path="/emb", headers=READ, follow_redirects=False) as below:
        assert below.post("/emb/v1/embeddings", json=EMBEDDING).status_code == 200
        gone = {"task": "tool", "documents": [{"id": "none"}]}
        assert below.post(f"/emb{DOCUMENTS}/delete", json=gone).status_code == 403
        assert below.post(f"/emb{DOCUMENTS}/delete", json=gone, headers=WRITE).status_code == 200
        shape = below.post("/emb/embed", json={"inputs": ""})
        assert shape.status_code == 422 and "error_type" in shape.json()
        assert below.get("/emb/openapi.json").json()["servers"] == [{"url": "/emb"}]
        below.headers.pop("Authorization")
        assert [below.get(f"/emb/{name}").status_code for name in ("health", "", "v1/models")] == [200, 200, 401]
        page = below.get("/emb")
        assert page.status_code == 307 and page.headers["location"] == "/emb/"
        assert 'href="/emb/static/page.css"' in below.get("/emb/docs").text


def test_head_is_answered_where_get_is_and_without_a_body(client, stranger):
    """Case 03-head-health."""
    for path in ("/live", "/health", "/ready", "/", "/docs", "/static/page.css"):
        answer = stranger.head(path)
        assert answer.status_code == 200 and answer.content == b"", path
        assert answer.headers["content-length"] == stranger.get(path).headers["content-length"]
    assert stranger.head("/v1/models").status_code == 401 and client.head("/v1/models").status_code == 200
    assert client.head("/v1/search").status_code == 405


# Browsers.

PREFLIGHT = {
    "Origin": "http://app.example",
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
}


def test_preflight_is_answered_before_keys_and_answers_may_be_read(client, stranger):
    """Case 02-cors-preflight."""
    answer = stranger.options("/v1/embeddings", headers=PREFLIGHT)
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["access-control-allow-headers"] == "authorization,content-type"
    assert "access-control-allow-credentials" not in answer.headers
    for one, status in ((client, 200), (stranger, 401)):
        answer = one.post("/v1/embeddings", json=EMBEDDING, headers={"Origin": "http://app.example"})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, "*")


@pytest.mark.parametrize(
    ("origins", "allowed"), [(None, None), (["http://app.example"], "http://app.example"), (["http://b.example"], None)]
)
def test_pages_of_other_origins_are_kept_out_of_a_service_without_keys_unless_named(api, origins, allowed):
    service = copy(api.state.service)
    service.keys, service.settings = None, service.settings.model_copy(update={"cors_origins": origins})
    page = TestClient(make_api(service, lambda *_: None), base_url="http://127.0.0.1:8000")
    answer = page.options("/v1/embeddings", headers=PREFLIGHT)
    assert answer.headers.get("access-control-allow-origin") == allowed
    asked = page.post("/v1/embeddings", json=EMBEDDING, headers={"Origin": PREFLIGHT["Origin"]})
    assert asked.status_code == (200 if allowed else 403)


def test_docs_open_in_a_browser_without_a_key_and_without_a_network(stranger, client):
    """Case 18-docs-with-keys."""
    answer = stranger.get("/docs")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    assert "script" not in answer.text and "://" not in answer.text and "style=" not in answer.text
    described = client.get("/openapi.json").json()
    assert all(path.replace("&", "&amp;") in answer.text for path in described["paths"])
    assert "rank_fields" in answer.text and "SearchParameters" in answer.text
    assert stranger.get("/openapi.json").status_code == 401


# Bodies.


def test_body_that_says_to_be_no_json_is_refused_by_naming_its_type(client):
    """Case 28-curl-without-content-type; a page could send these types to a service without keys."""
    for kind in ("application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x"):
        answer = client.post("/v1/embeddings", content=json.dumps(EMBEDDING), headers={"Content-Type": kind})
        assert answer.status_code == 415 and "application/json" in answer.json()["error"]["message"]
    for kind in ("application/json; charset=utf-8", "application/vnd.api+json", "APPLICATION/JSON"):
        answer = client.post("/v1/embeddings", content=json.dumps(EMBEDDING), headers={"Content-Type": kind})
        assert answer.status_code == 200, answer.text
    assert client.post("/embed", content="{}", headers={"Content-Type": "text/plain"}).json()["error_type"]


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "gzip, identity"])
def test_compressed_body_is_refused_by_naming_its_coding(client, coding):
    """Case 15-gzip-body."""
    headers = {**WITH_JSON, "Content-Encoding": coding}
    answer = client.post("/v1/embeddings", content=gzip.compress(json.dumps(EMBEDDING).encode()), headers=headers)
    assert answer.status_code == 415 and coding.split(",")[0] in answer.json()["error"]["message"]
    plain = {**WITH_JSON, "Content-Encoding": "identity"}
    assert client.post("/v1/embeddings", content=json.dumps(EMBEDDING), headers=plain).status_code == 200


# Documents and filters.


def test_title_is_searched_and_embedded_as_in_the_index(client, api):
    """Case 25-title-is-searched."""
    document = {"id": "ti-1", "title": " Quokka ", "text": "A small animal of an island.", "dataset": "titled"}
    write(client, document)
    prompt = BUILTIN_TASKS["tool"].prompted("passage", "Quokka A small animal of an island.")
    assert api.state.service.backend.encoded[-1] == [str(prompt)]
    assert ids(client, "quokka", filter=of_dataset("titled")) == ["ti-1"]
    body = {"task": "tool", "query": "quokka", "filter": of_dataset("titled")}
    (hit,) = client.post("/v1/search", json=body).json()["results"][0]
    # What was written comes back, so that what is read can be written again.
    assert (hit["title"], hit["text"]) == (" Quokka ", "A small animal of an island.")
    prompt = client.post("/v1/retrieve/tool", json={"query": "quokka", "filter": of_dataset("titled")}).json()["prompt"]
    assert "Quokka A small animal" in prompt


def test_words_of_every_script_and_of_code_are_found(client):
    """Cases 11-lexical-cjk and 12-lexical-code-words."""
    write(
        client,
        {"id": "zh-1", "text": "我喜欢学习编程语言和数据库", "dataset": "words"},
        {"id": "ja-1", "text": "東京タワーは日本の観光名所です", "dataset": "words"},
        {"id": "cpp", "text": "C and R are languages; C++ too.", "dataset": "words"},
        {"id": "ident", "text": "call getUserName(join_all) now", "dataset": "words"},
    )
    wanted = {"编程": "zh-1", "数据库": "zh-1", "東京": "ja-1", "日本": "ja-1", "C++": "cpp", "R": "cpp"}
    wanted |= {"user name": "ident", "join": "ident"}
    assert {query: ids(client, query, filter=of_dataset("words"))[:1] for query in wanted} == {
        query: [name] for query, name in wanted.items()
    }


def test_whole_numbers_are_ids_and_large_ones_in_metadata_are_refused_by_name(client):
    """Case 23-int-ids-and-big-integers."""
    write(client, {"id": "ok", "text": "x", "dataset": "7"}, {"id": 5, "text": "x", "dataset": "7"})
    assert sorted(ids(client, "x", mode="dense", filter=of_dataset("7"))) == ["5", "ok"]
    gone = {"task": "tool", "documents": [{"id": 5, "dataset": "7"}, {"id": "ok", "dataset": "7"}]}
    assert client.post(f"{DOCUMENTS}/delete", json=gone, headers=WRITE).json()["deleted"] == 2
    refused = write(client, {"id": "big", "text": "x", "metadata": {"tweet": 1234567890123456789}}, status=400)
    assert "tweet" in refused["error"]["message"]
    for wrong in (True, 1.5, ["a"]):
        write(client, {"id": wrong, "text": "x"}, status=400)


def test_of_documents_of_one_name_in_a_batch_the_last_counts_and_is_counted_once(client, api):
    batch = [{"id": "twin", "text": f"text {i}", "dataset": d} for i, d in enumerate(["t", "t", "", "t"])]
    assert write(client, *batch, {"id": 9, "text": "a"}, {"id": "9", "text": "b"})["upserted"] == 3
    assert [text[-6:].strip() for text in api.state.service.backend.encoded[-1]] == ["text 3", "text 2", "val: b"]
    body = {"task": "tool", "query": "text", "filter": of_dataset("t")}
    assert [hit["text"] for hit in client.post("/v1/search", json=body).json()["results"][0]] == ["text 3"]
    gone = {"task": "tool", "documents": [{"id": "twin", "dataset": "t"}, {"id": "twin"}, {"id": "twin"}, {"id": 9}]}
    assert client.post(f"{DOCUMENTS}/delete", json=gone, headers=WRITE).json()["deleted"] == 3


def test_filter_takes_the_forms_of_qdrants_clients(client):
    condition = {"key": "subject", "match": {"value": "list"}, "range": None, "geo_radius": None, "is_empty": None}
    lone = {"must": condition, "should": None, "must_not": None, "min_should": None}
    listed = {"must": [{"key": "subject", "match": {"value": "list"}}]}
    found = ids(client, "x", mode="dense", filter=listed)
    assert len(found) == 4 and ids(client, "x", mode="dense", filter=lone) == found
    nested = {"should": {"must": listed["must"]}, "must_not": {"key": "number", "range": {"lt": 0, "gt": None}}}
    assert ids(client, "x", mode="dense", filter=nested) == found
    refused = client.post("/v1/search", json={"task": "tool", "query": "x", "filter": {"mustnot": []}})
    assert refused.status_code == 400 and "must_not" in refused.json()["error"]["message"]


@pytest.mark.parametrize("is_written", [False, True])
def test_filter_by_id_and_dataset_finds_documents_on_disk_and_written_ones(client, is_written):
    if is_written:
        write(client, {"id": 77, "text": "x", "dataset": "2020", "metadata": {"id": "other"}})
        for name in (77, "77", "other"):
            assert ids(client, "x", mode="dense", filter={"must": {"key": "id", "match": {"value": name}}}) == ["77"]
        assert ids(client, "x", mode="dense", filter={"must": {"key": "dataset", "match": {"any": [2020]}}}) == ["77"]
    kept = {"must": {"key": "id", "match": {"any": ["list-sorts", "dict-opens", "none"]}}}
    assert sorted(ids(client, "x", mode="dense", filter=kept)) == ["dict-opens", "list-sorts"]
    between = {"must": {"key": "id", "range": {"gte": "list", "lt": "list-d"}}}
    assert sorted(ids(client, "x", mode="dense", filter=between)) == ["list-closes", "list-copies"]
    others = {
        "must": [{"key": "subject", "match": {"value": "list"}}, {"key": "id", "match": {"except": ["list-sorts"]}}]
    }
    assert sorted(ids(client, "x", mode="dense", filter=others)) == ["list-closes", "list-copies", "list-opens"]


@pytest.mark.parametrize("key", ["id", "dataset"])
@pytest.mark.parametrize("condition", [{"match": {"value": True}}, {"match": {"any": [1.5]}}, {"range": {"gt": 5}}])
def test_filter_by_name_that_could_fit_nothing_is_refused(client, key, condition):
    body = {"task": "tool", "query": "x", "filter": {"must": {"key": key, **condition}}}
    refused = client.post("/v1/search", json=body)
    assert refused.status_code == 400 and f"{key} is a text" in refused.json()["error"]["message"]


def test_search_takes_nulls_in_its_parameters(client):
    parameters = {"nprobe": None, "ef_search": None, "k_factor": None, "exact": None}
    assert len(ids(client, "x", mode="dense", parameters=parameters, k=None)) == 10
