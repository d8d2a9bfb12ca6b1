"""The routes over a small index with MiniLM, in this process: shapes, limits, errors, keys, and what is written."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from embedder.config.tasks import BUILTIN_TASKS
from embedder.data.rows import titled
from embedder.errors import BundleError
from embedder.hashing import file_sha256
from embedder.index.bundle import bundle_encoder, read_manifest
from embedder.index.catalog import Catalog
from embedder.index.filters import MAX_DEPTH
from embedder.index.listing import list_versions
from embedder.index.probe import PROBE, write_probe
from embedder.models.encoder import encode, encode_prompted, load_encoder
from serve.api import make_api
from serve.http_errors import overloaded
from serve.openapi import FILE, described
from serve.routes.embeddings import narrowed
from serve.schemas.embedding_schemas import EmbeddingResponse
from tests.serving import MODEL, TASKS, documents, local_service, publish, run_config, unit

ROOT = Path(__file__).parents[2]
LIMITS = {"max_characters": 1000, "max_body_bytes": 20_000, "max_inputs": 20, "max_queries": 3, "max_results": 30}
TEXTS = ["How do I join two lists?", "naïve café 漢字 🙂", "x " * 200, "a\x00b", " "]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A run with a version that is served and another one."""
    folder = tmp_path_factory.mktemp("served")
    publish(folder, MODEL, "v1")
    trained = folder / "trained"
    shutil.copytree(MODEL, trained)
    lineage = {"settings": {"train": {"matryoshka_dimensions": [96]}}}
    (trained / "lineage.json").write_text(json.dumps(lineage), encoding="utf-8")
    publish(folder, trained, "v2", alias=None, shards=3)
    return folder


@pytest.fixture(scope="module")
def service(work):
    return local_service(run_config(work, MODEL, **LIMITS, max_request_tokens=500))


@pytest.fixture(scope="module")
def client(service):
    with TestClient(make_api(service, lambda *_: None), raise_server_exceptions=False) as one:
        yield one


def post(client, path, status=200, **body):
    """The answer to a body, which must have that status."""
    response = client.post(path, json=body)
    assert response.status_code == status, response.text
    return response.json()


def test_openapi_description_that_is_committed_is_what_is_served(client):
    assert FILE.read_text(encoding="utf-8") == described(), "run `python -m serve.openapi`"
    assert client.get("/openapi.json").json() == json.loads(described())


@pytest.mark.parametrize(("input_type", "side"), [("query", "query"), ("document", "passage")])
@pytest.mark.parametrize("task", TASKS)
def test_embeddings_equal_offline_vectors(client, work, task, input_type, side):
    bundle = Catalog(work / "indexes").bundle("v1")
    encoder = load_encoder(bundle_encoder(bundle, read_manifest(bundle)), "cpu")
    answer = post(client, "/v1/embeddings", model="work", input=TEXTS, task=task, input_type=input_type)
    assert [entry["index"] for entry in answer["data"]] == list(range(len(TEXTS)))
    vectors = unit([entry["embedding"] for entry in answer["data"]])
    assert np.abs(vectors - encode(encoder, TEXTS, BUILTIN_TASKS[task], side)).max() < 1e-5


def test_embeddings_in_base64_are_bit_equal_to_float_and_tokens_are_counted(client):
    plain = post(client, "/v1/embeddings", model="work", input="hello world")
    packed = post(client, "/v1/embeddings", model="live", input=["hello world"], encoding_format="base64")
    sent = np.frombuffer(base64.b64decode(packed["data"][0]["embedding"]), "<f4")
    assert np.array_equal(sent, unit(plain["data"][0]["embedding"]))
    assert plain["usage"] == {"prompt_tokens": 4, "total_tokens": 4} and packed["model"] == "live"
    assert plain.keys() == {"object", "data", "model", "usage"}
    assert plain["data"][0].keys() == {"object", "index", "embedding"}
    # They are written without the model that describes them.
    assert EmbeddingResponse.model_validate(plain).model_dump() == plain
    assert EmbeddingResponse.model_validate(packed).model_dump() == packed


