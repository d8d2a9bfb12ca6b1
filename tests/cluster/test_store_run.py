"""Sources, models and work in an object store, killed and ended elsewhere by `ray_jobs.pipeline`: as in a folder."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from embedder.config.load import load_run
from embedder.run.workspace import workplace
from embedder.storage.mirror import read_state
from embedder.storage.object_store import ObjectPath
from tests.cluster.conftest import Cluster
from tests.cluster.label_helpers import Driver
from tests.cluster.results import RESULTS
from tests.object_store import KEYS, SECRET, ObjectStore, send
from tests.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def write_run(path: Path, session: Path, work: str) -> Path:
    """The session's tasks qa and tool in another place."""
    run = yaml.safe_load(session.read_text(encoding="utf-8"))
    run["prepare"]["sources"] = [source for source in run["prepare"]["sources"] if source["task"] in {"qa", "tool"}]
    run["paths"] = {"work": work, "cache": str(path.parent / "cache")}
    run["train"] |= {"steps": 120, "save_every": 4, "num_workers": 1}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(run), encoding="utf-8")
    return path


@pytest.fixture
def drivers(cluster: Cluster) -> Iterator[list[Driver]]:
    """Two of them."""
    started = [Driver(cluster.address, None) for _ in range(2)]
    yield started
    for driver in started:
        driver.close()


def with_inputs_in(store: ObjectStore, run_file: Path) -> Path:
    """The same run with its sources and models in the store too."""
    run = yaml.safe_load(run_file.read_text(encoding="utf-8"))
    for section in (*run["prepare"]["sources"], run["encoder"], run["llm"]):
        key = "path" if "path" in section else "model"
        folder = Path(section[key])
        send(folder, store.path(f"inputs/{folder.name}"))
        section[key] = store.open_uri(f"inputs/{folder.name}")
    run_file.write_text(yaml.safe_dump(run), encoding="utf-8")
    return run_file


def run_stages(driver: Driver, run_file: Path, *stages: str) -> None:
    """Run some stages, which must succeed."""
    for stage in stages:
        code, output = driver.call(run_file, stage=stage)
        assert code == 0, output[-3000:]


def kill_while_it_trains(driver: Driver, run_file: Path, work: ObjectPath) -> None:
    """Kill the driver when the store has a checkpoint and some steps, and no file there is being replaced.

    Killed in the middle of that, it would have to go on on the same machine (tests/unit/test_mirror.py).
    """
    driver.begin(run_file, stage="train")
    wanted = {"manifest.json", "metrics.jsonl"}
    wait_until(lambda: wanted <= {name.rpartition("/")[2] for name in of_training(work)}, 120)

    def stands_between_pushes() -> bool:
        # Stopped before the look, so that it cannot begin a push between the look and its death.
        driver.process.send_signal(signal.SIGSTOP)
        if not read_state(work).replacing:
            return True
        driver.process.send_signal(signal.SIGCONT)
        return False

    assert driver.process.poll() is None
    wait_until(stands_between_pushes, 60)
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
    expected = load_run(plain)
    with workplace(load_run(reader), writes=False) as stored:
        for stage, result in RESULTS.items():
            assert result(stored) == result(expected), stage
        (metrics,) = stored.paths.training.glob("*/metrics.jsonl")
        begun = [line for line in metrics.read_text(encoding="utf-8").splitlines() if json.loads(line)["step"] == 0]
        assert len(begun) == 1, "it was trained anew, not gone on with"
        kept = [path.read_bytes() for path in stored.paths.mounted.rglob("*") if path.is_file()]
    printed = "".join(line for driver in drivers for line in driver.lines).encode()
    for secret in (SECRET.encode(), KEYS.partition(":")[2].encode()):
        assert not any(secret in content for content in (*kept, printed)), "the store's key was kept or printed"
