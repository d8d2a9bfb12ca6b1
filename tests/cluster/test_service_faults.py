"""The service on Ray Serve under faults, load and rubbish: kills, updates, hanging models, idle senders, a fuzzer."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import ray
from ray import serve

from serve.app import build_run
from tests.cluster.conftest import ROOT, Cluster
from tests.cluster.results import served_bundle
from tests.cluster.served import KEYS, Running, cpu_seconds, replica_pids, search_subject, served
from tests.load import Load
from tests.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "response_headers_conformance,unsupported_method"
)


@pytest.fixture(scope="module")
def running(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The service that all tests here ask."""
    with served(cluster, tmp_path_factory.mktemp("served")) as one:
        yield one


def test_replica_kills_every_five_seconds_for_a_minute_fail_no_request(running: Running) -> None:
    chance = random.Random(0)
    with Load(search_subject, running.client, clients=10) as load:
        for _ in range(12):
            time.sleep(5)  # kills keep their own pace, whether or not the service has recovered
            pids = replica_pids(chance.choice(["encoder", "encoder", "shard-00000", "shard-00001"]))
            if pids:
                os.kill(chance.choice(pids), signal.SIGKILL)
    assert not load.failures
    assert load.answered > 500


def test_deployment_update_under_load_fails_no_request(running: Running) -> None:
    changed = running.config.serve.model_copy(update={"batch_tokens": 1024})
    before = set(replica_pids("encoder"))
    with Load(search_subject, running.client, clients=4) as load:
        load.wait_for(25)
        serve.run(build_run(running.config.model_copy(update={"serve": changed})))
        load.wait_for(25)
    assert not load.failures
    assert not before & set(replica_pids("encoder"))
    serve.run(build_run(running.config))


def test_replica_whose_model_hangs_is_replaced_within_a_minute(running: Running) -> None:
    before = set(replica_pids("encoder"))
    stopped = next(iter(before))
    os.kill(stopped, signal.SIGSTOP)
    try:
        with Load(search_subject, running.client, clients=4) as load:
            wait_until(lambda: not set(replica_pids("encoder")) <= before, 60)
            wait_until(lambda: stopped not in replica_pids("encoder"), 120)
        assert not load.failures and load.answered > 50
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(stopped, signal.SIGKILL)


def test_metrics_and_logs_tell_no_texts(running: Running) -> None:
    secret = "qqsecret"
    with running.client() as client:
        answer = client.post("/v1/search", json={"query": secret, "task": "qa"}, headers={"x-request-id": "asked-1"})
    assert answer.headers["x-request-id"] == "asked-1"
    session = Path(ray._private.worker.global_worker.node.get_session_dir_path())
    wanted = {"ray_embedder_requests_total", "ray_embedder_batch_size_bucket", "ray_embedder_index_documents"}
    seen: set[str] = set()

    def all_are_counted() -> bool:
        parts = json.loads((session / "prom_metrics_service_discovery.json").read_text(encoding="utf-8"))
        for address in (target for part in parts for target in part["targets"]):
            with contextlib.suppress(httpx.TransportError):
                text = httpx.get(f"http://{address}/metrics", timeout=10).text
                assert secret not in text
                seen.update(re.findall(r"^(ray_embedder_\w+)", text, re.MULTILINE))
        return wanted <= seen

    wait_until(all_are_counted, 120)
    logs = [path.read_text(encoding="utf-8") for path in (session / "logs" / "serve").glob("*.log")]
    assert not any(secret in log or key in log for log in logs for key in KEYS.values())
    lines = [json.loads(line) for log in logs for line in log.splitlines() if '"http_route"' in line]
    (line,) = [line for line in lines if line.get("request_id") == "asked-1"]
    assert (line["http_route"], line["status"], line["role"]) == ("/v1/search", 200, "read")


def test_requests_of_a_fuzzer_are_answered_as_described_and_never_with_5xx(running: Running) -> None:
    hooks = {"SCHEMATHESIS_HOOKS": "tests.fuzzing"}
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{running.url}/openapi.json", "--checks", CHECKS]
    command += ["--phases", "examples,coverage,fuzzing", "--max-examples", "20", "--continue-on-failure"]
    command += [
        "--suppress-health-check",
        "all",
        "--seed",
        "1",
        "--exclude-method",
        "DELETE",
        "--exclude-method",
        "PUT",
    ]
    # Of the highest role: whoever may not use a method is told so before he is told that there is none.
    command += ["-H", f"Authorization: Bearer {KEYS['admin']}", "--no-color", "--warnings", "off"]
    environment = {**os.environ, **hooks, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=560, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def test_deployment_update_that_cannot_start_leaves_the_old_one_serving(running: Running) -> None:
    changed = running.config.serve.model_copy(update={"batch_tokens": 512})
    update = build_run(running.config.model_copy(update={"serve": changed}))
    settings = served_bundle(running.config) / "model" / "config.json"
    aside = settings.rename(running.keys.with_name("config.json"))
    try:
        with Load(search_subject, running.client, clients=4) as load, pytest.raises(RuntimeError, match="deploy"):
            serve.run(update)
    finally:
        aside.rename(settings)
    assert not load.failures and load.answered > 50
    serve.run(build_run(running.config))
    with running.client() as client:
        search_subject(client, 0)


def test_service_that_is_taken_down_answers_the_request_under_way(running: Running) -> None:
    """A large request takes several calls; what it has not sent when its encoders go is answered at once.

    What `serve.start` stops is answered to its end (test_serve_start).
    """
    answers: list[dict[str, Any]] = []

    def ask() -> None:
        with running.client() as client:
            body = {"model": "work", "input": ["word " * 60 + str(i) for i in range(500)]}
            answers.append(client.post("/v1/embeddings", json=body).json())

    pids = replica_pids("encoder")
    before = cpu_seconds(pids)
    asking = threading.Thread(target=ask)
    asking.start()
    wait_until(lambda: cpu_seconds(pids) > before + 0.1)
    assert not answers, "the request must still be under way"
    try:
        serve.delete("default")
        asking.join()
    finally:
        serve.run(build_run(running.config))
    (answer,) = answers
    assert answer["error"]["code"] == "stopping" if "error" in answer else len(answer["data"]) == 500


def test_senders_that_idle_hold_up_nobody(running: Running) -> None:
    address = urlsplit(running.url)
    begun = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\n"
    unfinished = begun + f"Authorization: Bearer {KEYS['read']}\r\nContent-Length: 500\r\n\r\n{{".encode()
    with contextlib.ExitStack() as stack:
        for content in [b"", begun, unfinished] * 150:
            connection = stack.enter_context(socket.create_connection((address.hostname, address.port), timeout=10))
            connection.sendall(content)
        with Load(search_subject, running.client, clients=4) as load:
            load.wait_for(50)
    assert not load.failures
