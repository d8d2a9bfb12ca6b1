"""Lines that are added while others read them: in a file, and in a store as numbered objects."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedder.storage import line_log
from embedder.storage.line_log import LineReader, LineWriter
from embedder.storage.object_store import AnyPath, entries
from tests.object_store import ObjectStore


@pytest.fixture(params=["folder", "store"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> AnyPath:
    if request.param == "folder":
        return tmp_path / "metrics.jsonl"
    store: ObjectStore = request.getfixturevalue("object_store")
    return store.path(f"lines/{tmp_path.name}/metrics.jsonl")


def words(lines: list[bytes]) -> list[str]:
    return [line.decode().strip() for line in lines]


def test_lines_are_read_once_and_in_their_order_also_by_the_next_writer(path: AnyPath) -> None:
    reader, writer = LineReader(path), LineWriter(path)
    assert reader.new() == []
    for word in ("one", "two"):
        writer.add(word.encode())
    writer.put()
    assert words(reader.new()) == ["one", "two"] and reader.new() == []
    # As after a kill: another process goes on behind what is there.
    second = LineWriter(path)
    second.add(b"three")
    second.put()
    second.put()
    assert words(reader.new()) == ["three"]
    assert words(LineReader(path).new()) == ["one", "two", "three"]


def test_line_that_a_kill_cut_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"whole\ncut")
    reader = LineReader(path)
    assert words(reader.new()) == ["whole"]
    LineWriter(path).add(b"next")
    assert words(reader.new()) == ["cut", "next"]


def test_lines_wait_in_a_store_until_an_object_of_them_is_due(
    object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, now = object_store.path(f"lines/{tmp_path.name}/waiting"), [0.0]
    monkeypatch.setattr(line_log.time, "monotonic", lambda: now[0])
    writer = LineWriter(path)
    for second in range(7):
        now[0] = float(second)
        writer.add(str(second).encode())
    assert words(LineReader(path).new()) == ["0", "1", "2", "3", "4", "5"]
    writer.put()
    assert [each.name for each in entries(path, "*")] == ["00000001", "00000002"]
    assert words(LineReader(path).new()) == [str(second) for second in range(7)]
