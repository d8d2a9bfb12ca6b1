"""Mirrors of an object store: fetched, changed, sent, cut off in the middle, and seen from another machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from embedder.config.run import RunConfig
from embedder.errors import ConfigError, DataError
from embedder.run.workspace import workplace
from embedder.storage.mirror import Mirror, State
from embedder.storage.object_store import ObjectPath, replacing
from tests.object_store import BUCKET, ObjectStore, proxy
from tests.waiting import wait_until


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
def remote(object_store: ObjectStore, request: pytest.FixtureRequest) -> ObjectPath:
    """A path in the store of the test's own."""
    return object_store.path(f"mirror/{abs(hash(request.node.nodeid))}")


def elsewhere(remote: ObjectPath, folder: Path) -> dict[str, str]:
    """What a machine sees that knows nothing yet."""
    mirror = Mirror(remote, folder)
    mirror.pull()
    return files(folder)


def begun(remote: ObjectPath, folder: Path) -> Mirror:
    """A mirror as a job finds it."""
    mirror = Mirror(remote, folder)
    mirror.pull()
    mirror.claim()
    return mirror


def test_mirror_gives_another_machine_what_was_sent(remote: ObjectPath, tmp_path: Path) -> None:
    mirror = begun(remote, tmp_path / "one")
    write(mirror.folder, a_txt="1", deep__er__b_txt="2", empty_txt="")
    assert mirror.push() == 3 and mirror.push() == 0
    assert elsewhere(remote, tmp_path / "two") == files(mirror.folder)
    write(mirror.folder, a_txt="changed")
    (mirror.folder / "deep/er/b.txt").unlink()
    assert mirror.push() == 1
    now = {"a.txt": "changed", "empty.txt": ""}
    assert elsewhere(remote, tmp_path / "two") == elsewhere(remote, tmp_path / "three") == now
    assert not (tmp_path / "two" / "deep").exists()


def test_mirror_leaves_scratch_locks_and_what_a_service_writes(remote: ObjectPath, tmp_path: Path) -> None:
    mirror = begun(remote, tmp_path / "one")
    write(mirror.folder, x_lock="", a_txt="1", indexes__states__v1__5__x="compacted")
    (mirror.folder / ".unfinished-b").mkdir()
    (mirror.folder / ".unfinished-b" / "c").write_text("half")
    (mirror.folder / ".half").write_text("half")
    assert mirror.push() == 1
    for name in ("batch.lock", ".DS_Store", ".mirror.json", "indexes/writes/qa/log/1.arrow"):
        with replacing(remote / name) as file:
            file.write(b"of somebody else")
    assert elsewhere(remote, tmp_path / "two") == {"a.txt": "1"}
    mirror.pull()
    assert (mirror.folder / "indexes/states/v1/5/x").read_text() == "compacted"


def test_mirror_takes_the_store_over_a_folder_that_fell_behind(remote: ObjectPath, tmp_path: Path) -> None:
    mirror = begun(remote, tmp_path / "one")
    write(mirror.folder, mine_txt="1", theirs_txt="1", gone_txt="1")
    mirror.push()
    write(mirror.folder, mine_txt="never sent", half_txt="never sent")
    other = begun(remote, tmp_path / "two")
    write(other.folder, theirs_txt="by another", mine_txt="by another")
    (other.folder / "gone.txt").unlink()
    other.push()
    write(mirror.folder, late_txt="1")
    with pytest.raises(DataError, match="another machine works there now"):
        mirror.push()
    mirror.pull()
    assert files(mirror.folder) == files(other.folder) == {"mine.txt": "by another", "theirs.txt": "by another"}