def test_answer_says_which_version_gave_it(client, work):
    manifest = read_manifest(Catalog(work / "indexes").bundle("v1"))
    stamp = (manifest.model_version, manifest.index_version)
    embedded = client.post("/v1/embeddings", json={"model": "work", "input": "x"})
    assert (embedded.headers["x-model-version"], embedded.headers["x-index-version"]) == stamp
    for path, body in [("/v1/search", {"query": "x", "task": "qa"}), ("/v1/retrieve/qa", {"query": "x"})]:
        answer = post(client, path, **body)
        assert (answer["model_version"], answer["index_version"]) == stamp


def test_status_tells_of_an_index_what_the_web_page_shows(client, work):
    shown = {one["name"]: one for one in client.get("/v1/indexes").json()["data"]}
    listed = {alias: one for one in list_versions(Catalog(work / "indexes")) for alias in one.aliases}
    assert shown.keys() == listed.keys()
    for alias, one in listed.items():
        counts = {task: size["documents"] for task, size in shown[alias]["collections"].items()}
        assert (one.version, one.shards, one.documents) == (shown[alias]["version"], shown[alias]["shards"], counts)
        assert one.model == shown[alias]["model_version"]


def test_models_are_listed_by_name_and_alias(client):
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["work", "live"]
    assert client.get("/v1/models/work").json()["object"] == "model"
    assert client.get("/v1/models/other").json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "input"),
        ({"input": ""}, 400, "input"),
        ({"input": []}, 400, "input"),
        ({"input": ["ok", ""]}, 400, "input"),
        ({"input": [1, 2, 3]}, 400, "input"),
        ({"input": [[1, 2], [3]]}, 400, "input"),
        ({"input": "\ud800"}, 400, "input"),
        ({"input": "x" * 1001}, 400, "input"),
        ({"input": ["x"] * 21}, 400, "input"),
        ({"input": ["word " * 60] * 15}, 400, "input"),
        ({"input": "word " * 100, "truncate": False}, 400, "input"),
        ({"input": "x", "task": "nope"}, 400, "task"),
        ({"input": "x", "input_type": "nope"}, 400, "input_type"),
        ({"input": "x", "dimensions": 7}, 400, "dimensions"),
        ({"input": "x", "encoding_format": "int8"}, 400, "encoding_format"),
        ({"input": "x", "unknown": 1}, 400, "unknown"),
        ({"input": "x", "unknown\ud800": 1}, 400, None),
        ({"input": "x", "model": "another"}, 404, "model"),
    ],
)
def test_embeddings_refusal_names_the_field_and_reaches_no_model(client, service, body, status, param):
    before = len(service.backend.encoded)
    sent = json.dumps({"model": "work", **body})
    answer = client.post("/v1/embeddings", content=sent, headers={"content-type": "application/json"})
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["param"] == param and error["message"]
    if "word " not in sent:
        assert len(service.backend.encoded) == before


@pytest.mark.parametrize("content", [b"", b"{{", b"[1]", b'{"input": NaN}', b"\x00\xff", b"[" * 9000 + b"]" * 9000])
def test_request_of_rubbish_is_refused_and_the_next_one_succeeds(client, content):
    assert client.post("/v1/embeddings", content=content).status_code == 400
    post(client, "/v1/embeddings", model="work", input="fine")


