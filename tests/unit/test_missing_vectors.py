"""An alias moves to another version, with the same model or another one: what was written is found there too."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from embedder.errors import BundleError, DataError
from embedder.index.catalog import Catalog
from embedder.index.documents import Document
from embedder.index.opened import OpenIndex
from serve.api import make_api
from serve.backend import CALL_FORMAT, OWNER
from serve.http_errors import ApiError
from serve.service import Service
from serve.versions import missing_vectors
from serve.versions.served import VersionSource
from tests.serving import MODEL, POISON, LocalBackend, local_service, poisoned_model, publish, run_config
from tests.waiting import wait_until

NOTE = {"id": "note", "text": "Remember the milk.", "dataset": "notes", "metadata": {"session": "mine"}}
SORTS = {"id": "list-sorts", "dataset": "docs"}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with versions of the same corpus: two of one model in other shards, and one whose vectors are others."""
    folder = tmp_path_factory.mktemp("published")
    publish(folder, MODEL, "v1", shards=1)
    publish(folder, MODEL, "v2", alias=None, shards=3)
    publish(folder, MODEL, "other", alias=None, max_tokens=48)
    return folder


@pytest.fixture
def work(published: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return shutil.copytree(published, tmp_path / "work")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed is tried again at once."""
    monkeypatch.setattr(missing_vectors, "RETRY_S", 0.05)


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


def until(client: TestClient, version: str, name: str, text: str) -> None:
    """Wait until a version is served, and shows a document."""

    def is_there() -> bool:
        (index,) = client.get("/v1/indexes").json()["data"]
        return index["version"] == version and finds(client, name, text)

    wait_until(is_there)


@pytest.mark.parametrize("version", ["v2", "other"])
def test_writes_stay_over_swaps_and_back(work: Path, version: str) -> None:
    with client_of(local_service(run_config(work, MODEL))) as client:
        write(client, NOTE)
        delete(client, SORTS)
        swap(client, version)
        assert finds(client, "note", NOTE["text"]) and "list-sorts" not in ids(client)
        body = {"query": "What was I to remember?", "session": "mine", "k": 5}
        assert "milk" in client.post("/v1/retrieve/chat", json=body).json()["prompt"]
        write(client, {**NOTE, "text": "Remember the bread."})
        swap(client, "v1")
        assert finds(client, "note", "Remember the bread.")
        delete(client, NOTE)
        swap(client, version)
        assert "note" not in ids(client)


def test_writes_follow_an_alias_that_the_job_moves(work: Path) -> None:
    with client_of(local_service(run_config(work, MODEL))) as client:
        write(client, NOTE)
        Catalog(work / "indexes").point("live", "other")
        until(client, "other", "note", NOTE["text"])


def test_writes_are_encoded_for_a_version_to_which_an_alias_was_moved_while_nothing_ran(work: Path) -> None:
    with client_of(local_service(run_config(work, MODEL))) as client:
        write(client, NOTE)
    for version in ("v2", "other"):
        Catalog(work / "indexes").point("live", version)
    with client_of(local_service(run_config(work, MODEL))) as client:
        until(client, "other", "note", NOTE["text"])
        delete(client, NOTE)
    with client_of(local_service(run_config(work, MODEL))) as client:
        client.get("/v1/indexes")
        assert "note" not in ids(client)


def test_vectors_wait_for_a_service_that_has_no_room_and_writes_go_on_meanwhile(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = local_service(run_config(work, MODEL))
    encode, is_full = service.backend.encode, [True]

    async def full(version: str, texts: list[str], truncate: bool) -> object:
        if version == "other" and is_full[0]:
            raise ApiError(429, "full")
        return await encode(version, texts, truncate)

    monkeypatch.setattr(service.backend, "encode", full)
    with client_of(service) as client:
        write(client, NOTE)
        Catalog(work / "indexes").point("live", "other")
        write(client, {**NOTE, "text": "Remember the bread."})
        assert client.get("/v1/indexes").json()["data"][0]["version"] == "v1"
        is_full[0] = False
        until(client, "other", "note", "Remember the bread.")


def test_text_that_the_new_model_fails_on_is_left_out_alone(
    work: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(work, poisoned_model(MODEL, tmp_path / "poisoned"), "v3", alias=None)
    with client_of(local_service(run_config(work, MODEL))) as client:
        write(client, NOTE, {**NOTE, "id": "bad", "text": f"{POISON} milk"})
        swap(client, "v3")
        assert "note" in ids(client) and "bad" not in ids(client, 50)
        swap(client, "v1")
        assert "bad" in ids(client, 50)
    assert "('bad', 'notes') is not in version v3" in caplog.text


@pytest.mark.parametrize("failure", [ApiError(500, "not finite", code="not_encodable"), DataError("too long")])
def test_document_that_the_new_version_cannot_take_does_not_hold_the_others_up(
    work: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    service = local_service(run_config(work, MODEL))
    encode = service.backend.encode

    async def failing(version: str, texts: list[str], truncate: bool) -> object:
        if version == "other" and any("unbearable" in str(text) for text in texts):
            raise failure
        return await encode(version, texts, truncate)

    monkeypatch.setattr(service.backend, "encode", failing)
    with client_of(service) as client:
        write(
            client, *({**NOTE, "id": f"note-{i}"} for i in range(5)), {**NOTE, "id": "bad", "text": "unbearable milk"}
        )
        swap(client, "other")
        assert {one for one in ids(client) if "note" in one} == {f"note-{i}" for i in range(5)}


def test_vectors_are_made_on_nobodys_share_though_a_request_begins_it(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, owners = local_service(run_config(work, MODEL)), {}
    encode = service.backend.encode

    async def noting(version: str, texts: list[str], truncate: bool) -> object:
        owners.setdefault(version, OWNER.get())
        return await encode(version, texts, truncate)

    monkeypatch.setattr(service.backend, "encode", noting)
    with client_of(service) as client:
        write(client, NOTE)
        swap(client, "other")
    assert owners["v1"] and owners["other"] == ""


def test_late_write_through_a_version_that_is_not_served_any_more_is_found(work: Path) -> None:
    service = local_service(run_config(work, MODEL))
    with client_of(service) as client:
        swap(client, "other")
        write_late(service, "v1", NOTE)
        until(client, "other", "note", NOTE["text"])


def write_late(service: Service, version: str, document: dict) -> None:
    """As a request does that was let in before the alias moved."""
    index = service.backend.parts[0]
    vectors = np.eye(1, 384, dtype=np.float32)
    asyncio.run(
        index.call(f"live/{version}", "upsert", "chat", [Document(**document)], vectors, call_format=CALL_FORMAT)
    )


@pytest.mark.parametrize("failure", [ApiError(503, "died"), TimeoutError(), BundleError("damaged"), OSError()])
def test_vectors_whose_making_fails_are_made_later(
    work: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    service = local_service(run_config(work, MODEL))
    call, failures = service.backend.call, [failure]

    async def failing(part: int, version: str, method: object, *arguments: object) -> object:
        if failures and version == "live/other" and method is OpenIndex.waiting:
            raise failures.pop()
        return await call(part, version, method, *arguments)

    monkeypatch.setattr(service.backend, "call", failing)
    with client_of(service) as client:
        write(client, NOTE)
        Catalog(work / "indexes").point("live", "other")
        until(client, "other", "note", NOTE["text"])
    assert not failures


def test_service_that_may_not_write_moves_with_the_alias_and_makes_no_vectors(work: Path) -> None:
    with client_of(local_service(run_config(work, MODEL))) as client:
        write(client, NOTE)
    Catalog(work / "indexes").point("live", "other")
    service = local_service(run_config(work, MODEL, read_only=True))
    with client_of(service) as client:
        client.get("/v1/indexes")
        assert not finds(client, "note", NOTE["text"]) and len(service.backend.encoded) == 1


def test_version_that_takes_long_to_load_holds_up_no_request(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = local_service(run_config(work, MODEL, timeout_s=3.0))
    prepare, is_slow = service.backend.prepare, [True]

    async def slow(version: str) -> None:
        await asyncio.to_thread(wait_until, lambda: version != "live/v2" or not is_slow[0])
        await prepare(version)

    monkeypatch.setattr(service.backend, "prepare", slow)
    with client_of(service) as client:
        answer = client.put("/v1/indexes/live", json={"version": "v2"})
        assert answer.status_code == 503 and "being loaded" in answer.text
        assert Catalog(work / "indexes").aliases() == {"live": "v1"}
        Catalog(work / "indexes").point("live", "v2")
        assert client.get("/v1/indexes").json()["data"][0]["version"] == "v1"
        is_slow[0] = False
        wait_until(lambda: client.get("/v1/indexes").json()["data"][0]["version"] == "v2")


def test_replica_that_starts_later_loads_what_is_served_then_not_what_was_deployed(work: Path) -> None:
    config, catalog = run_config(work, MODEL), Catalog(work / "indexes")
    catalog.point("live", "v2")
    catalog.remove("v1")
    backend = LocalBackend(VersionSource.of(config), config, "v1")
    assert [list(one._indexes._values) for one in backend.parts] == [["live/v2"], ["live/v2"]]
    assert list(backend.encoder._models._values) == ["v2"]
