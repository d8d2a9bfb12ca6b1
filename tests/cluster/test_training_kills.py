"""Training whose workers and drivers are killed with -9 at random steps: the losses of the undisturbed run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from embedder.config.load import load_run
from embedder.data.ledger import Ledger
from embedder.data.records import GROUP, LABELLED, group_id, write_table
from embedder.training.job import MetricsReader, StepMetrics
from tests.cluster.conftest import Cluster
from tests.unit.training_ranks import groups
from tests.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]
STEPS = 50
ROUNDS = 6
ALONE = 2
"""The last rounds, in which one worker goes on where two stopped."""
OTHER_WORLD = "train.num_workers=1"
ROUNDING = 1e-4
"""Losses of one worker differ from those of two by the order of their sums, which each step then carries on."""


def write_run(folder: Path, encoder: Path) -> Path:
    """A run whose groups are labelled already."""
    made = [{"answers": ["x"], **group} for group in groups()]
    made = [{name: group[name] for name in GROUP.names} | {"rewards": group["rewards"]} for group in made]
    labels = [
        {**dict.fromkeys(LABELLED.names), **group, "row_id": group_id(group), "label_fingerprint": "x"}
        for group in made
    ]
    write_table([{name: group[name] for name in GROUP.names} for group in made], GROUP, folder / "candidates/a.parquet")
    Ledger(folder / "labelled" / "blocks", LABELLED, "row_id").commit(labels)
    train = {"steps": STEPS, "batch_size": 4, "learning_rate": 1e-3, "temperature": 0.1, "save_every": 2}
    train |= {"max_failures": 20, "validation": {"share": 0.25, "every": 5}, "self_paced": {"checkpoint_every": 10}}
    run = {
        "paths": {"work": str(folder), "cache": str(folder / "cache")},
        "encoder": {"model": str(encoder), "pooling": "mean", "max_tokens": 64},
        "train": train,
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run), encoding="utf-8")
    return path


def trainings(run_file: Path) -> list[Path]:
    """Folders of the run's trainings."""
    return list(load_run(run_file).paths.training.glob("*/"))


def steps(run_file: Path) -> list[StepMetrics]:
    """What the only training of a run has reported."""
    return [step for folder in trainings(run_file) for step in MetricsReader(folder / "metrics.jsonl").steps()]


def train_workers() -> list[int]:
    """Processes of this session's Ray in which a worker trains."""
    token = os.environ["RAY_AUTH_TOKEN_PATH"].encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"RayTrainWorker" in (process / "cmdline").read_bytes() and token in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue  # it has ended
    return found


def is_reached(goal: Callable[[], bool], driver: subprocess.Popen[str]) -> bool:
    """Wait for a goal; false if the driver ends first."""
    wait_until(lambda: goal() or driver.poll() is not None, timeout_s=200)
    return goal()


def finish(driver: subprocess.Popen[str]) -> str:
    """The output of a driver that must succeed."""
    output = driver.communicate(timeout=300)[0]
    assert driver.returncode == 0, output[-3000:]
    return output


def test_kills_change_no_loss(cluster: Cluster, tmp_path: Path, tiny_encoder_folder: Path) -> None:
    plain, killed = (write_run(tmp_path / name, tiny_encoder_folder) for name in ("plain", "killed"))
    undisturbed = cluster.start("train", plain)
    finish(undisturbed)
    draw = random.Random(20261123)
    driver = cluster.start("train", killed)
    alone_from = STEPS
    for number in range(ROUNDS):
        alone = number >= ROUNDS - ALONE
        if number == ROUNDS - ALONE:
            alone_from = len(steps(killed))
        target = len(steps(killed)) + draw.randint(1, 4)
        assert is_reached(lambda target=target: len(steps(killed)) >= target, driver), finish(driver)
        if draw.random() < 0.6 and number + 1 != ROUNDS - ALONE:
            os.kill(draw.choice(train_workers()), signal.SIGKILL)
            continue
        driver.kill()
        driver.communicate()
        driver = cluster.start("train", killed, *([OTHER_WORLD] if alone or number + 1 == ROUNDS - ALONE else []))
    finish(driver)
    compare(plain, killed, alone_from)


def compare(plain: Path, killed: Path, alone_from: int) -> None:
    """Bit for bit while two workers trained, within rounding after; each repeated step as it was the first time."""
    expected, found = steps(plain), steps(killed)
    assert [step.step for step in found] == list(range(STEPS))
    for mine, other in zip(found, expected, strict=True):
        if mine.step < alone_from and mine.workers == 2:
            assert (mine.losses, mine.validation, mine.paces) == (other.losses, other.validation, other.paces)
            assert mine.learning_rate == other.learning_rate
        assert mine.losses == pytest.approx(other.losses, abs=ROUNDING)
    assert {step.workers for step in found} == {1, 2}
    (folder,) = trainings(killed)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(lines) > STEPS
    for line in lines:
        assert line["losses"] == pytest.approx(expected[line["step"]].losses, abs=ROUNDING)
    outcomes = [json.loads((trainings(run)[0] / "outcome.json").read_text(encoding="utf-8")) for run in (plain, killed)]
    assert outcomes[0]["steps"] == outcomes[1]["steps"] == STEPS
    histories = [[one["mean"] for one in outcome["validation"]["history"]] for outcome in outcomes]
    assert histories[1] == pytest.approx(histories[0], abs=1e-2)