def test_body_over_the_limit_is_refused_even_if_it_does_not_say_its_length(client):
    assert client.post("/v1/embeddings", content=b"x" * 30_000).status_code == 413
    parts = (b"x" * 1000 for _ in range(30))
    answer = client.post("/v1/embeddings", content=parts, headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert client.post("/v1/search", content=b"x", headers={"content-length": "9" * 5000}).status_code == 413


def test_body_that_does_not_arrive_is_given_up_at_the_deadline(work):
    service = local_service(run_config(work, MODEL, timeout_s=0.3))
    api, sent = make_api(service, lambda *_: None), []
    parts = [{"type": "http.request", "body": b'{"model": "work", ', "more_body": True}]

    async def receive():
        return parts.pop() if parts else await asyncio.get_running_loop().create_future()

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/embeddings", "query_string": b"", "headers": []}
    asyncio.run(asyncio.wait_for(api(scope, receive, send), 60))
    assert sent[0]["status"] == 408 and b"did not arrive" in sent[1]["body"]


def test_guard_refuses_unread_what_needs_the_encoder_under_overload(service, client, monkeypatch):
    monkeypatch.setattr(service.backend, "refused", overloaded(2.3))
    for path in ("/v1/embeddings", "/embed", "/v1/rerank"):
        answer = client.post(path, content=b"no JSON")
        assert (answer.status_code, answer.headers["retry-after"], answer.headers["retry-after-ms"]) == (
            429,
            "3",
            "2300",
        )
    post(client, "/v1/search", query="list", task="qa", mode="lexical")
    assert client.get("/v1/models").status_code == 200


def test_tei_routes_answer_in_its_shape(client):
    (vector,) = post(client, "/embed", inputs="hello")
    assert np.array_equal(unit(vector), unit(post(client, "/embed", inputs=["hello"], truncate=True)[0]))
    named = post(client, "/embed", inputs=["hello"], prompt_name="qa_query", normalize=True)[0]
    other = post(client, "/v1/embeddings", model="work", input="hello", task="qa")["data"][0]["embedding"]
    assert named == other
    assert post(client, "/embed", 422, inputs="hello", prompt_name="qa")["error_type"] == "validation"
    assert post(client, "/embed", 422, inputs="hello " * 100, truncate=False)["error_type"] == "validation"
    info = client.get("/info").json()
    assert (info["max_client_batch_size"], info["max_input_length"], info["model_id"]) == (20, 64, "work")
    assert client.get("/ready").json() == client.get("/live").json() == {"status": "ok"}
    health = client.get("/health").json()
    assert health["status"] == "ok" and 0 <= health["behind_s"] < 10


def test_rerank_has_coheres_shape(client):
    texts = ["A cat sleeps.", "How to sort a list in Python", "Sorting lists"]
    answer = post(client, "/v1/rerank", model="work", query="sort a list", documents=texts)
    scores = [one["relevance_score"] for one in answer["results"]]
    assert sorted(one["index"] for one in answer["results"]) == [0, 1, 2] and answer["results"][-1]["index"] == 0
    assert scores == sorted(scores, reverse=True) and all(0 <= score <= 1 for score in scores)
    given = [{"text": text} for text in texts]
    best = post(client, "/v2/rerank", query="sort a list", documents=given, top_n=1, return_documents=True)
    assert best["results"] == [{**answer["results"][0], "document": {"text": texts[answer["results"][0]["index"]]}}]
    post(client, "/v1/rerank", 400, query="x", documents=[])
    post(client, "/v1/rerank", 404, query="x", documents=["x"], model="other")


def test_search_answers_one_and_many_in_every_mode(client):
    query = "Which function sorts a list?"
    one = post(client, "/v1/search", query=query, task="qa", k=3)
    many = post(client, "/v1/search", query=["something else", query], task="qa", k=3)
    assert one["results"][0][0]["id"] == "list-sorts" and one["results"][0] == many["results"][1]
    assert one["shards"] == {"total": 2, "successful": 2, "failed": 0}
    for mode in ("lexical", "hybrid"):
        assert post(client, "/v1/search", query=query, task="qa", k=3, mode=mode)["results"][0][0]["id"] == "list-sorts"
    bare = post(client, "/v1/search", query=query, task="qa", k=1, with_payload=False)["results"][0][0]
    assert bare["text"] is None and bare["id"] == "list-sorts"


def test_search_filter_leaves_exactly_what_fits(client):
    low = {
        "must": [{"key": "number", "range": {"lt": 5}}],
        "must_not": [{"key": "subject", "match": {"value": "dict"}}],
    }
    (hits,) = post(client, "/v1/search", query="x", task="qa", k=30, filter=low)["results"]
    assert {hit["id"] for hit in hits} == {row.id for row in documents()[:4]}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"task": "nope"}, "task"),
        ({"k": 31}, "k"),
        ({"query": ["x"] * 4}, "query"),
        ({"mode": "fuzzy"}, "mode"),
        ({"filter": {"must": [{"key": "a"}]}}, "filter"),
        ({"filter": {"must": [{"key": "a", "match": {"value": "\ud800"}}]}}, "filter"),
        ({"parameters": {"nprobe": 0}}, "parameters"),
        ({"index": "nope"}, "index"),
    ],
)
def test_search_refusal_names_the_field(client, body, param):
    sent = json.dumps({"query": "x", "task": "qa", **body})
    answer = client.post("/v1/search", content=sent, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (404 if param == "index" else 400, param)


def test_search_filter_that_is_too_deep_is_refused(client):
    nested: dict = {"must": [{"key": "a", "match": {"value": 1}}]}
    for _ in range(9):
        nested = {"must": [nested]}
    assert "deep" in post(client, "/v1/search", 400, query="x", task="qa", filter=nested)["error"]["message"]
    deep = '{"must": [' * 1500 + "]}" * 1500
    sent = f'{{"query": "x", "task": "qa", "filter": {deep}}}'
    assert client.post("/v1/search", content=sent, headers={"content-type": "application/json"}).status_code == 400


def test_retrieve_gives_the_prompt_of_the_task(client):
    answer = post(client, "/v1/retrieve/qa", query="Which function sorts a list?", k=2)
    # The title stands before the text, as in the prompts of the rewards.
    texts = [titled(passage["title"], passage["text"]) for passage in answer["passages"]]
    assert answer["prompt"] == "Knowledge:\n" + "\n".join(texts) + "\n\nQ: Which function sorts a list? A:"
    assert answer["prompt"].startswith(answer["context"]) and texts[0] == "list This function sorts a list in Python."
    short = post(client, "/v1/retrieve/qa", query="Which function sorts a list?", k=3, max_characters=50)
    assert len(short["passages"]) == 1 and short["left_out"] == 2
    plain = post(client, "/v1/retrieve/tool", query="sort", k=1)
    assert plain["prompt"].endswith("\n\nsort")
    none = post(client, "/v1/retrieve/qa", query="sort", session="s9")
    assert none["prompt"] == "Q: sort A:" and none["context"] == "" and none["passages"] == []


def test_retrieve_remembers_a_session_and_keeps_it_apart(client):
    turn = {"id": "turn-1", "text": "My dog is called Rex.", "metadata": {"session": "anna"}}
    assert post(client, "/v1/indexes/live/documents", task="chat", documents=[turn])["upserted"] == 1
    found = post(client, "/v1/retrieve/chat", query="What is my dog called?", session="anna")
    assert [hit["id"] for hit in found["passages"]] == ["turn-1"]
    assert post(client, "/v1/retrieve/chat", query="What is my dog called?", session="bert")["passages"] == []
    narrow = {"must": [{"key": "year", "match": {"value": 1}}]}
    assert post(client, "/v1/retrieve/chat", query="dog", session="anna", filter=narrow)["passages"] == []
    for _ in range(MAX_DEPTH - 1):
        narrow = {"must_not": [narrow]}
    found = post(client, "/v1/retrieve/chat", query="What is my dog called?", session="anna", filter=narrow)
    assert [hit["id"] for hit in found["passages"]] == ["turn-1"]


def test_documents_written_are_found_at_once_replaced_and_deleted(client):
    def best():
        return post(client, "/v1/search", query="animals with black and white stripes", task="tool", k=1)["results"][0][
            0
        ]

    first = [{"id": "zebra", "text": "Zebras have black and white stripes."}]
    post(client, "/v1/indexes/live/documents", task="tool", documents=first)
    assert (best()["id"], best()["text"]) == ("zebra", first[0]["text"])
    second = [{"id": "zebra", "text": "The stripes of zebras are black and white.", "metadata": {"n": 2}}]
    post(client, "/v1/indexes/live/documents", task="tool", documents=second)
    assert (best()["text"], best()["metadata"]) == (second[0]["text"], {"n": 2})
    tasks = client.get("/v1/indexes").json()["data"][0]["collections"]
    assert tasks["tool"] == {"documents": 41, "uncompacted": 2}
    gone = [{"id": "zebra"}, {"id": "never"}]
    assert post(client, "/v1/indexes/live/documents/delete", task="tool", documents=gone)["deleted"] == 1
    assert best()["id"] != "zebra"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"task": "nope", "documents": [{"id": "a", "text": "b"}]}, 400),
        ({"task": "qa", "documents": []}, 400),
        ({"task": "qa", "documents": [{"id": "", "text": "b"}]}, 400),
        ({"task": "qa", "documents": [{"id": "a", "text": ""}]}, 400),
        ({"task": "qa", "documents": [{"id": "a", "text": "b", "title": "\ud800"}]}, 400),
        ({"task": "qa", "documents": [{"id": "a", "text": "b", "metadata": {"x": [1, "a"]}}]}, 400),
        ({"task": "qa", "documents": [{"id": "a", "text": "b", "metadata": {"x\ud800": 1}}]}, 400),
        ({"task": "qa", "documents": [{"id": str(i), "text": "b"} for i in range(21)]}, 400),
    ],
)
def test_documents_out_of_the_limits_are_refused(client, body, status):
    sent = json.dumps(body)
    answer = client.post("/v1/indexes/live/documents", content=sent, headers={"content-type": "application/json"})
    assert answer.status_code == status and answer.json()["error"]["message"]


