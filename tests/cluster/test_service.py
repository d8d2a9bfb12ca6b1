"""The service on Ray Serve: clients of others unchanged, keys, writes, swaps and deaths under load."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from huggingface_hub import InferenceClient
from langchain_openai import OpenAIEmbeddings
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from ray.util import get_node_ip_address

from embedder.errors import BundleError
from embedder.index.catalog import Catalog
from embedder.index.filters import Filter
from embedder.models.encoder import encode_prompted, load_encoder
from serve.access.keys import hashed_key
from serve.app import build_run
from serve.client import AsyncClient, Client, ServiceError
from serve.openapi import described
from serve.ports import NUMBERS, rows
from serve.schemas.document_schemas import (
    ChangeRequest,
    CountRequest,
    DeleteRequest,
    GetRequest,
    ListRequest,
    NamedDocument,
    UpsertRequest,
    WrittenDocument,
)
from serve.schemas.embedding_schemas import EmbeddingRequest
from serve.schemas.rerank_schemas import RerankRequest
from serve.schemas.search_schemas import BatchRequest, RetrieveRequest, SearchRequest
from tests.cluster.conftest import Cluster
from tests.cluster.results import served_bundle
from tests.cluster.served import KEYS, MODEL, Running, check_reranker, cpu_seconds, replica_pids, search_subject, served
from tests.cluster.strangers import documented_ports, ports_of_this_ray, what_strangers_can_do
from tests.load import Load
from tests.serving import POISON, poisoned_model, publish, run_config, unit
from tests.waiting import wait_until

pytestmark = pytest.mark.ray
TEXTS = ["How do I join two lists?", "naïve café 漢字 🙂", "def f(): return 1"]


@pytest.fixture(scope="module")
def running(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The service that all tests here ask."""
    with served(cluster, tmp_path_factory.mktemp("served")) as one:
        yield one


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """What the texts' vectors must be."""
    return encode_prompted(load_encoder(run_config(Path("unused"), MODEL).encoder, "cpu"), TEXTS)


def near(given: object, wanted: np.ndarray) -> bool:
    """Whether vectors are those."""
    return bool(np.abs(unit(given) - wanted).max() < 1e-5)


def test_openai_client_works_with_its_defaults(running: Running, vectors: np.ndarray) -> None:
    client = openai.OpenAI(base_url=f"{running.url}/v1", api_key=KEYS["read"])
    answer = client.embeddings.create(model="work", input=TEXTS)
    assert near([entry.embedding for entry in answer.data], vectors) and answer.usage.prompt_tokens > 0
    prompted = client.embeddings.create(model="work", input=TEXTS, extra_body={"task": "qa", "input_type": "query"})
    assert not near([entry.embedding for entry in prompted.data], vectors)
    assert [model.id for model in client.models.list()] == ["work", "live"]
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="another", input="x")
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        client.embeddings.create(model="work", input="x", dimensions=7)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="wrong").models.list()


def test_langchain_and_llama_index_clients_work(running: Running, vectors: np.ndarray) -> None:
    common = {"model": "work", "api_key": KEYS["read"], "check_embedding_ctx_length": False}
    chain = OpenAIEmbeddings(base_url=f"{running.url}/v1", **common)
    assert near(chain.embed_documents(TEXTS), vectors) and near(chain.embed_query(TEXTS[0]), vectors[0])
    index = OpenAILikeEmbedding(model_name="work", api_base=f"{running.url}/v1", api_key=KEYS["read"])
    assert near(index.get_text_embedding_batch(TEXTS), vectors) and near(
        index.get_query_embedding(TEXTS[0]), vectors[0]
    )


