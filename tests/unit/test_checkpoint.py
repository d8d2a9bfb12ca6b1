"""Checkpoints: whole or not there, whatever is cut, changed or left half-written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from embedder.errors import DataError
from embedder.storage.durable import appearing
from embedder.training import checkpoint as module
from embedder.training.checkpoint import (
    MANIFEST,
    Checkpoint,
    damage,
    last_step,
    read_checkpoint,
    write_checkpoint,
)

FILES = ("weights.safetensors", "optimizer.safetensors", "best.safetensors", "state.json", MANIFEST)


def checkpoint(step, best=True):
    weights = {"a.weight": torch.arange(6.0).view(2, 3) + step, "b": torch.tensor(0.1)}
    return Checkpoint(
        next_step=step,
        weights=weights,
        moments={f"{name}.exp_avg": value / 3 for name, value in weights.items()},
        best={name: value * 2 for name, value in weights.items()} if best else {},
        self_paced={"current": {"qa": 0.1 + 0.2}},
        validation={"history": [{"steps": 0, "tasks": {"qa": 1 / 3}, "mean": 1 / 3}], "best": 0},
    )


def test_checkpoints_in_a_store_are_whole_or_passed_over(object_store, tmp_path):
    place = object_store.path(f"training/{tmp_path.name}/checkpoints")
    assert last_step(place) is None
    for step in (10, 20, 30):
        write_checkpoint(place, checkpoint(step))
    assert sorted(path.name for path in place.glob("*")) == ["step-00000020", "step-00000030"]
    assert last_step(place) == 30
    assert torch.equal(read_checkpoint(place, 30).weights["b"], checkpoint(30).weights["b"])
    # As a kill leaves it while it is sent: its hashes are there, and not all of its files.
    (place / "step-00000030" / "optimizer.safetensors").unlink()
    assert last_step(place) == 20
    assert [path.name for path in place.glob("*")] == ["step-00000020"]


def test_disk_of_this_machine_that_fails_costs_no_checkpoint_in_a_store(object_store, tmp_path, monkeypatch):
    place = object_store.path(f"training/{tmp_path.name}/checkpoints")
    write_checkpoint(place, checkpoint(10))
    (tmp_path / "cache").write_text("no folder")
    monkeypatch.setenv("LLM_EMBEDDER_CACHE", str(tmp_path / "cache" / "inside"))
    with pytest.raises(OSError):
        last_step(place)
    assert [path.name for path in place.glob("*")] == ["step-00000010"]


@pytest.fixture
def folder(tmp_path):
    """Two checkpoints, of steps 10 and 20."""
    write_checkpoint(tmp_path / "checkpoints", checkpoint(10))
    write_checkpoint(tmp_path / "checkpoints", checkpoint(20))
    return tmp_path / "checkpoints"


@pytest.mark.parametrize("best", [True, False])
def test_checkpoint_comes_back_bit_for_bit(tmp_path, best):
    written = checkpoint(7, best)
    write_checkpoint(tmp_path, written)
    found = read_checkpoint(tmp_path, 7)
    for name in ("weights", "moments", "best"):
        tensors, expected = getattr(found, name), getattr(written, name)
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[key], expected[key]) for key in expected)
    assert (found.next_step, found.self_paced, found.validation) == (7, written.self_paced, written.validation)


def test_checkpoint_of_another_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FORMAT", 2)
    write_checkpoint(tmp_path, checkpoint(7))
    monkeypatch.undo()
    assert last_step(tmp_path) == 7
    with pytest.raises(DataError, match=r"is of format 2, .* remove"):
        read_checkpoint(tmp_path, 7)


def test_last_step_is_the_newest_and_two_are_kept(folder):
    assert last_step(folder) == 20
    write_checkpoint(folder, checkpoint(100))
    assert last_step(folder) == 100
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000020", "step-00000100"]


def test_last_step_of_no_folder_and_an_empty_one_is_none(tmp_path):
    assert last_step(tmp_path / "nowhere") is None
    assert last_step(tmp_path) is None


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["cut", "empty", "gone", "changed"])
def test_checkpoint_that_is_damaged_is_passed_over_for_the_one_before(folder, name, harm, caplog):
    path = folder / "step-00000020" / name
    content = path.read_bytes()
    if harm == "gone":
        path.unlink()
    else:
        middle = len(content) // 2
        changed = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes({"cut": content[:middle], "empty": b"", "changed": changed}[harm])
    assert damage(path.parent)
    assert last_step(folder) == 10
    assert "going back to the checkpoint before" in caplog.text
    assert read_checkpoint(folder, 10).next_step == 10
    assert not path.parent.exists()
    write_checkpoint(folder, checkpoint(20))
    assert last_step(folder) == 20


def test_last_step_clears_away_what_was_never_finished(folder):
    half = folder / ".unfinished-0123"
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"half")
    assert last_step(folder) == 20
    assert not half.exists()


def test_checkpoint_that_stands_already_stays(folder):
    write_checkpoint(folder, checkpoint(20, best=False))
    assert read_checkpoint(folder, 20).best
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_appearing_folder_that_is_not_written_to_its_end_never_appears(tmp_path):
    with pytest.raises(OSError, match="disk full"), appearing(tmp_path / "model") as staged:
        (staged / "file").write_text("half")
        raise OSError("disk full")
    assert list(tmp_path.iterdir()) == []


WRITER = """
import signal, sys, torch
from pathlib import Path
from embedder.training.checkpoint import Checkpoint, write_checkpoint
weights = {str(i): torch.randn(50_000) for i in range(8)}
# The processor's time of this process alone, so that other work on the machine does not decide how far it comes.
signal.setitimer(signal.ITIMER_PROF, float(sys.argv[2]))
for step in range(1, 10_000):
    write_checkpoint(Path(sys.argv[1]), Checkpoint(step, weights, weights))
"""


def test_checkpoint_writer_killed_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    root = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    last = 0
    for seconds in ("0.3", "0.35", "0.43"):
        command = [sys.executable, "-c", WRITER, str(tmp_path), seconds]
        writer = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=240)
        assert writer.returncode == -signal.SIGPROF, writer.stderr  # which ends a process as SIGKILL does
        found = last_step(tmp_path)
        assert found is not None and found >= 1
        assert read_checkpoint(tmp_path, found).weights.keys() == {str(i) for i in range(8)}
        last = max(last, found)
    assert last > 1
