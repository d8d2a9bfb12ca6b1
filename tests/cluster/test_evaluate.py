"""`evaluate` over the cluster: killed and started again, without an LLM, and with a remote embedder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

from embedder.data.ledger import Ledger
from embedder.data.records import PASSAGE, QUERY, write_table
from embedder.evaluation.replies import judged_ledger
from embedder.hashing import content_id
from tests.cluster.conftest import Cluster
from tests.cluster.label_helpers import Driver
from tests.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]
QUERIES = 20
PASSAGES = 12
WORDS = ["fox", "dog", "forest", "bridge", "market", "station"]
TASKS = {"docs": "qa", "talk": "chat", "kinds": "icl"}
PLAIN = ["none", "random", "recency", "bm25", "base"]
KEY = "sk-cluster-secret"


def _queries(task: str, dataset: str) -> list[dict[str, Any]]:
    rows = []
    for i in range(QUERIES):
        known = {"task": task, "dataset": dataset, "query_id": f"q{i:02}", "query": f"where is {WORDS[i % 6]} {i}"}
        row = {**dict.fromkeys(QUERY.names), **known, "answers": [f"Paris {i}"], "positive_ids": [f"p{i % PASSAGES}"]}
        if task == "icl":
            row |= {"options": ["yes", "no"], "answers": [["yes", "no"][i % 2]], "positive_ids": []}
        if task == "chat":
            row |= {"pool_ids": [f"p{j}" for j in range(PASSAGES)], "origin": f"c{i // 3}"}
        rows.append(row)
    return rows


def write_run(folder: Path, encoder: Path, llm: Path | None, **evaluate: Any) -> Path:
    """Prepared tables of three tasks, and a run file."""
    for dataset, task in TASKS.items():
        passages = [
            {"task": task, "dataset": dataset, "id": f"p{i}", "text": f"the {WORDS[i % 6]} is behind bridge {i}"}
            for i in range(PASSAGES)
        ]
        rows = [
            {**dict.fromkeys(PASSAGE.names), **passage, "answer": ["yes", "no"][i % 2]}
            for i, passage in enumerate(passages)
        ]
        prepared = folder / "work" / "prepared"
        write_table(rows, PASSAGE, prepared / "corpus" / dataset / "part-00000.parquet")
        for split in ("train", "test"):
            write_table(_queries(task, dataset), QUERY, prepared / "queries" / split / f"{dataset}.parquet")
    run = {
        "paths": {"work": str(folder / "work"), "cache": str(folder / "cache")},
        "encoder": {"model": str(encoder), "pooling": "mean", "max_tokens": 64},
        "evaluate": {"retrievers": PLAIN, "resamples": 200, "unit_queries": 1, "num_actors": 1, **evaluate},
    }
    if llm is not None:
        run["llm"] = {"model": str(llm), "max_prefix_tokens": 200, "batch_tokens": 1024}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run), encoding="utf-8")
    return path


def new_driver(cluster: Cluster, **environment: str) -> Driver:
    """A driver on the session's Ray."""
    return Driver(cluster.address, None, {**cluster.environment, **environment})


@pytest.fixture(scope="module")
def driver(cluster: Cluster) -> Iterator[Driver]:
    """One for all tests here, but where it is killed or knows a key."""
    started = new_driver(cluster)
    yield started
    started.close()


def evaluate(driver: Driver, run_file: Path) -> dict[str, Any]:
    """Run the job to its end; returns its results."""
    code, output = driver.call(run_file, stage="evaluate")
    assert code == 0, output[-5000:]
    folder = run_file.parent / "work" / "evaluation" / "test"
    results: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return {"results": results, "output": output}


def replies(ledger: Ledger) -> dict[str, bytes]:
    """Every reply by its id; equal bytes are equal to the last bit of every number."""
    return {row["row_id"]: json.dumps(row).encode() for row in ledger.read().to_pylist()}