def test_alias_swaps_model_and_index_as_one_and_side_by_side(client, work):
    listed = client.get("/v1/indexes").json()
    assert (listed["versions"], [one["name"] for one in listed["data"]]) == (["v1", "v2"], ["live"])
    old = post(client, "/v1/search", query="x", task="qa")
    assert client.put("/v1/indexes/next", json={"version": "v2"}).status_code == 200
    new = post(client, "/v1/search", query="x", task="qa", index="next")
    assert new["index_version"] != old["index_version"] and new["shards"]["total"] == 3
    assert [hit["id"] for hit in new["results"][0]] == [hit["id"] for hit in old["results"][0]]
    whole = post(client, "/v1/embeddings", model="next", input="x")
    prefix = post(client, "/v1/embeddings", model="next", input="x", dimensions=96)
    assert whole["model"] == prefix["model"] == "next"
    cut = unit(whole["data"][0]["embedding"])[:96]
    assert np.allclose(unit(prefix["data"][0]["embedding"]), cut / np.linalg.norm(cut), atol=1e-6)
    assert (
        "[96, 384]" in post(client, "/v1/embeddings", 400, model="next", input="x", dimensions=95)["error"]["message"]
    )
    assert client.put("/v1/indexes/live", json={"version": "v2"}).json()["version"] == "v2"
    assert post(client, "/v1/search", query="x", task="qa")["index_version"] == new["index_version"]
    assert client.put("/v1/indexes/live", json={"version": "v1"}).status_code == 200
    assert client.delete("/v1/indexes/next").json() == {"name": "next"}
    post(client, "/v1/search", 404, query="x", task="qa", index="next")
    assert client.delete("/v1/indexes/live").status_code == 409
    assert client.delete("/v1/indexes/never").status_code == 404
    assert client.put("/v1/indexes/live", json={"version": "v9"}).status_code == 404
    assert client.put("/v1/indexes/v2", json={"version": "v1"}).status_code == 400


