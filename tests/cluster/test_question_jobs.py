"""A folder of texts without any question becomes a trained, evaluated and indexed retriever."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from benchmarks.bare_corpus import Size, compare
from embedder.config.load import load_run
from embedder.config.run import RunConfig
from embedder.data.records import QUERY, parquet_files, read_tables
from embedder.index.bundle import verify
from embedder.run.written import prepared_files, written_files
from ray_jobs.writing.draft_tables import check_ledger, draft_ledger, questions_fingerprint
from tests.cluster.conftest import Cluster
from tests.cluster.results import served_bundle
from tests.unit.tiny_folders import write_jsonl
from tests.waiting import wait_until
from tests.writing_llm import EXAMPLE, passage, save_writing_llm

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PASSAGES, ASKED = 60, 48


@pytest.fixture(scope="module")
def bare_run(tiny_encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of documents without questions, with tiny models."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "texts").mkdir()
    for number in range(PASSAGES):
        (folder / "texts" / f"{number:03d}.txt").write_text(passage(number), encoding="utf-8")
    source = {"task": "qa", "dataset": "texts", "path": str(folder / "texts"), "format": "documents"}
    run = {
        "paths": {"work": str(folder / "work"), "cache": str(folder / "cache")},
        "encoder": {"model": str(tiny_encoder_folder), "pooling": "mean", "max_tokens": 128, "num_actors": 1},
        "llm": {"model": str(save_writing_llm(folder / "llm")), "max_prefix_tokens": 640, "batch_tokens": 1024},
        "tasks": {"qa": {"reward": "none", "loss": "contrastive", "passage_instruction": "", "query_instruction": ""}},
        "prepare": {"sources": [source]},
        "questions": {"passages": ASKED, "kinds": ["fact"], "examples": [EXAMPLE], "block_rows": 3, "test_share": 0.4},
        "mine": {"group_size": 3, "window": [1, 20]},
        "label": {"num_actors": 1},
        "train": {"steps": 2, "batch_size": 2, "learning_rate": 0.001, "temperature": 0.05},
        "index": {"num_shards": 1},
        "evaluate": {"resamples": 100},
    }
    # A tiny LLM knows nothing of the passages, so that a gain is chance.
    run["questions"] |= {"min_gain": 0.0, "other_passages": 1, "found_within": 100, "num_samples": 3, "max_tokens": 48}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run), encoding="utf-8")
    return path


def written(config: RunConfig, split: str) -> list[dict]:
    return read_tables(parquet_files(config.paths.queries / split), QUERY).to_pylist()


def test_a_killed_job_of_questions_goes_on_where_it_was(cluster: Cluster, bare_run: Path) -> None:
    config = load_run(bare_run)
    prepared = cluster.submit("prepare", bare_run)
    assert prepared.returncode == 0, prepared.stdout + prepared.stderr
    ledger = draft_ledger(config.paths, questions_fingerprint(config))
    driver = cluster.start("questions", bare_run)
    wait_until(lambda: bool(parquet_files(ledger.folder)) or driver.poll() is not None, 240)
    driver.kill()
    output = driver.communicate(timeout=60)[0]
    before = {path: path.stat().st_mtime_ns for path in parquet_files(ledger.folder)}
    assert before, output
    again = cluster.submit("questions", bare_run)
    assert again.returncode == 0, again.stdout + again.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert ledger.count_duplicates() == 0 and len(ledger.row_ids()) == ASKED
    train, test = written(config, "train"), written(config, "test")
    asked_of = [{passage_id for row in rows for passage_id in row["positive_ids"]} for rows in (train, test)]
    assert train and test and not asked_of[0] & asked_of[1]
    report = json.loads((config.paths.reports / "questions.json").read_text(encoding="utf-8"))
    details = report["details"]["texts"]
    assert details["kept"] == len(train) + len(test) == report["rows"]
    assert details["asked"] == details["kept"] + sum(details["reasons"].values()) == ASKED
    assert details["examples"]["kept"][0]["query"] in {row["query"] for row in train + test}


def test_a_folder_of_texts_becomes_a_trained_and_measured_index(cluster: Cluster, bare_run: Path) -> None:
    config = load_run(bare_run)
    done = cluster.submit("pipeline", bare_run)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert verify(served_bundle(config)).collections["qa"] == PASSAGES
    summary = json.loads(config.paths.summary.read_text(encoding="utf-8"))
    assert "qa" in json.dumps(summary)
    again = cluster.submit("pipeline", bare_run)
    assert "0 of 7 stages run" in again.stdout, again.stdout[-4000:]


def test_other_thresholds_need_no_llm_and_leave_no_old_question(cluster: Cluster, bare_run: Path) -> None:
    config = load_run(bare_run)
    fingerprint = questions_fingerprint(config)
    blocks = [*parquet_files(draft_ledger(config.paths, fingerprint).folder)]
    blocks += parquet_files(check_ledger(config.paths, fingerprint).folder)
    before, prepared = {path: path.stat().st_mtime_ns for path in blocks}, prepared_files(config.paths)
    done = cluster.submit("questions", bare_run, "questions.test_share=0", "questions.duplicate_overlap=1.0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path: path.stat().st_mtime_ns for path in blocks} == before
    assert not written(config, "test") and prepared_files(config.paths) == prepared
    assert [path.parent.name for path in written_files(config.paths)] == ["train"]
    without = cluster.submit("prepare", bare_run)
    assert without.returncode == 0 and not written(config, "train")


def test_the_benchmark_compares_written_with_human_questions(
    cluster: Cluster, bare_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, run = tmp_path / "data" / "qa" / "nq", yaml.safe_load(bare_run.read_text(encoding="utf-8"))
    write_jsonl(data / "corpus.jsonl", [{"id": f"p{number}", "text": passage(number)} for number in range(PASSAGES)])
    for split, numbers in (("train", range(20)), ("test", range(20, 26))):
        rows = [{"query": f"what of number {i}?", "answers": ["red"], "pos_ids": [f"p{i}"]} for i in numbers]
        write_jsonl(data / f"{split}.jsonl", rows)
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    sections = {name: run[name] for name in ("encoder", "llm", "questions", "mine", "label", "train")}
    size = Size(passages=PASSAGES, asked=12, test=6, steps=2, seeds=1)
    found = compare(size, tmp_path / "data", tmp_path / "out", sections)
    assert 0 < found["train_queries"] <= 12 and found["queries"] == 6
    assert found["low"] <= found["difference"] <= found["high"]
    assert found["difference"] == pytest.approx(found["written"] - found["human"])
