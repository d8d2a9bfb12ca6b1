"""The service whose replicas do all: the same answers, and no request lost at swaps, updates and deaths."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from ray import serve

from embedder.index.catalog import Catalog
from embedder.models.encoder import encode_prompted, load_encoder
from serve.app import build_run
from tests.cluster.conftest import Cluster
from tests.cluster.served import KEYS, MODEL, Running, check_reranker, replica_pids, search_subject, served
from tests.load import Load
from tests.serving import run_config, unit
from tests.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]
TEXTS = ["How do I join two lists?", "naïve café 漢字 🙂", "def f(): return 1"]


@pytest.fixture(scope="module")
def running(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The service that all tests here ask."""
    with served(cluster, tmp_path_factory.mktemp("together"), layout="together") as one:
        yield one


def test_vectors_of_replicas_that_do_all_are_those_of_the_encoder(running: Running) -> None:
    wanted = encode_prompted(load_encoder(run_config(Path("unused"), MODEL).encoder, "cpu"), TEXTS)
    client = openai.OpenAI(base_url=f"{running.url}/v1", api_key=KEYS["read"])
    # One alone is computed by another session than several.
    for texts, vectors in ((TEXTS, wanted), (TEXTS[:1], wanted[:1])):
        # By default it asks for base64, and decodes it.
        for format_ in ({}, {"encoding_format": "float"}):
            answer = client.embeddings.create(model="work", input=texts, **format_)
            assert np.abs(unit([entry.embedding for entry in answer.data]) - vectors).max() < 1e-5


def test_reranker_answers_in_replicas_that_do_all(running: Running) -> None:
    check_reranker(running)


def test_replicas_that_do_all_are_the_only_deployment(running: Running) -> None:
    with running.client() as client:
        (state,) = client.get("/v1/state").json()["data"]
    assert (state["name"], state["replicas"].get("RUNNING")) == ("service", 2)
    with httpx.Client(base_url=running.url, timeout=60) as stranger:
        assert stranger.get("/health").status_code == 200
        assert stranger.post("/v1/search", json={"query": "x", "task": "qa"}).status_code == 401


def test_write_to_one_replica_is_found_by_the_other(running: Running) -> None:
    with running.client("write") as client:
        for i in range(10):
            document = {"id": f"new-{i}", "text": f"Zebra number {i} has stripes.", "metadata": {"herd": i}}
            written = client.post("/v1/indexes/live/documents", json={"task": "tool", "documents": [document]})
            assert written.status_code == 200, written.text
            wanted = {"must": [{"key": "herd", "match": {"value": i}}]}
            for _ in range(4):
                found = client.post("/v1/search", json={"query": "zebra", "task": "tool", "filter": wanted}).json()
                assert [hit["id"] for hit in found["results"][0]] == [f"new-{i}"]
        gone = [{"id": f"new-{i}"} for i in range(10)]
        deleted = client.post("/v1/indexes/live/documents/delete", json={"task": "tool", "documents": gone})
        assert deleted.json()["deleted"] == 10


def test_swap_under_load_fails_no_request_and_every_replica_has_loaded_the_version_before(running: Running) -> None:
    seen: set[tuple[str, str]] = set()
    with Load(lambda client, i: seen.add(search_subject(client, i)), running.client, clients=4) as load:
        with running.client("admin") as admin:
            for version in ("v2", "v1"):
                load.wait_for(10)
                answer = admin.put("/v1/indexes/live", json={"version": version})
                assert answer.status_code == 200, answer.text
        load.wait_for(10)
    assert not load.failures
    assert len(seen) == 2 and Catalog(running.config.paths.indexes).aliases() == {"live": "v1"}


def test_replica_that_dies_under_load_fails_no_more_than_the_requests_that_it_had(running: Running) -> None:
    clients = 4
    with Load(search_subject, running.client, clients=clients) as load:
        load.wait_for(10)
        killed = replica_pids("service")[0]
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: killed not in (pids := replica_pids("service")) and len(pids) == 2, 180)
        load.wait_for(10)
    assert len(load.failures) <= clients, load.failures


def test_update_under_load_fails_no_request(running: Running) -> None:
    changed = running.config.serve.model_copy(update={"batch_tokens": 1024})
    before = set(replica_pids("service"))
    with Load(search_subject, running.client, clients=4) as load:
        load.wait_for(10)
        serve.run(build_run(running.config.model_copy(update={"serve": changed})))
        wait_until(lambda: not before & set(replica_pids("service")), 120)
        load.wait_for(10)
    assert not load.failures