def test_evaluate_killed_ends_with_the_replies_of_an_undisturbed_run(
    cluster: Cluster, driver: Driver, tmp_path: Path, tiny_encoder_folder: Path, tiny_llama_folder: Path
) -> None:
    first, other = (
        write_run(tmp_path / name, tiny_encoder_folder, tiny_llama_folder, llm_queries=QUERIES)
        for name in ("undisturbed", "killed")
    )
    undisturbed = evaluate(driver, first)["results"]
    expected = replies(judged_ledger(first.parent / "work" / "evaluation"))
    ledger = judged_ledger(other.parent / "work" / "evaluation")
    killed = new_driver(cluster)
    try:
        killed.begin(other, "--set", "evaluate.num_actors=2", stage="evaluate")
        wait_until(lambda: len(ledger.done()) >= len(expected) // 4 or killed.process.poll() is not None, 240)
        assert killed.process.poll() is None, killed.process.communicate()[0]
    finally:
        killed.close()
    before = {path.name: path.stat().st_mtime_ns for path in ledger.folder.glob("*.parquet")}
    done = len(ledger.done())
    assert 0 < done < len(expected)
    again = evaluate(driver, other)
    assert replies(ledger) == expected and ledger.count_duplicates() == 0
    assert {path.name: path.stat().st_mtime_ns for path in ledger.folder.glob("*.parquet")}.items() >= before.items()
    assert again["results"] == undisturbed
    # Actors may have committed blocks after these were counted, until they noticed that their driver had died.
    (answered,) = re.findall(r"([\d,]+) answered before this run", again["output"])
    assert done <= int(answered.replace(",", "")) < len(expected)
    third = evaluate(driver, other)
    assert f"{len(expected):,} answered before this run" in third["output"] and "tokens scored" not in third["output"]
    assert third["results"] == undisturbed


class Embeddings(BaseHTTPRequestHandler):
    """Vectors made from hashes of the texts; every third request is refused for a while."""

    requests: list[dict[str, Any]]
    answered: int

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kind = type(self)
        kind.requests.append({"key": self.headers.get("Authorization"), **body})
        if len(kind.requests) % 3 == 0:
            self.send_response(503)
            self.end_headers()
            return
        kind.answered += len(body["input"])
        rows = [{"index": i, "embedding": self._vector(text)} for i, text in enumerate(body["input"])]
        answer = json.dumps({"data": rows[::-1]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(answer)

    @staticmethod
    def _vector(text: str) -> list[float]:
        digest = content_id(text)
        return [int(digest[i : i + 2], 16) - 127.5 for i in range(0, 16, 2)]

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[tuple[str, type[Embeddings]]]:
    """An embedding server on loopback."""
    kind = type("Memtable", (Embeddings,), {"requests": [], "answered": 0})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as listener:
        thread = Thread(target=listener.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.server_port}/v1", kind
        listener.shutdown()
        thread.join()


def test_evaluate_compares_a_remote_embedder_and_a_folder_without_any_llm(
    cluster: Cluster, driver: Driver, tmp_path: Path, tiny_encoder_folder: Path, server: tuple[str, type[Embeddings]]
) -> None:
    url, kind = server
    remote = {"kind": "endpoint", "name": "remote", "url": url, "model": "m", "key_variable": "REMOTE_KEY"}
    remote |= {"query_prompt": "query: ", "batch_texts": 8}
    folder = {"name": "mine", "model": str(tiny_encoder_folder), "pooling": "cls"}
    run_file = write_run(tmp_path, tiny_encoder_folder, None, retrievers=["bm25", "base", folder, remote])
    code, output = driver.call(run_file, stage="evaluate")
    assert code == 2 and "REMOTE_KEY holds no key" in " ".join(output.split())
    trusted = new_driver(cluster, REMOTE_KEY=KEY)
    try:
        outcome = evaluate(trusted, run_file)
        texts = len(TASKS) * (QUERIES + PASSAGES)
        assert kind.answered == texts and {request["key"] for request in kind.requests} == {f"Bearer {KEY}"}
        assert KEY not in outcome["output"]
        measures = outcome["results"]["datasets"]["docs"]["measures"]
        assert set(measures["nDCG@10"]["retrievers"]) == {"bm25", "base", "mine", "remote"}
        assert "exact match" not in measures
        evaluate(trusted, run_file)
        assert kind.answered == texts
    finally:
        trusted.close()
    written = [path for path in (tmp_path / "work").rglob("*") if path.is_file()]
    assert written and not any(KEY.encode() in path.read_bytes() for path in written)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("evaluate.split=dev", "let it keep dev_queries: 200"),
        ("evaluate.llm_queries=3", "needs an `llm` section"),
        ("evaluate.evaluations={nowhere: qa}", "neither a dataset of the run nor a task"),
        ("evaluate.retrievers=[base, trained]", "no trained encoder; run train"),
    ],
)
def test_evaluate_refuses_what_is_wrong_before_anything_is_started(
    driver: Driver, tmp_path: Path, tiny_encoder_folder: Path, override: str, reason: str
) -> None:
    run_file = write_run(tmp_path, tiny_encoder_folder, None)
    code, output = driver.call(run_file, "--set", override, stage="evaluate")
    assert code == 2
    assert [line for line in output.splitlines() if line.startswith("error:")] and reason in " ".join(output.split())
