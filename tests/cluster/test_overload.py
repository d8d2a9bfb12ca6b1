"""The service behind HAProxy under more requests than it takes: refusals that clients understand, right answers."""

from __future__ import annotations

import math
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml

from benchmarks.serving_systems import System, served_by_ray
from embedder.models.encoder import encode_prompted
from embedder.models.onnx import load_inference_encoder
from tests.cluster.conftest import free_port
from tests.cluster.served import MODEL
from tests.serving import publish, run_config
from tests.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]
KEY = "reading-key"
TEXT = "Which function sorts a list?"


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    """One encoder behind HAProxy with Ray's switch for throughput, in a Ray of its own."""
    publish(tmp_path / "work", MODEL, "v1", shards=1)
    keys = tmp_path / "keys"
    keys.write_text(f"read {KEY}\n", encoding="utf-8")
    limits = {"max_replicas": 1, "max_ingress_replicas": 1, "max_queued_requests": 4, "max_inputs": 256}
    config = run_config(tmp_path / "work", MODEL, api_keys_file=str(keys), **limits)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    with served_by_ray("ours", str(path), free_port(), KEY, way="haproxy-fast") as one:
        yield one


def test_overload_is_refused_in_openais_shape_and_counted(system: System) -> None:
    encoder = load_inference_encoder(run_config(Path(), MODEL).encoder)
    wanted = encode_prompted(encoder, [TEXT])[0]
    answers: list[httpx.Response] = []

    def ask() -> None:
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx.Client(base_url=system.url, headers=headers, timeout=60) as client:
            for _ in range(20):
                body = {"model": "live", "input": [TEXT] * 32, "encoding_format": "float"}
                answers.append(client.post("/v1/embeddings", json=body))

    threads = [threading.Thread(target=ask) for _ in range(150)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) == {200, 429} and sum(statuses.values()) == 3000
    for answer in answers:
        assert answer.headers["x-request-id"]
        if answer.status_code == 429:
            assert answer.json()["error"]["code"] == "overloaded"
            milliseconds = int(answer.headers["retry-after-ms"])
            assert int(answer.headers["retry-after"]) == math.ceil(milliseconds / 1000) <= 40
        else:
            vector = np.array(answer.json()["data"][-1]["embedding"])
            assert np.abs(vector - wanted).max() < 1e-5
    assert refusals(system, statuses[429]) == statuses[429]


def refusals(system: System, wanted: int) -> int:
    """What the metrics count, as soon as it is as many as wanted."""
    counted = 0

    def is_enough() -> bool:
        nonlocal counted
        with urllib.request.urlopen(f"http://127.0.0.1:{system.metrics_port}/metrics", timeout=10) as response:
            lines = response.read().decode().splitlines()
        found = [line for line in lines if line.startswith("ray_embedder_rejected_total") and 'status="429"' in line]
        counted = sum(int(float(line.rpartition(" ")[2])) for line in found)
        return counted >= wanted

    wait_until(is_enough)
    return counted
