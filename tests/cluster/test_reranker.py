"""The reranker on Ray: killed while it trains and while it labels, it goes on where it was; then it is served."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from fastapi.testclient import TestClient

from embedder.config.load import load_run
from embedder.data.ledger import Ledger
from embedder.data.records import GROUP, LABELLED, PASSAGE, group_id, write_table
from embedder.index.bundle import verify
from embedder.storage.fetched import local_copy
from embedder.training.cross_encoder import load_cross_encoder
from ray_jobs.labelling.block_plan import select_llm_groups
from ray_jobs.labelling.reranker import run_name
from serve.api import make_api
from tests.cluster.conftest import ROOT, Cluster
from tests.cluster.results import served_bundle
from tests.object_store import ObjectStore, send
from tests.serving import local_service
from tests.waiting import wait_until

pytestmark = pytest.mark.ray
GROUPS = 600
STEPS = 30
NAMES = ["fox", "dog", "list", "city", "bridge", "set", "dict", "market"]


def planted(number: int) -> dict[str, object]:
    """A group of the task qa whose query begins with a word of one of its candidates."""
    names = random.Random(number).sample(NAMES, 4)
    ids = [f"p-{name}" for name in names]
    texts = {"candidate_ids": ids, "candidate_texts": [f"the {name}" for name in names]}
    group = {
        "task": "qa",
        "dataset": "words",
        "query_id": str(number),
        "query": f"{names[number % 4]} {number}",
        "answers": ["x"],
    }
    return {**group, **texts, "relevance": [0] * 4}


def llm_row(group: dict[str, object]) -> dict[str, object]:
    """The group as the LLM would have labelled it."""
    rewards = [3.0 if str(group["query"]).split()[0] in text else 0.0 for text in group["candidate_texts"]]
    made = {"row_id": group_id(group), "rewards": rewards, "reward": "rank", "label_fingerprint": "llm"}
    return {**dict.fromkeys(LABELLED.names), **group, **made}


@pytest.fixture
def run_file(tmp_path: Path, tiny_encoder_folder: Path) -> Path:
    """A run whose LLM has labelled 200 groups of 600."""
    groups = [planted(number) for number in range(GROUPS)]
    write_table(groups, GROUP, tmp_path / "work" / "candidates" / "words.parquet")
    write_table([llm_row(group) for group in groups[:200]], LABELLED, tmp_path / "llm.parquet")
    reranker = {"model": str(tiny_encoder_folder), "steps": STEPS, "max_tokens": 32, "learning_rate": 0.003}
    run = {
        "paths": {"work": str(tmp_path / "work"), "cache": str(tmp_path / "cache")},
        "encoder": {"model": str(tiny_encoder_folder), "pooling": "mean", "max_tokens": 64},
        "label": {"num_actors": 1},
        "reranker": {**reranker, "batch_size": 8, "num_workers": 2, "save_every": 5},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run), encoding="utf-8")
    return path


def start(cluster: Cluster, run_file: Path) -> subprocess.Popen[str]:
    """The driver on the session's Ray."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.cluster.reranker_driver", str(run_file)],
        env={**cluster.environment, "RAY_ADDRESS": cluster.address},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_when(cluster: Cluster, run_file: Path, reached: Callable[[], bool]) -> None:
    """Start the driver and kill it once something is reached."""
    driver = start(cluster, run_file)
    try:
        wait_until(lambda: reached() or driver.poll() is not None, timeout_s=240)
        assert driver.poll() is None, driver.communicate()[0]
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.communicate()


