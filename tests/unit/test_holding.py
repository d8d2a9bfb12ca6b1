"""Holding a run: a second job is refused whatever its settings, and one that was killed does not block the next."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from embedder.errors import LeaseError
from embedder.storage import holding as module
from embedder.storage.holding import check_lease, holding, is_gone, lease_objects, own_permit, this_process, wait_for
from embedder.storage.lease import Lease, newest
from tests.unit.lease_world import Memory, numbered

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys
from pathlib import Path
from embedder.storage import holding
holding.RENEW_EVERY_S = float(sys.argv[2])
with holding.holding(Path(sys.argv[1]), "label"):
    print("held", flush=True)
    sys.stdin.read()
"""


def start_holder(work: Path, renew_every_s: float = 10) -> subprocess.Popen[str]:
    """A process that holds the run until its input ends."""
    command = [sys.executable, "-c", HOLDER, str(work), str(renew_every_s)]
    started = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None and started.stdout.readline() == "held\n"
    return started


def test_holding_refuses_a_second_job_and_lets_the_next_in_at_once_when_the_first_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = start_holder(tmp_path)
    waited = []

    def renewed(seconds: float) -> None:
        """In place of waiting: what the holder does within ten seconds."""
        waited.append(seconds)
        objects = lease_objects(tmp_path)
        claim = newest(objects)
        objects.put(claim.number + 1, objects.get(claim.number).replace(b'"number": 1', b'"number": 2'))

    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=renewed))
    try:
        words = rf"label on .* \(process {holder.pid}\) is at work there, lease 1"
        with pytest.raises(LeaseError, match=words), holding(tmp_path, "train"):
            pass
        assert len(waited) == 1
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with holding(tmp_path, "train") as lease:
        assert lease.number == 3
    assert len(waited) == 1, "the process was known to be gone, so nobody waited"


def test_holding_gives_the_run_back_and_shows_the_number_to_writers(tmp_path: Path) -> None:
    assert own_permit() is None
    check_lease()
    with holding(tmp_path, "label"):
        permit = own_permit()
        permit.check()
        check_lease()
    assert newest(lease_objects(tmp_path)).ended
    with pytest.raises(LeaseError, match="lease 1 of the run is lost, nobody holds it"):
        permit.check()
    with holding(tmp_path, "label"), pytest.raises(LeaseError, match="lease 3"):
        permit.check()


def test_holding_leaves_nothing_beside_the_run_that_others_would_read(tmp_path: Path) -> None:
    with holding(tmp_path / "run", "label"):
        pass
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lease"]


def test_a_job_that_lost_the_run_ends_at_once_with_one_line(tmp_path: Path) -> None:
    """It is stopped, as a machine that sleeps; another one takes the run; then it goes on."""
    holder = start_holder(tmp_path, renew_every_s=0.2)
    objects = lease_objects(tmp_path)
    holder.send_signal(signal.SIGSTOP)
    claim = newest(objects)
    rival = replace(claim, number=claim.number + 2, lease=claim.number + 2, holder="b", who="train on two")
    # One after the next, since the holder may have been about to put that.
    objects.put(rival.number, json.dumps(asdict(rival)).encode())
    holder.send_signal(signal.SIGCONT)
    assert holder.wait(timeout=60) == 2
    told = holder.stdout.read()
    assert told.startswith("error: lease 1 of the run is lost, train on ")


def test_a_process_is_gone_when_its_number_is_free_or_another_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = this_process()
    machine, pid, start = mine.rsplit(" ", 2)
    assert int(pid) == os.getpid() and not is_gone(mine)
    assert is_gone(f"{machine} {pid} {int(start) + 1}")
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    began = module._state_and_start(child.pid)
    assert is_gone(f"{machine} {child.pid} {began[1]}"), "ended, though nobody has waited for it"
    child.wait()
    assert is_gone(f"{machine} {child.pid} {began[1]}")
    assert not is_gone(f"another-machine 1 {child.pid} {began[1]}")


def test_waiting_tells_whose_sign_it_waits_for(tmp_path: Path, monkeypatch, capsys) -> None:
    store, now = numbered(Memory()), [0.0]
    Lease(store, "a", "mine on one (process 7)", lambda: 0.0).take()
    clock = SimpleNamespace(sleep=lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr(module, "time", clock)
    rival = Lease(store, "b", "train", lambda: now[0])
    wait_for(rival, tmp_path)
    assert rival.number == 2 and now[0] == 30.0
    assert "mine on one (process 7) was at work there; watching for 30 s at most" in capsys.readouterr().out
