"""Every job in the order of the pipeline: the first by a real `ray job submit`, the others by drivers that are killed.

One driver does all until it is killed, and the next one goes on, so that a test waits for the imports once a driver.
All by the Jobs API: test_pipeline.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from embedder.config.load import load_run
from embedder.data.ledger import Ledger
from embedder.data.records import LABELLED, group_id
from embedder.index.bundle import verify
from embedder.training.job import MetricsReader
from ray_jobs.cluster.tables import candidate_groups, labelled_ledger
from tests.cluster.conftest import Cluster
from tests.cluster.label_helpers import Driver
from tests.cluster.results import served_bundle
from tests.waiting import wait_until

pytestmark = pytest.mark.ray
DATASETS = 6
QUERIES = 6
UNREWARDED = 2 * QUERIES
"""Groups of tool and convsearch, which pass `label` without the LLM and are committed first."""


class Drivers:
    """The driver that does what comes next; another one takes its place when it is killed."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.driver = self._new()

    def _new(self) -> Driver:
        return Driver(self.cluster.address, None, self.cluster.environment)

    def call(self, run_file: Path, stage: str, *overrides: str) -> tuple[int, str]:
        """Run a job to its end; its exit status and output on one line."""
        code, output = self.driver.call(run_file, *set_to(overrides), stage=stage)
        return code, " ".join(output.split())

    def succeed(self, run_file: Path, stage: str, *overrides: str) -> str:
        """The output of a job that must succeed."""
        code, output = self.call(run_file, stage, *overrides)
        assert code == 0, output[-3000:]
        return output

    def kill_when(self, holds: Callable[[], bool], run_file: Path, stage: str, *overrides: str) -> None:
        """Kill the driver in the middle of a job."""
        driver = self.driver
        driver.begin(run_file, *set_to(overrides), stage=stage)
        wait_until(lambda: holds() or driver.process.poll() is not None, 240)
        assert driver.process.poll() is None, driver.process.communicate()[0]
        driver.close()
        self.driver = self._new()


def set_to(overrides: Sequence[str]) -> list[str]:
    """Settings as options."""
    return [word for override in overrides for word in ("--set", override)]


@pytest.fixture(scope="module")
def drivers(cluster: Cluster) -> Iterator[Drivers]:
    """The drivers of all tests here."""
    started = Drivers(cluster)
    yield started
    started.driver.close()


def test_prepare_and_mine_write_a_group_for_every_training_query(
    cluster: Cluster, drivers: Drivers, run_file: Path
) -> None:
    job = cluster.submit("prepare", run_file)
    assert job.returncode == 0, job.stdout[-3000:] + job.stderr[-2000:]
    events = [json.loads(line) for line in job.stdout.splitlines() if line[:1] == "{"]
    ended = next(event for event in events if event.get("message") == "stage ended")
    assert ended["job_id"] and ended["node_id"] and ended["stage"] == "prepare" and ended["rows"] > 0
    drivers.succeed(run_file, "mine")
    groups = candidate_groups(load_run(run_file).paths).to_pylist()
    assert len(groups) == DATASETS * QUERIES
    for group in groups:
        assert len(group["candidate_ids"]) == len(set(group["candidate_ids"])) == 4
        assert group["query_id"] not in group["candidate_ids"]


def test_job_without_the_token_is_refused(cluster: Cluster, run_file: Path) -> None:
    stranger = Cluster(cluster.address, cluster.dashboard, {**cluster.environment, "RAY_AUTH_TOKEN": "wrong" * 8})
    assert stranger.submit("prepare", run_file).returncode != 0