def test_mirror_keeps_what_was_not_sent_yet_and_fetches_what_a_job_streamed(remote: ObjectPath, tmp_path: Path) -> None:
    mirror = begun(remote, tmp_path / "one")
    write(mirror.folder, a_txt="1", labelled__old_txt="1")
    mirror.push()
    write(mirror.folder, a_txt="newer", b_txt="new")
    for name in ("block.txt", "old.txt"):
        with replacing(remote / "labelled" / name) as file:
            file.write(b"2")
    mirror.pull()
    expected = {"a.txt": "newer", "b.txt": "new", "labelled/block.txt": "2", "labelled/old.txt": "2"}
    assert files(mirror.folder) == expected
    mirror.push()
    assert elsewhere(remote, tmp_path / "three") == expected


def test_mirror_fills_a_folder_that_was_cleaned_and_empties_nothing(remote: ObjectPath, tmp_path: Path) -> None:
    mirror = begun(remote, tmp_path / "one")
    write(mirror.folder, a_txt="1", b__c_txt="2")
    mirror.push()
    before = files(mirror.folder)
    for path in (mirror.folder / "a.txt", mirror.folder / "b/c.txt"):
        path.unlink()
    again = begun(remote, tmp_path / "one")
    assert files(again.folder) == before and again.push() == 0
    assert elsewhere(remote, tmp_path / "two") == before


@pytest.mark.parametrize("reached", [0, 1, 3, 5])
def test_mirror_push_that_is_cut_off_is_not_fetched_by_halves(
    object_store: ObjectStore, tmp_path: Path, reached: int
) -> None:
    name = f"mirror/cut-{reached}"
    mirror = begun(object_store.path(name), tmp_path / "one")
    write(mirror.folder, alias_json="old", model__old_bin="old")
    mirror.push()
    before = files(mirror.folder)
    write(mirror.folder, **{f"model2__part{number}_bin": "new" for number in range(6)}, alias_json="new")
    with refusing(object_store, name, mirror.folder, reached) as cut, pytest.raises(DataError, match="cannot be writ"):
        cut.push()
    assert elsewhere(object_store.path(name), tmp_path / "two") == before
    third = begun(object_store.path(name), tmp_path / "three")
    write(third.folder, by_third_txt="1")
    third.push()
    seen = elsewhere(object_store.path(name), tmp_path / "two")
    assert seen == before | {"by.third.txt": "1"}
    assert not any("model2" in each for each, _ in object_store.path(name).walk())


def test_mirror_push_that_replaces_files_keeps_others_from_fetching_and_goes_on(
    object_store: ObjectStore, tmp_path: Path
) -> None:
    mirror = begun(object_store.path("mirror/replaced"), tmp_path / "one")
    write(mirror.folder, **dict.fromkeys(["a_txt", "b_txt", "c_txt"], "old"))
    mirror.push()
    write(mirror.folder, **dict.fromkeys(["a_txt", "b_txt", "c_txt"], "new"))
    with refusing(object_store, "mirror/replaced", mirror.folder, 1) as cut, pytest.raises(DataError):
        cut.push()
    with pytest.raises(DataError, match=r"cut off while it replaced 3 files, first .*remove s3://bucket/mirror/repl"):
        elsewhere(object_store.path("mirror/replaced"), tmp_path / "two")
    begun(object_store.path("mirror/replaced"), tmp_path / "one").push()
    assert set(elsewhere(object_store.path("mirror/replaced"), tmp_path / "two").values()) == {"new"}


