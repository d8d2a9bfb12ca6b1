"""Health is the truth: a model that fails, hangs or gives nonsense, and an index that cannot be searched, are told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from serve.api import make_api
from serve.backend import CALL_FORMAT
from serve.service import Service
from tests.serving import local_service, publish, run_config


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, tiny_encoder_folder: Path) -> Path:
    """A run with one version."""
    folder = tmp_path_factory.mktemp("health")
    publish(folder, tiny_encoder_folder, "v1")
    return folder


@pytest.fixture
def service(published: Path, tiny_encoder_folder: Path) -> Service:
    return local_service(run_config(published, tiny_encoder_folder))


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(make_api(service, lambda *_: None), raise_server_exceptions=False) as client:
        yield client


def failing(*_: object) -> np.ndarray:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def nonsense(rows: list[object]) -> np.ndarray:
    return np.full((len(rows), 32), np.nan, dtype=np.float32)


def short(rows: list[object]) -> np.ndarray:
    return np.full((len(rows), 32), 0.5, dtype=np.float32)


@pytest.mark.parametrize(
    ("run", "message"), [(failing, "fails on any text"), (nonsense, "not finite"), (short, "length 1")]
)
def test_health_of_a_broken_model_has_its_replica_replaced_and_says_503(service, client, run, message):
    assert client.get("/health").status_code == client.get("/ready").status_code == 200
    encoder = service.backend.encoder
    (model,) = encoder._models.loaded()
    asyncio.run(encoder.check_health())
    model.encoder.batcher._run = run
    with pytest.raises(RuntimeError, match=message):
        asyncio.run(encoder.check_health())
    answer = client.post("/v1/embeddings", json={"model": "work", "input": "a text"})
    if run is not short:
        # Not the text is at fault: another replica may do better.
        assert answer.status_code == 503
        service._answers.clear()
        assert client.get("/health").status_code == client.get("/ready").status_code == 503


def test_embeddings_of_a_text_without_memory_for_it_are_to_be_asked_for_again(service, client):
    (model,) = service.backend.encoder._models.loaded()
    compute = model.encoder.batcher._run

    def full(rows: list[list[int]]) -> np.ndarray:
        if any(len(row) > 20 for row in rows):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return compute(rows)

    model.encoder.batcher._run = full
    answer = client.post("/v1/embeddings", json={"model": "work", "input": ["short", "long " * 40]})
    assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
    assert answer.json()["error"]["code"] == "memory"
    assert client.post("/v1/embeddings", json={"model": "work", "input": "short"}).status_code == 200


def test_health_check_of_a_model_that_hangs_does_not_answer(service):
    """Ray takes that for a failure after 5 s; requests meanwhile end at their deadline (test_coalescing)."""
    encoder, free = service.backend.encoder, threading.Event()
    (model,) = encoder._models.loaded()
    compute, model.encoder.batcher._run = model.encoder.batcher._run, lambda rows: (free.wait(30), compute(rows))[1]

    async def asked() -> None:
        try:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(encoder.check_health(), 0.5)
        finally:
            free.set()

    asyncio.run(asked())


def test_health_of_an_index_that_cannot_be_searched_has_its_replica_replaced(service):
    (replica, *_) = service.backend.parts
    asyncio.run(replica.check_health())
    (index,) = replica._indexes.loaded()
    for collection in index.collections.values():
        for memtable in collection._shards.memtables:
            memtable.base.rank = failing
    with pytest.raises(RuntimeError, match="illegal memory"):
        asyncio.run(replica.check_health())


@pytest.mark.parametrize("method", ["snapshot", "compact", "__init__", "manifest.write", ""])
def test_replica_of_an_index_runs_no_method_but_those_of_the_service(service, method):
    (replica, *_) = service.backend.parts
    with pytest.raises(ValueError, match="is not a call of the index"):
        asyncio.run(replica.call("live/v1", method, "qa", call_format=CALL_FORMAT))
