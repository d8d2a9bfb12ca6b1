"""An alias that another ingress has made: served from the first request on, though nothing else looks here."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from embedder.index.catalog import Catalog
from serve.access.keys import HASHED, hashed_key
from serve.api import make_api
from serve.service import Service
from tests.serving import local_service, publish, run_config

SEARCH = {"task": "tool", "query": "list", "k": 1}
TENANT, ADMIN = "the-key-of-a-tenant", "the-key-of-the-admin"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, tiny_encoder_folder: Path) -> Path:
    """A run with one version, and the keys of its service."""
    folder = tmp_path_factory.mktemp("aliases")
    publish(folder, tiny_encoder_folder, "v1")
    given = (("write index=live", TENANT), ("admin", ADMIN))
    lines = [f"{words} {HASHED}{hashed_key(key).hex()}" for words, key in given]
    (folder / "keys").write_text("\n".join([*lines, ""]), encoding="utf-8")
    return folder


@pytest.fixture
def service(published: Path, tiny_encoder_folder: Path) -> Iterator[Service]:
    """The default alias alone; nothing follows the aliases by itself."""
    service = local_service(run_config(published, tiny_encoder_folder, api_keys_file=str(published / "keys")))
    yield service
    catalog = catalog_of(service)
    for alias in catalog.aliases().keys() - {"live"}:
        catalog.drop(alias)


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    app = make_api(service, lambda *_: None)
    with TestClient(app, raise_server_exceptions=False, headers={"authorization": f"Bearer {ADMIN}"}) as client:
        yield client


@pytest.fixture
def looks(service: Service, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One for each look at the aliases."""
    made: list[None] = []
    follow = service.served.follow

    async def counted(*arguments: object) -> None:
        made.append(None)
        await follow(*arguments)

    monkeypatch.setattr(service.served, "follow", counted)
    return made


def catalog_of(service: Service) -> Catalog:
    return Catalog(service.served.source.folder)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/search", {**SEARCH, "index": "new"}),
        ("POST", "/v1/retrieve/tool", {"query": "list", "index": "new"}),
        ("POST", "/v1/embeddings", {"model": "new", "input": "x"}),
        ("POST", "/v1/rerank", {"model": "new", "query": "x", "documents": ["y"]}),
        ("POST", "/v1/indexes/new/documents", {"task": "tool", "documents": [{"id": "a", "text": "b"}]}),
        ("POST", "/v1/indexes/new/documents/delete", {"task": "tool", "documents": [{"id": "a"}]}),
        ("GET", "/v1/models/new", None),
        ("DELETE", "/v1/indexes/new", None),
    ],
)
def test_alias_that_another_ingress_has_made_is_known_to_every_route_at_once(
    service, client, looks, method, path, body
):
    catalog_of(service).point("new", "v1")
    answer = client.request(method, path, json=body)
    assert answer.status_code == 200, answer.text
    assert looks


def test_alias_that_is_served_costs_no_look(client, looks):
    assert client.post("/v1/search", json=SEARCH).status_code == 200
    assert client.get("/v1/models/live").status_code == 200
    assert not looks


def test_unknown_alias_is_looked_for_once_a_second_over_all_requests(service, client, looks, monkeypatch):
    monkeypatch.setattr("serve.service.FRESH_S", 3600.0)
    for number in range(20):
        assert client.get(f"/v1/models/nobody-{number}").status_code == 404
        assert client.post("/v1/search", json={**SEARCH, "index": f"nobody-{number}"}).status_code == 404
    assert len(looks) == 1
    monkeypatch.setattr("serve.service.FRESH_S", 0.0)
    catalog_of(service).point("new", "v1")
    assert client.get("/v1/models/new").status_code == 200
    assert len(looks) == 2


def test_unknown_alias_is_404_while_the_aliases_cannot_be_read(service, client, looks):
    aliases = max((service.served.source.folder / "catalog").iterdir())
    before = aliases.read_bytes()
    aliases.write_text("{", encoding="utf-8")
    answer = client.post("/v1/search", json={**SEARCH, "index": "new"})
    # Put right again, because the threads of the shards read it as long as this process runs.
    aliases.write_bytes(before)
    assert answer.status_code == 404 and looks


def test_unknown_alias_is_404_shortly_after_while_another_version_is_being_loaded(service, client, monkeypatch):
    """Loading takes minutes, during which the loop of the ingress holds all other looks up."""
    monkeypatch.setattr("serve.service.SHORTLY_S", 0.01)

    async def loading(version: str) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(service.backend, "prepare", loading)
    catalog_of(service).point("new", "v1")
    assert client.post("/v1/search", json={**SEARCH, "index": "new"}).status_code == 404


def test_key_with_a_scope_learns_nothing_of_an_alias_beyond_it_that_was_just_made(service, client):
    catalog = catalog_of(service)
    shutil.copytree(catalog.bundle("v1"), catalog.bundle("other-v2"), copy_function=os.link)

    def asked(name: str) -> list[tuple[int, str]]:
        requests = [
            ("POST", "/v1/search", {**SEARCH, "index": name}),
            ("POST", "/v1/embeddings", {"model": name, "input": "x"}),
            ("GET", f"/v1/models/{name}", None),
            ("POST", f"/v1/indexes/{name}/documents", {"task": "tool", "documents": [{"id": "a", "text": "b"}]}),
            ("DELETE", f"/v1/indexes/{name}", None),
        ]
        answers = []
        for method, path, body in requests:
            service._answers.clear()
            answer = client.request(method, path, json=body, headers={"authorization": f"Bearer {TENANT}"})
            answers.append((answer.status_code, answer.text.replace(name, "")))
        return answers

    before = asked("other")
    catalog.point("other", "other-v2")
    assert asked("other") == asked("nobody") == before
    assert [status for status, _ in before] == [404, 404, 404, 404, 403]
    # It is served by then to who may use it.
    assert dict(service.served.all())["other"].name == "other-v2"


def test_alias_that_was_refused_is_served_once_there_is_room(service, monkeypatch):
    catalog = catalog_of(service)
    monkeypatch.setattr(service.served, "max_versions", 2)
    catalog.point("one", "v1")
    asyncio.run(service.follow(5.0))
    catalog.point("two", "v1")
    asyncio.run(service.follow(5.0))
    assert "are served already" in service.served.refusal("two")
    catalog.drop("one")
    asyncio.run(service.follow(5.0))
    assert [name for name, _ in service.served.all()] == ["live"]
    monkeypatch.setattr("serve.versions.served.AGAIN_S", 0.0)
    asyncio.run(service.follow(5.0))
    assert [name for name, _ in service.served.all()] == ["live", "two"] and service.served.refusal("two") is None


@pytest.mark.parametrize("name", ["v1", "a%20b", "a%00b"])
def test_alias_that_can_be_none_is_refused_before_anything_is_loaded(service, client, monkeypatch, name):
    loaded = []

    async def prepare(key: str) -> None:
        loaded.append(key)

    monkeypatch.setattr(service.backend, "prepare", prepare)
    answer = client.put(f"/v1/indexes/{name}", json={"version": "v1"})
    assert answer.status_code == 400 and "/tmp" not in answer.text and not loaded