def test_alias_refuses_a_damaged_version_and_the_old_one_goes_on(client, work):
    catalog = Catalog(work / "indexes")
    publish(work, MODEL, "v3", alias=None)
    path = next((catalog.bundle("v3") / "shards").glob("*/*/*.faiss"))
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    before = post(client, "/v1/search", query="x", task="qa")["index_version"]
    assert client.put("/v1/indexes/live", json={"version": "v3"}).status_code == 503
    assert catalog.aliases()["live"] == "v1"
    catalog.point("live", "v3")
    client.get("/v1/indexes")
    assert post(client, "/v1/search", query="x", task="qa")["index_version"] == before
    catalog.point("live", "v1")
    client.get("/v1/indexes")
    assert client.get("/ready").status_code == 200


def with_probe(work, version, turn=0):
    """Give a version a probe by its own encoder; with `turn` each text has the vector of another one."""
    bundle = Catalog(work / "indexes").bundle(version)
    manifest, texts = read_manifest(bundle), [row.text for row in documents()]
    encoder = load_encoder(bundle_encoder(bundle, manifest), "cpu")
    write_probe(texts, np.roll(encode_prompted(encoder, texts), turn, axis=0), bundle)
    files = {**manifest.files, PROBE: file_sha256(bundle / PROBE)}
    manifest.model_copy(update={"files": files}).write(bundle)