def test_label_killed_half_way_and_started_again_loses_and_doubles_no_row(drivers: Drivers, run_file: Path) -> None:
    config = load_run(run_file)
    ledger = labelled_ledger(config)
    drivers.kill_when(lambda: len(ledger.done()) > UNREWARDED, run_file, "label")
    before = len(ledger.done())
    wanted = sorted(group_id(group) for group in candidate_groups(config.paths).to_pylist())
    assert UNREWARDED < before < len(wanted)
    output = drivers.succeed(run_file, "label")
    table = ledger.read()
    assert sorted(table["row_id"].to_pylist()) == wanted
    assert "0 were labelled before" not in output and f"{len(wanted)} groups in = {len(wanted)} out" in output
    rewarded = [row for row in table.to_pylist() if row["task"] not in {"tool", "convsearch"}]
    assert all(len(row["rewards"]) == len(row["candidate_ids"]) for row in rewarded)
    details = json.loads((config.paths.reports / "label.json").read_text(encoding="utf-8"))["details"]
    resources, estimate = details["resources"], details["estimate"]
    assert estimate["flops"] > 0 and f"{estimate['gpu_hours']:,.2g} GPU-hours" in output
    assert 0 <= resources["cpu_hours"] < 2 * resources["seconds"] / 3600 and resources["gpu_hours"] == 0


def test_label_refuses_another_prompt_before_a_model_is_loaded(drivers: Drivers, run_file: Path) -> None:
    code, output = drivers.call(run_file, "label", "tasks.qa.shots=1")
    assert code == 2 and "error:" in output and "another LLM, prompt" in output


def test_train_killed_half_way_goes_on_and_a_finished_run_trains_no_more(drivers: Drivers, run_file: Path) -> None:
    config, shown = load_run(run_file), "train.tensorboard=true"
    drivers.kill_when(lambda: len(_steps(config.paths.training)) >= 5, run_file, "train", shown)
    output = drivers.succeed(run_file, "train", shown)
    assert "negatives a query" in output and "GiB a worker" in output and "minutes here" in output
    assert [step for step, _ in _steps(config.paths.training)] == list(range(12))
    assert (config.paths.model / "model.safetensors").is_file()
    assert "## Tasks and prompts" in (config.paths.model / "README.md").read_text(encoding="utf-8")
    assert {path.suffix for path in config.paths.reports.glob("training.*")} == {".html", ".json", ".png"}
    assert len(list(config.paths.training.glob("*/tensorboard/events*"))) >= 2
    before = _steps(config.paths.training)
    again = drivers.succeed(run_file, "train", "train.save_every=5")
    assert "negatives a query" not in again and "trained before" in again
    assert _steps(config.paths.training) == before


def _steps(training: Path) -> list[tuple[int, float]]:
    """Step and loss of the only run below a folder."""
    files = list(training.glob("*/metrics.jsonl"))
    return [(row.step, row.loss) for path in files for row in MetricsReader(path).steps()]


def test_index_writes_a_bundle_that_verifies_and_a_second_run_encodes_nothing(drivers: Drivers, run_file: Path) -> None:
    config = load_run(run_file)
    drivers.succeed(run_file, "index")
    first = verify(served_bundle(config))
    drivers.succeed(run_file, "index")
    assert verify(served_bundle(config)).index_version == first.index_version
    report = json.loads((config.paths.reports / "index.json").read_text(encoding="utf-8"))
    assert report["details"]["encoded"] == 0
    assert report["rows"] == sum(pq.read_metadata(path).num_rows for path in config.paths.corpus.glob("*/*.parquet"))


def test_evaluate_compares_all_retrievers(drivers: Drivers, run_file: Path) -> None:
    config = load_run(run_file)
    drivers.succeed(run_file, "evaluate")
    folder = config.paths.work / "evaluation" / "test"
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert set(results["tasks"]) == {"qa", "convsearch", "tool", "chat", "icl", "lrlm"}
    summary = json.loads(config.paths.summary.read_text(encoding="utf-8"))
    assert summary["tasks"].keys() == results["tasks"].keys()
    measures = {name: values["measures"] for name, values in results["datasets"].items()}
    assert set(measures["stdlib"]["nDCG@5"]["retrievers"]) == {"random", "bm25", "base", "trained"}
    answered = measures["python-docs"]["exact match"]
    assert set(answered["retrievers"]) == {"none", "random", "bm25", "base", "trained"} and answered["queries"] == 2
    assert "trained" in answered["differences"]
    assert "recency" in measures["assistant"]["perplexity"]["retrievers"]
    assert measures["stdlib-source"]["perplexity"]["queries"] == 2
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_ledger_does_not_read_half_written_blocks(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, LABELLED, "row_id")
    (tmp_path / ".block.parquet.123").write_bytes(b"half")
    assert ledger.done() == set()