def test_mirror_push_that_failed_at_its_very_end_is_ended_by_the_next(
    remote: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = begun(remote, tmp_path / "one")
    write(mirror.folder, a_txt="1")

    def fail(self: Mirror, state: State) -> None:
        if not state.is_unfinished:
            raise DataError("the store does not answer")
        written(self, state)

    written = Mirror._write_state
    with monkeypatch.context() as cut, pytest.raises(DataError):
        cut.setattr(Mirror, "_write_state", fail)
        mirror.push()
    assert elsewhere(remote, tmp_path / "two") == {}
    mirror.push()
    assert elsewhere(remote, tmp_path / "two") == {"a.txt": "1"}


@contextmanager
def refusing(store: ObjectStore, name: str, folder: Path, reached: int) -> Iterator[Mirror]:
    """A mirror of which no more than so many files can be sent."""
    sent: list[str] = []

    def refuse(method: str, target: str) -> bool:
        is_file = method in {"PUT", "POST"} and "mirror.json" not in target
        if is_file:
            sent.append(target)
        return is_file and len(sent) > reached

    with proxy(store, refuse) as (endpoint, _):
        yield Mirror(store.path(name, endpoint=endpoint), folder)


def test_mirror_state_that_is_damaged_is_one_line(
    remote: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedder.storage.mirror.STATE_READS", 1)
    with replacing(remote / "mirror.json") as file:
        file.write(b'{"writer"')
    with pytest.raises(DataError, match=r"mirror\.json: not readable; remove it"):
        Mirror(remote, tmp_path / "one").pull()


def run_in(work: str, cache: Path) -> RunConfig:
    """A run whose files are there."""
    raw = {"paths": {"work": work, "cache": str(cache)}, "encoder": {"model": "package:none", "pooling": "mean"}}
    return RunConfig.model_validate(raw)


def test_workspace_gives_a_job_the_mirror_alone_and_sends_what_it_wrote(
    object_store: ObjectStore, tmp_path: Path
) -> None:
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


def test_workspace_sends_what_a_job_writes_while_it_works(
    object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedder.run.workspace.PUSH_S", 0.05)
    config = run_in(object_store.uri("mirror/meanwhile"), tmp_path / "cache")
    with workplace(config, writes=True) as local:
        write(local.paths.mounted, a_txt="1")
        wait_until(lambda: bool(elsewhere(object_store.path("mirror/meanwhile"), tmp_path / "two")))


def test_workspace_sends_what_a_failed_job_wrote_and_nothing_of_a_dry_run(
    object_store: ObjectStore, tmp_path: Path
) -> None:
    config = run_in(object_store.uri("mirror/failed"), tmp_path / "cache")
    with pytest.raises(DataError, match="half way"), workplace(config, writes=True) as local:
        write(local.paths.mounted, a_txt="1")
        raise DataError("half way")
    with workplace(config, writes=False) as local:
        write(local.paths.mounted, b_txt="1")
    assert elsewhere(object_store.path("mirror/failed"), tmp_path / "two") == {"a.txt": "1"}


def test_workspace_of_a_run_in_a_folder_is_that_folder(tmp_path: Path) -> None:
    config = run_in(str(tmp_path / "work"), tmp_path / "cache")
    with workplace(config, writes=True) as local:
        assert local is config
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["//abs/dir/x", "/../x", "/a/./x", f"/{'n' * 300}"])
def test_mirror_refuses_an_object_whose_name_would_leave_its_folder(
    object_store: ObjectStore, remote: ObjectPath, tmp_path: Path, name: str
) -> None:
    begun(remote, tmp_path / "one")
    # By boto3, because pyarrow itself refuses to write such a name.
    key = f"{remote.key.partition('/')[2]}{name}"
    object_store.client().put_object(Bucket=BUCKET, Key=key, Body=b"from a stranger")
    with pytest.raises(DataError, match="cannot be that of a file; rename or remove it") as caught:
        Mirror(remote, tmp_path / "two").pull()
    assert "\n" not in str(caught.value)
    assert not any(path.is_file() for path in (tmp_path / "two").rglob("x"))


def test_mirror_refuses_an_object_that_is_a_folder_too(
    object_store: ObjectStore, remote: ObjectPath, tmp_path: Path
) -> None:
    mirror = begun(remote, tmp_path / "one")
    write(mirror.folder, a__b="1")
    mirror.push()
    key = f"{remote.key.partition('/')[2]}/a"
    object_store.client().put_object(Bucket=BUCKET, Key=key, Body=b"a file")
    with pytest.raises(DataError, match="rename or remove one of the two"):
        Mirror(remote, tmp_path / "two").pull()
