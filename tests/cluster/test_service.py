"""The service on the bundle that the jobs wrote: shapes, limits, keys, and vectors equal to offline ones."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
import ray
from ray import serve

from embedder.bundle import bundle_encoder, read_manifest
from embedder.config import RunConfig
from embedder.encode import encode
from embedder.errors import BundleError
from embedder.index.opened import OpenIndex
from embedder.index.settings import SearchOptions
from embedder.model import load_encoder
from embedder.run_file import load_run
from serve.app import build_run, deployed
from tests.cluster.conftest import Cluster, free_port

pytestmark = [pytest.mark.ray, pytest.mark.slow]
KEY = "test-key"
TEXTS = ["How do I join two lists?", "naïve café 漢字 🙂", "x " * 200, "def f(): return 1"]


@pytest.fixture(scope="module")
def served(
    cluster: Cluster, run_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RunConfig, str]]:
    """The run's configuration and the URL of its service, which asks for a key."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"other-key\n{KEY}\n", encoding="utf-8")
    config = load_run(
        run_file, [f"serve.api_keys_file={keys}", "serve.max_characters=1000", "serve.max_body_bytes=20000"]
    )
    port = free_port()
    ray.init(address=cluster.address, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build_run(config))
    yield config, f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()


@pytest.fixture
def client(served: tuple[RunConfig, str]) -> Iterator[httpx.Client]:
    """A client with a valid key."""
    with httpx.Client(base_url=served[1], headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as one:
        yield one


def post_embeddings(client: httpx.Client, **fields: object) -> httpx.Response:
    """POST /v1/embeddings for the served model."""
    return client.post("/v1/embeddings", json={"model": "work", **fields})


@pytest.mark.parametrize(("input_type", "side"), [("query", "query"), ("document", "key")])
def test_served_vectors_equal_offline_ones(served, client, input_type, side) -> None:
    config, _ = served
    bundle, _ = deployed(config)
    encoder = load_encoder(bundle_encoder(bundle, read_manifest(bundle)))
    for task, spec in config.tasks.items():
        answer = post_embeddings(client, input=TEXTS, task=task, input_type=input_type).json()
        vectors = np.array([entry["embedding"] for entry in answer["data"]])
        assert np.abs(vectors - encode(encoder, TEXTS, spec, side)).max() < 1e-5


def test_base64_is_bit_equal_to_float(client) -> None:
    plain = post_embeddings(client, input=TEXTS[0]).json()["data"][0]["embedding"]
    packed = post_embeddings(client, input=TEXTS[0], encoding_format="base64").json()["data"][0]["embedding"]
    assert np.array_equal(np.frombuffer(base64.b64decode(packed), "<f4"), np.array(plain, dtype=np.float32))


def test_the_openai_client_works_with_its_defaults(served) -> None:
    client = openai.OpenAI(base_url=f"{served[1]}/v1", api_key=KEY)
    answer = client.embeddings.create(model="work", input=TEXTS, extra_body={"task": "qa", "input_type": "query"})
    assert [len(entry.embedding) for entry in answer.data] == [32] * len(TEXTS)
    assert answer.usage.prompt_tokens > 0
    assert [model.id for model in client.models.list()] == ["work"]
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="another", input="x")


def test_search_equals_exact_offline_search_over_all_shards(served, client) -> None:
    config, _ = served
    bundle, state = deployed(config)
    manifest = read_manifest(bundle)
    encoder, index = load_encoder(bundle_encoder(bundle, manifest)), OpenIndex.open(bundle, state)
    for task, spec in config.tasks.items():
        query = encode(encoder, TEXTS[:1], spec, "query")
        (wanted,) = index.search(task, SearchOptions(k=5), query).hits()
        answer = client.post("/v1/search", json={"query": TEXTS[0], "task": task, "limit": 5}).json()
        assert [hit["id"] for hit in answer["results"][0]] == [hit.id for hit in wanted]
        assert [hit["score"] for hit in answer["results"][0]] == pytest.approx([hit.score for hit in wanted], abs=1e-5)
        assert answer["shards"] == {"total": 2, "successful": 2, "failed": 0}
        assert answer["index_version"] == manifest.index_version


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "input"),
        ({"input": ""}, 400, "input"),
        ({"input": []}, 400, "input"),
        ({"input": ["ok", "  "]}, 400, "input"),
        ({"input": [1, 2, 3]}, 400, "input"),
        ({"input": "x" * 1001}, 400, "input"),
        ({"input": ["x"] * 257}, 400, "input"),
        ({"input": "x", "task": "nope"}, 400, "task"),
        ({"input": "x", "input_type": "nope"}, 400, "input_type"),
        ({"input": "x", "dimensions": 7}, 400, "dimensions"),
        ({"input": "x", "unknown": 1}, 400, "unknown"),
        ({"input": "x", "model": "another"}, 404, "model"),
    ],
)
def test_a_bad_request_gets_the_openai_error_shape_and_names_its_field(client, body, status, param) -> None:
    answer = post_embeddings(client, **body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["param"] == param and error["message"]


@pytest.mark.parametrize("content", [b"", b"{{", b"[1]", b'{"input": NaN}', b"\x00\xff"])
def test_rubbish_is_refused_and_the_next_request_succeeds(client, content) -> None:
    assert client.post("/v1/embeddings", content=content).status_code in {400, 411}
    assert post_embeddings(client, input="fine").status_code == 200


def test_a_body_over_the_limit_is_refused(client) -> None:
    assert client.post("/v1/embeddings", content=b"x" * 30000).status_code == 413


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY[:-1]}])
def test_every_route_but_health_asks_for_a_key(served, header) -> None:
    with httpx.Client(base_url=served[1], headers=header, timeout=60) as stranger:
        assert stranger.get("/health").status_code == 200
        assert stranger.get("/v1/models").status_code == 401
        assert stranger.get("/openapi.json").status_code == 401
        assert stranger.post("/v1/embeddings", json={"input": "x", "model": "work"}).status_code == 401
        assert stranger.post("/v1/search", json={"query": "x", "task": "qa"}).status_code == 401


def test_a_bundle_with_one_flipped_byte_is_not_deployed(served) -> None:
    config, _ = served
    path = next((deployed(config)[0] / "shards").glob("*/*/*.faiss"))
    original = path.read_bytes()
    try:
        path.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
        with pytest.raises(BundleError, match=r"SHA-256 differs"):
            build_run(config)
    finally:
        path.write_bytes(original)
