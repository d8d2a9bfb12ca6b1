"""An alias moves to another version: what was written to the old one is found in the new one, and stays found."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from embedder.config.serve import ServeConfig
from embedder.errors import BundleError, DataError
from embedder.index.catalog import Catalog
from embedder.index.documents import Document
from embedder.index.opened import OpenIndex
from serve.api import make_api
from serve.backend import CALL_FORMAT
from serve.http_errors import ApiError
from serve.service import Service
from serve.versions import write_replay
from serve.versions.served import Version, VersionSource
from serve.versions.write_replay import WriteReplayer
from tests.serving import MODEL, POISON, LocalBackend, local_service, poisoned_model, publish, run_config
from tests.waiting import wait_until

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
    """What is replayed after a move is replayed at once, and again as late as a test sets it."""
    monkeypatch.setattr(write_replay, "AGAIN_S", 0.0)
    monkeypatch.setattr(write_replay, "RETRY_S", 0.05)
    monkeypatch.setattr(write_replay, "LATE_S", 0.1)


@pytest.fixture
def soon_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last replay after a move comes at once too, while requests keep their time."""
    monkeypatch.setattr(write_replay, "LATE_S", 0.1 - ServeConfig().timeout_s)


class Replays:
    """Replays that have ended, and the last ones after a move, each held until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        replay, settle, counts = WriteReplayer._replay, Catalog.settle, Counter[asyncio.Task | None]()
        self.ended, self.settled, self.held = 0, 0, list[threading.Event]()

        async def noted(replayer: WriteReplayer, old: Version, new: Version) -> None:
            # Before a move a replay is a task of its own; after it one task replays twice, the second time late.
            task = asyncio.current_task()
            counts[task] += 1
            if counts[task] == 2:
                free = threading.Event()
                self.held.append(free)
                await asyncio.to_thread(free.wait, 60)
            await replay(replayer, old, new)
            self.ended += 1

        def settled(catalog: Catalog, *arguments: object) -> None:
            settle(catalog, *arguments)
            self.settled += 1

        monkeypatch.setattr(WriteReplayer, "_replay", noted)
        monkeypatch.setattr(Catalog, "settle", settled)


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> Replays:
    return Replays(monkeypatch)


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

    def is_there() -> bool:
        client.get("/v1/indexes")
        return finds(client, name, text)

    wait_until(is_there)


def settled(work: Path) -> bool:
    """Nothing is left to be replayed."""
    return Catalog(work / "indexes").previous() == {"live": {}}


def test_replay_keeps_a_session_over_swaps_and_back(work: Path) -> None:
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


def test_replay_follows_an_alias_that_the_job_moves(work: Path) -> None:
    with client_of(local_service(run_config(work, MODEL))) as client:
        write(client, NOTE)
        Catalog(work / "indexes").point("live", "v2")
        until(client, "note", NOTE["text"])
        assert client.get("/v1/indexes").json()["data"][0]["version"] == "v2"


def test_replay_follows_an_alias_that_was_moved_while_nothing_ran_and_ends(work: Path, replays: Replays) -> None:
    with client_of(local_service(run_config(work, MODEL))) as client:
        write(client, NOTE)
    publish(work, MODEL, "v3", alias=None)
    for version in ("v3", "v2"):
        Catalog(work / "indexes").point("live", version)
    with client_of(local_service(run_config(work, MODEL))) as client:
        until(client, "note", NOTE["text"])
        delete(client, NOTE)
    before = replays.ended
    with client_of(local_service(run_config(work, MODEL))) as client:
        client.get("/v1/indexes")
        wait_until(lambda: replays.ended >= before + 2)  # of v1 and of v3
        assert "note" not in ids(client)


def test_replay_waits_for_a_service_that_has_no_room_and_takes_writes_meanwhile_too(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = local_service(run_config(work, MODEL, timeout_s=3.0))
    encode, is_full = service.backend.encode, [True]

    async def full(version: str, texts: list[str], truncate: bool) -> object:
        if version == "v2" and is_full[0]:
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


def test_replay_leaves_a_text_that_the_new_model_fails_on_alone_behind(
    work: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(work, poisoned_model(MODEL, tmp_path / "poisoned"), "v3", alias=None)
    with client_of(local_service(run_config(work, MODEL))) as client:
        write(client, NOTE, {**NOTE, "id": "bad", "text": f"{POISON} milk"})
        swap(client, "v3")
        assert "note" in ids(client) and "bad" not in ids(client, 30)
    assert "('bad', 'notes') is not replayed in v3" in caplog.text


@pytest.mark.parametrize("failure", [ApiError(500, "not finite", code="not_encodable"), DataError("too many fields")])
def test_replay_of_a_document_that_the_new_version_cannot_take_does_not_hold_the_others_up(
    work: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    service = local_service(run_config(work, MODEL))
    encode = service.backend.encode

    async def failing(version: str, texts: list[str], truncate: bool) -> object:
        if version == "v2" and any("unbearable" in str(text) for text in texts):
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


def test_replay_over_two_versions_and_back(work: Path) -> None:
    publish(work, MODEL, "v3", alias=None)
    with client_of(local_service(run_config(work, MODEL))) as client:
        write(client, NOTE, {**NOTE, "id": "gone"})
        swap(client, "v2")
        write(client, {**NOTE, "text": "Remember the bread."})
        swap(client, "v3")
        delete(client, {**NOTE, "id": "gone"})
        swap(client, "v1")
        assert finds(client, "note", "Remember the bread.") and "gone" not in ids(client)


def test_replay_takes_late_writes_to_the_old_version_and_then_is_settled(
    work: Path, soon_late: None, replays: Replays
) -> None:
    service, catalog = local_service(run_config(work, MODEL)), Catalog(work / "indexes")
    with client_of(service) as client:
        swap(client, "v2")
        wait_until(lambda: len(replays.held) == 1)
        assert list(catalog.previous()["live"]) == ["v1"]
        write_late(service, "v1", NOTE)
        replays.held[0].set()
        until(client, "note", NOTE["text"])
        wait_until(lambda: settled(work))


def write_late(service: Service, version: str, document: dict) -> None:
    """As a request does that was let in before the alias moved."""
    index = service.backend.parts[0]
    vectors = np.eye(1, 384, dtype=np.float32)
    asyncio.run(index.call(version, "upsert", "chat", [Document(**document)], vectors, call_format=CALL_FORMAT))


def test_replay_begins_anew_each_time_an_alias_moves_back_and_forth(
    work: Path, soon_late: None, replays: Replays
) -> None:
    service, catalog = local_service(run_config(work, MODEL)), Catalog(work / "indexes")
    with client_of(service) as client:
        for number, version in enumerate(("v2", "v1", "v2"), start=1):
            swap(client, version)
            wait_until(lambda number=number: len(replays.held) == number)
        replays.held[0].set()
        wait_until(lambda: replays.settled == 1)  # what the first move began has ended
        assert list(catalog.previous()["live"]) == ["v1"]
        write_late(service, "v1", NOTE)
        for held in replays.held[1:]:
            held.set()
        until(client, "note", NOTE["text"])
        wait_until(lambda: settled(work))


def test_replay_of_an_ingress_is_finished_though_another_one_has_settled_it(
    work: Path, soon_late: None, replays: Replays
) -> None:
    service, catalog = local_service(run_config(work, MODEL)), Catalog(work / "indexes")
    follow = service.served.follow

    async def followed_and_settled(*arguments: object) -> None:
        await follow(*arguments)
        for version, left_ns in catalog.previous().get("live", {}).items():
            catalog.settle("live", version, left_ns, "v2")

    service.served.follow = followed_and_settled
    with client_of(service) as client:
        swap(client, "v2")
        assert settled(work)
        wait_until(lambda: len(replays.held) == 1)
        write_late(service, "v1", NOTE)
        replays.held[0].set()
        until(client, "note", NOTE["text"])


def test_replay_that_fails_after_the_move_is_tried_again(
    work: Path, monkeypatch: pytest.MonkeyPatch, soon_late: None
) -> None:
    with client_of(local_service(run_config(work, MODEL))) as client:
        write(client, NOTE)
    catalog = Catalog(work / "indexes")
    catalog.point("live", "v2")
    service = local_service(run_config(work, MODEL))
    call = service.backend.call
    failures = [ApiError(503, "died"), TimeoutError(), BundleError("damaged"), OSError()]

    async def failing(part: int, version: str, method: Callable, *arguments: object) -> object:
        if failures and method is OpenIndex.writes:
            raise failures.pop()
        return await call(part, version, method, *arguments)

    monkeypatch.setattr(service.backend, "call", failing)
    with client_of(service) as client:
        until(client, "note", NOTE["text"])
        wait_until(lambda: settled(work))
    assert not failures


def test_replay_of_what_cannot_be_read_does_not_hold_the_alias_back(
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


def test_replay_begun_for_a_move_that_was_taken_back_does_not_count(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, catalog = local_service(run_config(work, MODEL, timeout_s=3.0)), Catalog(work / "indexes")
    call, is_slow, free, under_way = service.backend.call, [True], threading.Event(), []

    async def slow(part: int, version: str, method: Callable, *arguments: object) -> object:
        if not is_slow[0] or method is not OpenIndex.writes:
            return await call(part, version, method, *arguments)
        under_way.append(version)
        try:
            await asyncio.to_thread(free.wait, 60)
            return await call(part, version, method, *arguments)
        finally:
            under_way.remove(version)

    monkeypatch.setattr(service.backend, "call", slow)
    with client_of(service) as client:
        swap(client, "v2", 503)
        catalog.point("live", "v1")
        client.get("/v1/indexes")
        is_slow[0] = False
        free.set()
        wait_until(lambda: not under_way)
        write(client, NOTE)
        swap(client, "v2")
        assert finds(client, "note", NOTE["text"])


def test_replay_can_be_switched_off(work: Path) -> None:
    with client_of(local_service(run_config(work, MODEL, replay_writes=False))) as client:
        write(client, NOTE)
        swap(client, "v2")
        assert "note" not in ids(client)
        wait_until(lambda: settled(work))


def test_version_that_takes_long_to_load_holds_up_no_request(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = local_service(run_config(work, MODEL, timeout_s=3.0))
    prepare, is_slow = service.backend.prepare, [True]

    async def slow(version: str) -> None:
        await asyncio.to_thread(wait_until, lambda: version != "v2" or not is_slow[0])
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
    assert [list(one._indexes._values) for one in backend.parts] == [["v2"], ["v2"]]
    assert list(backend.encoder._models._values) == ["v2"]
