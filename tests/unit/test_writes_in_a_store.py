"""The log in an object store: several services write, each sees the others' writes, and what goes on without it."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from embedder.errors import UnreachableError
from embedder.index.documents import Document
from embedder.index.living import MutableCollection
from embedder.index.metadata_change import MetadataChange
from embedder.storage.object_store import ObjectPath
from serve.api import make_api
from tests.object_store import ObjectStore, proxy
from tests.serving import local_service, publish, run_config
from tests.unit.index_cases import NO_CHOICE, documents_of, mutable, unit
from tests.waiting import wait_until

VECTORS = unit(np.random.default_rng(5), 8)
DOCUMENTS = "/v1/indexes/live/documents"


def opened(folder: Path, log: ObjectPath) -> MutableCollection:
    return mutable(folder, documents_of("ab"), VECTORS[:2], log)


def found(index: MutableCollection) -> dict[str, dict]:
    index.catch_up()
    return {hit.id: hit.metadata for hit in index.search(VECTORS[:1], 99, NO_CHOICE).hits()[0]}


def test_collections_without_a_common_disk_write_and_see_the_same(object_store: ObjectStore, tmp_path: Path):
    log = object_store.path(f"writes/{tmp_path.name}")
    indexes = [opened(tmp_path / str(i), log) for i in range(2)]

    def write(who: int) -> None:
        for i in range(5):
            indexes[who].upsert(documents_of([f"{who}-{i}"]), VECTORS[:1])
            indexes[who].change([("a", "d")], MetadataChange(set={f"{who}-{i}": True}))
        indexes[who].delete([(f"{who}-0", "d"), ("b", "d")])

    threads = [threading.Thread(target=write, args=(who,)) for who in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found(indexes[0]) == found(indexes[1])
    assert found(indexes[0]).keys() == {"a", *(f"{who}-{i}" for who in range(2) for i in range(1, 5))}
    assert found(indexes[0])["a"] == {f"{who}-{i}": True for who in range(2) for i in range(5)}
    assert indexes[0].compact() and indexes[1].fold(at_once=True)
    assert found(opened(tmp_path / "0", log)) == found(opened(tmp_path / "late", log)) == found(indexes[0])


def test_search_goes_on_while_the_store_does_not_answer_and_writes_are_refused(
    object_store: ObjectStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    is_gone = [False]
    with proxy(object_store, lambda *_: is_gone[0]) as (endpoint, _):
        index = opened(tmp_path, object_store.path(f"writes/{tmp_path.name}", endpoint=endpoint))
        index.upsert(documents_of("c"), VECTORS[2:3])
        is_gone[0] = True
        index._looked -= 2
        assert index.search(VECTORS[2:3], 1, NO_CHOICE).hits()[0][0].id == "c"
        assert "searches go on with what is known" in caplog.text and index.age_s > 0
        for act in (lambda: index.upsert(documents_of("x"), VECTORS[:1]), lambda: index.delete([("a", "d")])):
            with pytest.raises(UnreachableError, match="cannot be"):
                act()
        is_gone[0] = False
        index.upsert(documents_of("e"), VECTORS[3:4])
        assert found(index).keys() == {"a", "b", "c", "e"}


def test_service_says_503_to_writes_and_how_old_its_view_is_until_the_store_is_back(
    object_store: ObjectStore, tmp_path: Path, tiny_encoder_folder: Path
):
    publish(object_store.path(f"service/{tmp_path.name}"), tiny_encoder_folder, "v1")
    is_gone = [False]
    with proxy(object_store, lambda *_: is_gone[0]) as (endpoint, _):
        place = object_store.path(f"service/{tmp_path.name}", endpoint=endpoint)
        config = run_config(place, tiny_encoder_folder)
        first, second = (TestClient(make_api(local_service(config), lambda *_: None)) for _ in range(2))
        document = {"task": "tool", "documents": [Document(id="new", text="qqnew").model_dump()]}
        assert first.post(DOCUMENTS, json=document).status_code == 200
        words = {"task": "tool", "query": "qqnew", "mode": "lexical", "k": 1}
        wait_until(lambda: second.post("/v1/search", json=words).json()["results"][0] != [])
        assert second.get("/health").json()["behind_s"] < 2
        is_gone[0] = True
        refused = second.post(DOCUMENTS, json=document)
        assert refused.status_code == 503 and "does not answer" in refused.text and "Retry-After" in refused.headers
        wait_until(lambda: second.get("/health").json()["behind_s"] > 2)
        assert second.post("/v1/search", json=words).json()["results"][0][0]["id"] == "new"
        is_gone[0] = False
        assert second.post(DOCUMENTS, json=document).status_code == 200
        wait_until(lambda: second.get("/health").json()["behind_s"] < 2)