def test_alias_moves_to_a_version_alone_whose_texts_the_running_encoder_ranks_as_its_index(client, work, caplog):
    catalog = Catalog(work / "indexes")
    for version, turn in (("v4", 0), ("v5", 1)):
        publish(work, MODEL, version, alias=None)
        with_probe(work, version, turn)
    assert client.put("/v1/indexes/live", json={"version": "v4"}).status_code == 200
    before = post(client, "/v1/search", query="x", task="qa")["index_version"]
    assert before == read_manifest(catalog.bundle("v4")).index_version
    # By the route: refused with the reason, and the alias stays.
    answer = client.put("/v1/indexes/live", json={"version": "v5"})
    message = answer.json()["error"]["message"]
    assert answer.status_code == 409 and answer.json()["error"]["param"] == "version"
    assert "other nearest texts than offline" in message and "\n" not in message
    assert catalog.aliases()["live"] == "v4"
    # By the job `index`, which moves the alias itself: told once in the log, and the old version answers on.
    catalog.point("live", "v5")
    for _ in range(2):
        client.get("/v1/indexes")
        assert post(client, "/v1/search", query="x", task="qa")["index_version"] == before
    told = [record.getMessage() for record in caplog.records if "not serving version v5" in record.getMessage()]
    assert len(told) == 1 and "other nearest texts than offline" in told[0]
    catalog.point("live", "v1")
    client.get("/v1/indexes")
    assert client.get("/ready").status_code == 200


def test_roles_are_checked_before_anything_is_parsed(work, tmp_path):
    roles = {"read": "reader", "write": "writer", "admin": "boss"}
    keys = tmp_path / "keys"
    keys.write_text("".join(f"{role} {key}-of-many-letters\n" for role, key in roles.items()), encoding="utf-8")
    guarded = local_service(run_config(work, MODEL, api_keys_file=str(keys)))
    with TestClient(make_api(guarded, lambda *_: None), raise_server_exceptions=False) as one:

        def status(method, path, key, body=None):
            headers = {"authorization": f"Bearer {key}-of-many-letters"} if key else {}
            return one.request(method, path, json=body, headers=headers).status_code

        document = {"task": "qa", "documents": [{"id": "k", "text": "x"}]}
        asked = [
            ("GET", "/v1/models", None, {None: 401, "wrong": 401, "reader": 200, "writer": 200, "boss": 200}),
            ("POST", "/v1/search", {"query": "x", "task": "qa"}, {None: 401, "reader": 200, "boss": 200}),
            ("POST", "/v1/indexes/live/documents", document, {None: 401, "reader": 403, "writer": 200, "boss": 200}),
            ("PUT", "/v1/indexes/live", {"version": "v1"}, {None: 401, "reader": 403, "writer": 403, "boss": 200}),
            ("GET", "/openapi.json", None, {None: 401, "reader": 200}),
            ("GET", "/nowhere", None, {None: 401, "reader": 404}),
            ("POST", "/nowhere", None, {None: 401, "reader": 404, "boss": 404}),
            ("GET", "/health", None, {None: 200}),
        ]
        for method, path, body, wanted in asked:
            assert {key: status(method, path, key, body) for key in wanted} == wanted, path


