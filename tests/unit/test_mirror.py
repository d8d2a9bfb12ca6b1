"""Mirrors of an object store: fetched, changed, sent, cut off in the middle, and seen from another machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from embedder.config import RunConfig
from embedder.errors import ConfigError, DataError
from embedder.mirror import Mirror, workplace
from embedder.storage import ObjectPath, replacing
from tests.object_store import ObjectStore, proxy


def write(folder: Path, **texts: str) -> None:
    """Files by name, of which __ is a slash and _ a dot."""
    for name, text in texts.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def files(folder: Path) -> dict[str, str]:
    """What is in a folder, without dot files."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_text() for name, path in found.items() if not path.name.startswith(".")}


@pytest.fixture
def place(object_store: ObjectStore, request: pytest.FixtureRequest) -> ObjectPath:
    """A place of the test's own."""
    return object_store.path(f"mirror/{abs(hash(request.node.nodeid))}")


def elsewhere(place: ObjectPath, folder: Path) -> dict[str, str]:
    """What a machine sees that knows nothing yet."""
    mirror = Mirror(place, folder)
    mirror.pull()
    return files(folder)


def test_another_machine_gets_what_was_sent(place: ObjectPath, tmp_path: Path) -> None:
    mirror = Mirror(place, tmp_path / "one")
    assert mirror.pull() == 0
    write(mirror.folder, a_txt="1", deep__er__b_txt="2", empty_txt="")
    assert mirror.push() == 3 and mirror.push() == 0
    assert elsewhere(place, tmp_path / "two") == files(mirror.folder)
    write(mirror.folder, a_txt="changed")
    (mirror.folder / "deep/er/b.txt").unlink()
    assert mirror.push() == 1
    assert (
        elsewhere(place, tmp_path / "two")
        == elsewhere(place, tmp_path / "three")
        == {"a.txt": "changed", "empty.txt": ""}
    )


def test_scratch_and_locks_stay(place: ObjectPath, tmp_path: Path) -> None:
    mirror = Mirror(place, tmp_path / "one")
    write(mirror.folder, x_lock="", a_txt="1")
    (mirror.folder / ".unfinished-b").mkdir()
    (mirror.folder / ".unfinished-b" / "c").write_text("half")
    (mirror.folder / ".half").write_text("half")
    assert mirror.push() == 1
    assert elsewhere(place, tmp_path / "two") == {"a.txt": "1"}


def test_what_others_wrote_comes_and_what_is_not_sent_yet_stays(place: ObjectPath, tmp_path: Path) -> None:
    mirror = Mirror(place, tmp_path / "one")
    write(mirror.folder, mine_txt="1", theirs_txt="1", gone_txt="1", dropped_txt="1")
    mirror.push()
    other = Mirror(place, tmp_path / "two")
    other.pull()
    write(other.folder, theirs_txt="by another", mine_txt="by another")
    (other.folder / "gone.txt").unlink()
    other.push()
    with replacing(place / "labelled" / "block.txt") as file:
        file.write(b"streamed")
    write(mirror.folder, mine_txt="newer here")
    (mirror.folder / "dropped.txt").unlink()
    mirror.pull()
    expected = {"mine.txt": "newer here", "theirs.txt": "by another", "labelled/block.txt": "streamed"}
    assert files(mirror.folder) == expected
    mirror.push()
    assert elsewhere(place, tmp_path / "three") == expected


@pytest.mark.parametrize("reached", [0, 1, 3, 5, 6])
def test_a_push_that_is_cut_off_is_not_fetched_by_halves(
    object_store: ObjectStore, tmp_path: Path, reached: int
) -> None:
    name = f"mirror/cut-{reached}"
    folder = tmp_path / "one"
    Mirror(object_store.path(name), folder).pull()
    write(folder, alias_json="old", model__old_bin="old")
    Mirror(object_store.path(name), folder).push()
    before = files(folder)
    new = {f"model2/part{number}.bin": "new" for number in range(6)}
    write(folder, **{name.replace("/", "__").replace(".", "_"): text for name, text in new.items()})
    write(folder, alias_json="new")
    sent = []

    def refuse(method: str, target: str) -> bool:
        is_file = method in {"PUT", "POST"} and "mirror.json" not in target
        if is_file:
            sent.append(target)
        return is_file and len(sent) > reached

    with proxy(object_store, refuse) as (endpoint, _):
        cut = Mirror(object_store.path(name, endpoint=endpoint), folder)
        with pytest.raises(DataError, match="cannot be written"):
            cut.push()
    seen = elsewhere(object_store.path(name), tmp_path / "two")
    assert seen == (before if reached < len(new) else before | new)
    Mirror(object_store.path(name), folder).push()
    assert elsewhere(object_store.path(name), tmp_path / "two") == files(folder)


def test_files_that_are_replaced_follow_in_the_order_in_which_they_were_written(
    object_store: ObjectStore, tmp_path: Path
) -> None:
    name = "mirror/order"
    mirror = Mirror(object_store.path(name), tmp_path / "one")
    names = ["c_txt", "a_txt", "b_txt"]
    write(mirror.folder, **dict.fromkeys(names, "old"))
    mirror.push()
    for age, each in enumerate(names):
        write(mirror.folder, **{each: "new"})
        os.utime(mirror.folder / each.replace("_", "."), ns=(0, 10**18 + age))
    with proxy(object_store, lambda method, target: "b.txt" in target) as (endpoint, _), pytest.raises(DataError):
        Mirror(object_store.path(name, endpoint=endpoint), mirror.folder).push()
    assert elsewhere(object_store.path(name), tmp_path / "two") == {"a.txt": "new", "b.txt": "old", "c.txt": "new"}


def run_in(work: str, cache: Path) -> RunConfig:
    """A run whose files are there."""
    raw = {"paths": {"work": work, "cache": str(cache)}, "encoder": {"model": "package:none", "pooling": "mean"}}
    return RunConfig.model_validate(raw)


def test_a_job_works_in_the_mirror_alone_and_sends_what_it_wrote(object_store: ObjectStore, tmp_path: Path) -> None:
    config = run_in(object_store.uri("mirror/job/run"), tmp_path / "cache")
    with workplace(config, writes=True) as local:
        assert isinstance(local.paths.work, Path) and local.paths.work.name == "run"
        write(local.paths.work, a_txt="1")
        refused = workplace(config, writes=True)
        with pytest.raises(ConfigError, match="another job works on s3://bucket/mirror/job/run"), refused:
            pass
        with workplace(config, writes=False) as reading:
            assert reading == local
    assert elsewhere(object_store.path("mirror/job/run"), tmp_path / "two") == {"a.txt": "1"}


def test_what_a_failed_job_wrote_is_sent_and_a_dry_run_sends_nothing(object_store: ObjectStore, tmp_path: Path) -> None:
    config = run_in(object_store.uri("mirror/failed"), tmp_path / "cache")
    with pytest.raises(DataError, match="half way"), workplace(config, writes=True) as local:
        write(local.paths.mounted, a_txt="1")
        raise DataError("half way")
    with workplace(config, writes=False) as local:
        write(local.paths.mounted, b_txt="1")
    assert elsewhere(object_store.path("mirror/failed"), tmp_path / "two") == {"a.txt": "1"}


def test_a_run_in_a_folder_is_worked_on_where_it_is(tmp_path: Path) -> None:
    config = run_in(str(tmp_path / "work"), tmp_path / "cache")
    with workplace(config, writes=True) as local:
        assert local is config
    assert not (tmp_path / "cache").exists()