def losses(work: Path) -> dict[int, set[float]]:
    """Losses of every step of the only training run; a repeated step must repeat its loss."""
    found: dict[int, set[float]] = {}
    for path in (work / "reranker").glob("*/metrics.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            step = json.loads(line)
            found.setdefault(step["step"], set()).add(round(step["loss"], 6))
    return found


@pytest.mark.slow
def test_killed_twice_it_trains_each_step_alike_and_labels_each_group_once(cluster: Cluster, run_file: Path) -> None:
    config = load_run(run_file)
    ledger, model = Ledger(config.paths.labelled / "blocks", LABELLED, "row_id"), config.paths.work / "reranker/model"
    kill_when(cluster, run_file, lambda: len(losses(config.paths.work)) > 6)
    assert not model.exists()
    kill_when(cluster, run_file, lambda: bool(ledger.done()))
    steps = losses(config.paths.work)
    assert sorted(steps) == list(range(STEPS)) and all(len(values) == 1 for values in steps.values())
    assert 0 < len(ledger.done()) <= GROUPS
    trained = (model / "model.safetensors").stat().st_mtime_ns
    driver = start(cluster, run_file)
    output = driver.communicate(timeout=300)[0]
    assert driver.returncode == 0, output[-3000:]
    assert "chosen 3" in output and "held-out groups" in output
    assert (model / "model.safetensors").stat().st_mtime_ns == trained
    rows = ledger.read([group_id(planted(number)) for number in range(GROUPS)]).to_pylist()
    assert len(rows) == GROUPS and ledger.count_duplicates() == 0
    assert {(row["reward"], row["label_fingerprint"], row["error"]) for row in rows} == {("reranker", "print", None)}
    assert all(len(set(row["rewards"])) == 4 for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("in_store", [False, True])
def test_reranker_that_labelled_is_in_the_index_of_its_run_and_answers_there(
    cluster: Cluster, run_file: Path, tiny_encoder_folder: Path, object_store: ObjectStore, in_store: bool
) -> None:
    run = yaml.safe_load(run_file.read_text(encoding="utf-8"))
    if in_store:
        send(Path(run["paths"]["work"]), object_store.path("reranker/work"))
        run["paths"]["work"] = object_store.uri("reranker/work")
    run["index"] = {"model": str(tiny_encoder_folder), "num_shards": 1}
    run["label"]["teacher"] = "reranker"
    run["serve"] = {"host_names": ["testserver"]}
    run_file.write_text(yaml.safe_dump(run), encoding="utf-8")
    config = load_run(run_file)
    passages = [{"task": "qa", "dataset": "words", "id": f"p-{name}", "text": f"the {name}"} for name in NAMES]
    write_table(passages, PASSAGE, config.paths.corpus / "words" / "passages.parquet")
    for begin in (lambda: start(cluster, run_file), lambda: cluster.start("index", run_file)):
        driver = begin()
        output, _ = driver.communicate(timeout=300)
        assert driver.returncode == 0, output[-3000:]
    assert "the reranker that `label` trained is served beside it" in output
    assert verify(served_bundle(config)).has_reranker
    texts = [passage["text"] for passage in passages]
    wanted = load_cross_encoder(str(local_copy(config.paths.reranker)), 32, 256, "cpu").score(
        [("fox 1", text) for text in texts]
    )
    with TestClient(make_api(local_service(config), lambda *_: None)) as client:
        answer = client.post("/v1/rerank", json={"query": "fox 1", "documents": texts, "raw_scores": True}).json()
    given = {one["index"]: one["relevance_score"] for one in answer["results"]}
    assert [given[i] for i in range(len(texts))] == pytest.approx(wanted, abs=1e-5)
    driver = cluster.start("index", run_file, "label.teacher=llm")
    output, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, output[-3000:]
    assert not verify(served_bundle(config)).has_reranker


def chosen(rows: list[dict[str, object]], count: int, seed: int = 0) -> set[tuple[object, object]]:
    """Dataset and query of the groups the LLM is to label."""
    selected = select_llm_groups(rows, count, seed)
    inside = selected.contains([group_id(row) for row in rows])
    return {(row["dataset"], row["query_id"]) for row, is_chosen in zip(rows, inside, strict=True) if is_chosen}


def test_the_groups_for_the_llm_are_chosen_by_hash_within_each_dataset() -> None:
    rows = [planted(number) for number in range(40)]
    rows += [{**planted(number), "dataset": "few"} for number in range(3)]
    some = chosen(rows, 10)
    assert [sum(dataset == name for dataset, _ in some) for name in ("words", "few")] == [10, 3]
    shuffled = random.Random(0).sample(rows, len(rows))
    assert chosen(shuffled, 10) == some
    assert chosen(rows[:40], 10) == {one for one in some if one[0] == "words"}
    assert some < chosen(rows, 20)
    assert chosen(rows, 10, seed=1) != some
    assert len(chosen(rows, 100)) == len(rows) and chosen([], 5) == set()


def test_a_reranker_is_known_by_rewards_and_settings_that_matter(run_file: Path) -> None:
    config = load_run(run_file)
    rows = [llm_row(planted(number)) for number in range(5)]
    name = run_name(config, rows)
    assert run_name(config, rows[::-1]) == name
    assert run_name(load_run(run_file, ["reranker.num_workers=1", "reranker.save_every=9"]), rows) == name
    others = [run_name(config, rows[:4]), run_name(config, [{**rows[0], "rewards": [0.0] * 4}, *rows[1:]])]
    for override in ("reranker.seed=1", "reranker.max_tokens=16", "tasks.qa.reward_temperature=0.5"):
        others.append(run_name(load_run(run_file, [override]), rows))
    assert len({name, *others}) == 6
