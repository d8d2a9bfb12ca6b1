"""Sources, models and work in an object store, killed and ended elsewhere by `ray_jobs.pipeline`: as in a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedder.config.load import load_run
from embedder.storage.line_log import LineReader
from embedder.storage.object_store import ObjectPath, entries
from tests.cluster.conftest import Cluster
from tests.cluster.label_helpers import Driver
from tests.cluster.results import RESULTS
from tests.cluster.store_runs import with_inputs_in, write_run
from tests.object_store import KEYS, SECRET, ObjectStore
from tests.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def drivers(cluster: Cluster) -> Iterator[list[Driver]]:
    """Two of them."""
    started = [Driver(cluster.address, None) for _ in range(2)]
    yield started
    for driver in started:
        driver.close()


def run_stages(driver: Driver, run_file: Path, *stages: str) -> None:
    """Run some stages, which must succeed."""
    for stage in stages:
        code, output = driver.call(run_file, stage=stage)
        assert code == 0, output[-3000:]


def kill_while_it_trains(driver: Driver, run_file: Path, work: ObjectPath) -> None:
    """Kill the driver when the store has a checkpoint."""
    driver.begin(run_file, stage="train")
    wait_until(lambda: "manifest.json" in {name.rpartition("/")[2] for name in of_training(work)}, 120)
    assert driver.process.poll() is None
    driver.process.kill()
    driver.process.wait()


def of_training(work: ObjectPath) -> list[str]:
    """What the store has of a training that has not ended."""
    names = [name for name, _ in work.walk() if name.startswith("training/")]
    assert not any("/model/" in name for name in names), "the training has ended"
    return names


def test_stages_work_in_an_object_store_and_go_on_elsewhere(
    drivers: list[Driver], object_store: ObjectStore, run_file: Path, tmp_path: Path
) -> None:
    plain = write_run(tmp_path / "plain" / "run.yaml", run_file, str(tmp_path / "plain" / "work"))
    here, there, reader = (
        with_inputs_in(object_store, write_run(tmp_path / name / "run.yaml", run_file, object_store.uri("whole/work")))
        for name in ("here", "there", "reader")
    )
    run_stages(drivers[1], plain, "pipeline")
    run_stages(drivers[0], here, "prepare", "mine", "label")
    kill_while_it_trains(drivers[0], here, object_store.path("whole/work"))
    run_stages(drivers[1], there, "pipeline")
    expected, stored = load_run(plain), load_run(reader)
    for stage, result in RESULTS.items():
        assert result(stored) == result(expected), stage
    (training,) = entries(stored.paths.training, "*")
    begun = [line for line in LineReader(training / "metrics.jsonl").new() if json.loads(line)["step"] == 0]
    assert len(begun) == 1, "it was trained anew, not gone on with"
    work = object_store.path("whole/work")
    kept = [(work / name).open("rb").read() for name, _ in work.walk()]
    printed = "".join(line for driver in drivers for line in driver.lines).encode()
    for secret in (SECRET.encode(), KEYS.partition(":")[2].encode()):
        assert not any(secret in content for content in (*kept, printed)), "the store's key was kept or printed"


def test_pipeline_in_azure_ends_as_in_a_folder(
    drivers: list[Driver], azure: ObjectPath, run_file: Path, tmp_path: Path
) -> None:
    stored = write_run(tmp_path / "azure" / "run.yaml", run_file, (azure / "whole").reference)
    plain = write_run(tmp_path / "plain" / "run.yaml", run_file, str(tmp_path / "plain" / "work"))
    for path in (stored, plain):
        code, output = drivers[0].call(path, "--set", "train.steps=12", stage="pipeline")
        assert code == 0, output[-3000:]
    for stage, result in RESULTS.items():
        assert result(load_run(stored)) == result(load_run(plain)), stage