def test_hugging_face_client_works(running: Running, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    # The tests run without a hub, which its client takes to mean any server.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    client = InferenceClient(model=f"{running.url}/embed", token=KEYS["read"])
    assert near(client.feature_extraction(TEXTS[0]), vectors[0])
    assert near(client.feature_extraction(TEXTS, normalize=True, truncate=True), vectors)  # type: ignore[arg-type]


def test_reranker_answers_from_the_replicas_of_the_encoder(running: Running) -> None:
    check_reranker(running)


def test_service_serves_the_description_that_is_committed(running: Running) -> None:
    with running.client() as client:
        assert client.get("/openapi.json").json() == json.loads(described())


def test_state_says_which_replicas_there_are(running: Running) -> None:
    with running.client() as client:
        state = {one["name"]: one for one in client.get("/v1/state").json()["data"]}
    assert state.keys() == {"ingress", "encoder", "shard-00000", "shard-00001"}
    assert state["encoder"]["replicas"].get("RUNNING") == 2


def test_keys_are_asked_for_and_rotate_without_a_restart(running: Running) -> None:
    with httpx.Client(base_url=running.url, timeout=60) as stranger:
        assert stranger.get("/health").status_code == 200
        assert stranger.post("/v1/search", json={"query": "x", "task": "qa"}).status_code == 401
        old = running.keys.read_text(encoding="utf-8")
        new = {"Authorization": "Bearer a-key-for-newcomers"}
        assert stranger.get("/v1/models", headers=new).status_code == 401
        running.keys.write_text(old + "read a-key-for-newcomers\n", encoding="utf-8")
        assert stranger.get("/v1/models", headers=new).status_code == 200
        running.keys.write_text(old, encoding="utf-8")
        assert stranger.get("/v1/models", headers=new).status_code == 401
    with running.client("read") as reader:
        assert reader.put("/v1/indexes/live", json={"version": "v2"}).status_code == 403


def test_keys_with_a_scope_reach_no_document_beyond_it(running: Running) -> None:
    old = running.keys.read_text(encoding="utf-8")
    lines = [
        f"write where.session={name} sha256:{hashed_key(f'the-key-of-session-{name}').hex()}\n"
        for name in ("s0", "mine")
    ]
    running.keys.write_text(old + "".join(lines), encoding="utf-8")
    with httpx.Client(base_url=running.url, timeout=60) as client:

        def ask(key: str, path: str, **body: object) -> dict[str, Any]:
            answer = client.post(
                path, json={"task": "qa", **body}, headers={"Authorization": f"Bearer the-key-of-session-{key}"}
            )
            assert answer.status_code == 200, answer.text
            return dict(answer.json())

        def found(key: str) -> set[tuple[str, str]]:
            (hits,) = ask(key, "/v1/search", query="a list in Python", k=100)["results"]
            return {(hit["id"], hit["metadata"]["session"]) for hit in hits}

        theirs = found("s0")
        assert len(theirs) == 20 and {session for _, session in theirs} == {"s0"} and found("mine") == set()
        name = {"id": min(theirs)[0], "dataset": "docs"}
        ask("mine", "/v1/indexes/live/documents", documents=[{**name, "text": "mine"}])
        assert found("mine") == {(name["id"], "mine")} and found("s0") == theirs
        assert ask("mine", "/v1/indexes/live/documents/delete", documents=[name] * 2)["deleted"] == 1
        assert found("mine") == set() and found("s0") == theirs
    running.keys.write_text(old, encoding="utf-8")


def test_upsert_is_found_at_once_by_every_replica(running: Running) -> None:
    with running.client("write") as client:
        for i in range(20):
            document = {"id": f"new-{i}", "text": f"Zebra number {i} has stripes.", "metadata": {"herd": i}}
            written = client.post("/v1/indexes/live/documents", json={"task": "tool", "documents": [document]})
            assert written.status_code == 200, written.text
            wanted = {"must": [{"key": "herd", "match": {"value": i}}]}
            found = client.post("/v1/search", json={"query": "zebra", "task": "tool", "filter": wanted}).json()
            assert [hit["id"] for hit in found["results"][0]] == [f"new-{i}"]
        gone = [{"id": f"new-{i}"} for i in range(20)]
        deleted = client.post("/v1/indexes/live/documents/delete", json={"task": "tool", "documents": gone})
        assert deleted.json()["deleted"] == 20


def test_alias_swap_under_load_fails_no_request(running: Running) -> None:
    seen: set[tuple[str, str]] = set()
    with Load(lambda client, i: seen.add(search_subject(client, i)), running.client, clients=4) as load:
        with running.client("admin") as admin:
            for version in ("v2", "v1"):
                load.wait_for(10)
                answer = admin.put("/v1/indexes/live", json={"version": version})
                assert answer.status_code == 200, answer.text
        load.wait_for(10)
    assert not load.failures
    catalog = Catalog(running.config.paths.indexes)
    assert len(seen) == 2 and catalog.aliases() == {"live": "v1"}


def test_writes_while_the_alias_moves_are_found_after_it(running: Running) -> None:
    texts: dict[str, str] = {}
    moved = {"must": [{"key": "dataset", "match": {"value": "moved"}}]}
    body = {"query": "A note", "task": "chat", "k": 100, "filter": moved}

    def write(client: httpx.Client, number: int) -> None:
        document = {"id": f"n{number % 40}", "dataset": "moved", "text": f"A note of {number}."}
        written = client.post("/v1/indexes/live/documents", json={"task": "chat", "documents": [document]})
        assert written.status_code == 200, written.text
        texts[document["id"]] = document["text"]

    def found(client: httpx.Client) -> dict[str, str]:
        (hits,) = client.post("/v1/search", json=body).json()["results"]
        return {hit["id"]: hit["text"] for hit in hits}

    with running.client("admin") as admin:
        for version in ("v2", "v1"):
            with Load(write, lambda: running.client("write"), clients=1) as load:
                load.wait_for(5)
                answer = admin.put("/v1/indexes/live", json={"version": version})
                assert answer.status_code == 200, answer.text
                load.wait_for(5)
            assert not load.failures and len(texts) > 5
            wait_until(lambda: found(admin) == texts)
        admin.post(
            "/v1/indexes/live/documents/delete",
            json={"task": "chat", "documents": [{"id": name, "dataset": "moved"} for name in texts]},
        )


def test_text_that_the_model_fails_on_fails_alone(running: Running, tmp_path: Path, vectors: np.ndarray) -> None:
    publish(running.config.paths.work, poisoned_model(MODEL, tmp_path / "poisoned"), "v3", alias=None)
    with running.client("admin") as admin:
        assert admin.put("/v1/indexes/poisoned", json={"version": "v3"}).status_code == 200

        def is_known() -> bool:
            return admin.post("/v1/embeddings", json={"model": "poisoned", "input": TEXTS[0]}).status_code == 200

        # An ingress follows the aliases once a second: the one that was asked knows it now, the other one may not yet.
        wait_until(lambda: all(is_known() for _ in range(20)))

        def ask(client: httpx.Client, number: int) -> None:
            is_bad = number % 3 == 0
            text = f"this is {POISON}" if is_bad else TEXTS[0]
            answer = client.post("/v1/embeddings", json={"model": "poisoned", "input": [text]})
            if is_bad:
                assert answer.status_code == 500 and answer.json()["error"]["code"] == "not_encodable", answer.text
            else:
                assert answer.status_code == 200 and near(answer.json()["data"][0]["embedding"], vectors[0])

        with Load(ask, running.client, clients=6) as load:
            load.wait_for(21)
        assert not load.failures
        assert admin.delete("/v1/indexes/poisoned").status_code == 200


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads processor times from /proc")
def test_client_that_hangs_up_has_its_work_dropped(running: Running) -> None:
    long = ["word " * 60 + str(i) for i in range(2000)]
    body = {"model": "work", "input": long}
    with running.client() as client:
        for _ in range(4):
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/embeddings", json=body, timeout=1.0)
        pids = replica_pids("encoder")

        def is_idle() -> bool:
            before = cpu_seconds(pids)
            time.sleep(2)  # what is asked for is the processor time within two seconds
            return cpu_seconds(pids) - before < 1.0

        # The texts would keep both encoders at work for minutes.
        wait_until(is_idle, 20)
        assert client.post("/v1/embeddings", json={"model": "work", "input": "x"}).status_code == 200


def test_own_clients_work(running: Running, vectors: np.ndarray) -> None:
    embedding = EmbeddingRequest(model="live", input=TEXTS)
    search = SearchRequest(query="Which function sorts a list?", task="qa", k=1)
    with Client(running.url, KEYS["write"]) as client:
        assert near(client.embed(embedding), vectors)
        assert client.search(search).results[0][0].id == "list-sorts"
        assert "sorts a list" in client.retrieve("qa", RetrieveRequest(query="sort a list")).prompt
        assert len(client.rerank(RerankRequest(query="x", documents=["a", "b"])).results) == 2
        assert [one.name for one in client.indexes().data] == ["live"]
        document = WrittenDocument(id="own", text="x", metadata={"a": 1})
        assert client.upsert("live", UpsertRequest(task="qa", documents=[document])).upserted == 1
        gone = DeleteRequest(task="qa", documents=[NamedDocument(id="own")])
        assert client.delete("live", gone).deleted == 1
        with pytest.raises(ServiceError, match="role admin") as refused:
            client.point("live", "v2")
        assert refused.value.status == 403

    async def ask() -> tuple[object, str]:
        async with AsyncClient(running.url, KEYS["read"]) as client:
            found, embedded = await asyncio.gather(client.search(search), client.embed(embedding))
            return embedded, found.results[0][0].id

    embedded, best = asyncio.run(ask())
    assert near(embedded, vectors) and best == "list-sorts"


def test_documents_are_read_changed_and_deleted_by_our_clients_on_all_shards(running: Running) -> None:
    new = Filter.model_validate({"must": [{"key": "herd", "match": {"value": 7}}]})
    vector = [1.0, *[0.0] * 383]
    rows = [WrittenDocument(id=f"herd-{i}", text=f"Zebra {i}.", metadata={"herd": 7}, vector=vector) for i in range(30)]
    with Client(running.url, KEYS["write"]) as client:
        assert client.upsert("live", UpsertRequest(task="chat", documents=rows)).upserted == 30
        assert client.count("live", CountRequest(task="chat", filter=new)).count == 30
        asked = ListRequest(task="chat", filter=new, limit=7, with_vectors=True)
        found = list(client.documents("live", asked))
        assert [one.id for one in found] == sorted(row.id for row in rows) and found[0].vector == vector
        named = [NamedDocument(id="herd-3"), NamedDocument(id="nobody")]
        assert [one.id for one in client.get("live", GetRequest(task="chat", documents=named)).documents] == ["herd-3"]
        change = ChangeRequest(task="chat", filter=new, set={"herd": 8})
        assert client.change("live", change).changed == 30
        assert client.count("live", CountRequest(task="chat", filter=new)).count == 0
        searches = [
            SearchRequest(vector=vector, task="chat", k=2, offset=1, score_threshold=0.99),
            SearchRequest(query="sort a list", task="qa", k=2, group_by="subject"),
        ]
        by_vector, groups = client.search_batch(BatchRequest(searches=searches)).answers
        assert [hit.metadata for hit in by_vector.results[0]] == [{"herd": 8}] * 2
        assert groups.results[0][0].group == "list" and len({hit.group for hit in groups.results[0]}) == 2
        gone = Filter.model_validate({"must": [{"key": "herd", "match": {"value": 8}}]})
        assert client.delete("live", DeleteRequest(task="chat", filter=gone)).deleted == 30

    async def pages() -> list[str]:
        async with AsyncClient(running.url, KEYS["read"]) as client:
            return [one.id async for one in client.documents("live", ListRequest(task="chat", limit=15))]

    assert len(asyncio.run(pages())) == 40


def test_metrics_of_the_service_are_on_its_own_port_for_keys_alone(running: Running) -> None:
    assert httpx.get(f"{running.url}/metrics").status_code == 401
    with running.client() as client:
        client.post("/v1/search", json={"query": "x", "task": "qa"})
        # Processes report to Ray's agent at intervals.
        wait_until(lambda: "ray_embedder_requests_total{" in client.get("/metrics").text, 60)
        text = client.get("/metrics").text
    assert "ray_serve_" not in text and 'route="/v1/search"' in text and "did not answer" not in text


def test_ports_of_a_served_machine_run_nothing_for_a_stranger(running: Running, tmp_path: Path) -> None:
    """Issue 20, item 1; fault 8.1: replicas unpickled what anyone sent."""
    ports = ports_of_this_ray()
    assert {port.role for port in ports} >= {"head (GCS)", "raylet", "replica", "dashboard", "agent of a node"}
    assert what_strangers_can_do(ports, tmp_path) == []


def test_ports_of_a_served_machine_are_those_of_the_docs(running: Running) -> None:
    told = documented_ports("As started by `ray start` and `serve deploy`")
    # A machine without a network has no other address: all is then on loopback.
    has_network = get_node_ip_address() not in {"127.0.0.1", "::1"}
    shown = slice(4) if has_network else slice(2)
    seen = {(row[shown], row[3]) for row in rows(ports_of_this_ray())}
    known = {(row[shown], row[3]) for row in told}
    assert seen <= known
    # Workers come and go with their tasks, and another Ray on this machine may hold the ports of the metrics.
    assert {what for row, what in known - seen if row[0] != "worker"} <= {NUMBERS}


def test_bundle_with_one_flipped_byte_is_not_deployed(running: Running) -> None:
    path = next((served_bundle(running.config) / "shards").glob("*/*/*.faiss"))
    original = path.read_bytes()
    try:
        path.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
        with pytest.raises(BundleError, match=r"SHA-256 differs"):
            build_run(running.config)
    finally:
        path.write_bytes(original)