def test_dimensions_give_a_prefix_that_is_a_unit_vector():
    vectors = np.array([[3.0, 4.0, 12.0], [0.0, 0.0, 1.0]], dtype=np.float32)
    assert np.allclose(narrowed(vectors, 2), [[0.6, 0.8], [0, 0]])
    assert narrowed(vectors, 3) is vectors and narrowed(vectors, None) is vectors


CURL = re.compile(r"curl -s (?:-X (?P<method>\w+) )?localhost:8000(?P<path>\S+) .*?-d '(?P<body>.*?)'", re.DOTALL)


@pytest.mark.parametrize(
    "name", ["README.md", *(f"docs/{page}.md" for page in ("serving", "serve-and-update", "long-chats", "tools"))]
)
def test_requests_of_the_docs_are_answered(client, name):
    asked = list(CURL.finditer((ROOT / name).read_text(encoding="utf-8")))
    assert asked
    left = []
    for one in asked:
        body = json.loads(one["body"].replace("VERSION", "v1"))
        answer = client.request(one["method"] or "POST", one["path"], json=body)
        assert answer.status_code == 200, (one[0], answer.text)
        named = [{"id": each["id"], "dataset": each.get("dataset", "")} for each in body.get("documents", [])]
        match one["path"].rpartition("/")[2]:
            case "documents":
                left.append((f"{one['path']}/delete", body["task"], named))
            case "get":
                assert len(answer.json()["documents"]) == len(named)
            case "delete":
                assert answer.json()["deleted"] == len(named)
                left.pop()
    for path, task, named in left:
        assert post(client, path, task=task, documents=named)["deleted"] == len(named)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_service_in_another_number_format_than_its_index_is_tried_on_the_probe(tmp_path, dtype):
    manifest = publish(tmp_path, MODEL, "v1")
    bundle = tmp_path / "indexes" / "versions" / "v1"
    config = run_config(tmp_path, MODEL, dtype=dtype)
    with pytest.raises(BundleError, match=r"no probe\.json"):
        local_service(config)
    texts = [row.text for row in documents()]
    write_probe(texts, encode_prompted(load_encoder(bundle_encoder(bundle, manifest), "cpu"), texts), bundle)
    files = {**manifest.files, PROBE: file_sha256(bundle / PROBE)}
    manifest.model_copy(update={"files": files}).write(bundle)
    if dtype == "int8":
        with pytest.raises(BundleError, match=r"in int8 the least cosine of 40 texts .* 0\.999 is asked"):
            local_service(config)
    else:
        assert local_service(config).backend.encoder._models.loaded()[0].encoder.network.in_bfloat16
        # An index in bfloat16 may be of a GPU, which computes in another form of it.
        write_probe(
            texts, np.roll(encode_prompted(load_encoder(bundle_encoder(bundle, manifest), "cpu"), texts), 1), bundle
        )
        files = {**manifest.files, PROBE: file_sha256(bundle / PROBE)}
        manifest.model_copy(update={"files": files, "dtype": "bfloat16"}).write(bundle)
        with pytest.raises(BundleError, match=r"bfloat16, is .* make and serve it on GPUs, or both on CPUs"):
            local_service(config)
