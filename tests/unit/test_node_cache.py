"""What a machine keeps of object stores: within a bound, the last used longest, and never less than is in use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from embedder.errors import ConfigError
from embedder.storage.node_cache import BOUND, PLACE, cache_folder, drop_entry, filling, make_room, scratch, used_entry

USER = """
import sys
from embedder.storage.node_cache import used_entry
used_entry("other")
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has fetched nothing yet."""
    monkeypatch.setenv(PLACE, str(tmp_path / "cache"))


def fill(name: str, size: int, age_s: int = 0) -> Path:
    """An entry of so many bytes that was used so long ago."""
    entry = used_entry(name)
    with filling(entry):
        entry.mkdir()
        (entry / "file").write_bytes(bytes(size))
    used = entry.with_name(f".{name}.used")
    os.utime(used, (used.stat().st_atime, used.stat().st_mtime - age_s))
    return entry


def release(name: str) -> None:
    """Let go of an entry as the end of a process does."""
    from embedder.storage import node_cache

    node_cache._in_use.pop(cache_folder() / name).close()


def test_entries_that_nobody_uses_go_from_the_one_that_was_used_longest_ago() -> None:
    entries = {name: fill(name, 1000, age) for name, age in (("new", 0), ("old", 20), ("older", 30), ("used", 40))}
    for name in ("new", "old", "older"):
        release(name)
    make_room(2500)
    assert {name for name, entry in entries.items() if entry.is_dir()} == {"new", "used"}
    make_room(0)
    assert {name for name, entry in entries.items() if entry.is_dir()} == {"used"}


def test_entry_that_another_process_uses_stays_until_that_ends() -> None:
    entry = fill("other", 1000)
    release("other")
    with subprocess.Popen([sys.executable, "-c", USER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:
        assert user.stdout and user.stdout.readline() == b"ready\n"
        make_room(0)
        drop_entry("other")
        assert entry.is_dir()
        user.kill()
    drop_entry("other")
    assert not entry.exists()


def test_entry_that_is_dropped_may_be_filled_again() -> None:
    entry = fill("one", 10)
    drop_entry("one")
    assert not entry.exists() and fill("one", 20) == entry and (entry / "file").stat().st_size == 20


def test_scratch_goes_at_its_end_and_so_does_that_of_a_process_that_was_killed() -> None:
    with scratch("mine") as folder:
        (folder / "file").write_text("x")
        with scratch("other") as other:
            assert other != folder and folder.is_dir()
    killed = cache_folder() / "scratch" / "killed.x"
    killed.mkdir()
    Path(f"{killed}.used").touch()
    with scratch("next") as next_folder:
        assert not killed.exists() and not folder.exists() and next_folder.is_dir()


@pytest.mark.parametrize("given", ["much", "nan", "-1"])
def test_bound_that_is_no_number_is_refused_before_anything_is_fetched(monkeypatch: pytest.MonkeyPatch, given) -> None:
    monkeypatch.setenv(BOUND, given)
    with (
        pytest.raises(ConfigError, match=f"LLM_EMBEDDER_CACHE_GB is '{given}'; give a number of gigabytes"),
        filling(used_entry("one")),
    ):
        pytest.fail("it was filled")
