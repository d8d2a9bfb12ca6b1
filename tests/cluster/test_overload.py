"""The service behind each proxy under more requests than it takes: refusals that clients understand, right answers."""

from __future__ import annotations

import math
import re
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml

from benchmarks.serving_systems import System, served_by_ray
from embedder.models.encoder import encode_prompted
from embedder.models.onnx import load_inference_encoder
from serve.ports import rows
from tests.cluster.conftest import free_port
from tests.cluster.served import MODEL
from tests.cluster.strangers import documented_ports, ports_of_this_ray, what_strangers_can_do
from tests.serving import publish, run_config
from tests.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]
KEY = "a-key-that-reads"
TEXT = "Which function sorts a list?"


@contextmanager
def serving(tmp_path: Path, way: str, **limits: int) -> Iterator[System]:
    """One encoder in a Ray of its own."""
    publish(tmp_path / "work", MODEL, "v1", shards=1)
    keys = tmp_path / "keys"
    keys.write_text(f"read {KEY}\n", encoding="utf-8")
    replicas = {"max_replicas": 1, "max_ingress_replicas": 1}
    config = run_config(tmp_path / "work", MODEL, api_keys_file=str(keys), **replicas, **limits)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    with served_by_ray("ours", str(path), free_port(), KEY, way=way) as one:
        yield one


@pytest.mark.parametrize(
    ("way", "inside", "name"),
    [
        # Behind HAProxy the ingress itself refuses unread, where the door lets more in than the ingress has room for.
        ("default", 1000, 'embedder_rejected_total\\{.*status="429"'),
        ("default", 8, None),
        ("proxy", 8, "embedder_door_rejected_total"),
    ],
)
def test_overload_is_refused_in_openais_shape_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, inside: int, name: str | None
) -> None:
    monkeypatch.setenv("LLM_EMBEDDER_PROXY_REQUESTS", str(inside))
    with serving(tmp_path, way, max_queued_requests=4 if inside == 1000 else 200) as system:
        refused = ask_too_much(system)
        if name is not None:
            assert refusals(system, name, refused) == refused


def ask_too_much(system: System) -> int:
    """Ask more than there is room for; returns how many requests were refused, all of them as they must be."""
    encoder = load_inference_encoder(run_config(Path(), MODEL).encoder, "cpu")
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
    return statuses[429]


def test_ports_behind_haproxy_run_nothing_for_a_stranger_and_are_those_of_the_docs(tmp_path: Path) -> None:
    with serving(tmp_path, "default") as system:
        ports = ports_of_this_ray(system.process.pid)
        assert what_strangers_can_do(ports, tmp_path) == []
        told = documented_ports(
            "Behind HAProxy (`RAY_SERVE_ENABLE_HA_PROXY=1`) that `serve/front/haproxy_door.sh` starts"
        )
        assert {row for row in rows(ports) if row[0] in {"HAProxy", "proxy (HTTP)", "replica"}} == told


def refusals(system: System, name: str, wanted: int) -> int:
    """What the metrics count, as soon as it is as many as wanted."""
    counted = 0

    def is_enough() -> bool:
        nonlocal counted
        with urllib.request.urlopen(f"http://127.0.0.1:{system.metrics_port}/metrics", timeout=10) as response:
            lines = response.read().decode().splitlines()
        found = [line for line in lines if re.match(f"ray_{name}", line)]
        counted = sum(int(float(line.rpartition(" ")[2])) for line in found)
        return counted >= wanted

    wait_until(is_enough)
    return counted
