"""A job whose disk takes nothing ends in one line, wherever the error comes from; other errors end it as they did."""

from __future__ import annotations

import errno
import pickle
from functools import partial
from pathlib import Path

import pytest
from ray.exceptions import RayTaskError, UserCodeException
from ray.train.v2.api.exceptions import WorkerGroupError

from embedder.errors import DataError, StorageError
from embedder.storage.durable import full_disk_told
from tests.storage import files_end_at, passes_on_a_disk_of_its_own
from tests.unit.full_disk_job import check_writers, ended, prepared

FOLDER = Path("/the/run")
FULL = OSError(errno.ENOSPC, "No space left on device")
NAMED = OSError(errno.ENOSPC, "No space left on device", "/other/file")


def test_job_on_a_full_disk_ends_in_one_line_with_the_place_and_the_remedy(tmp_path):
    passes_on_a_disk_of_its_own("tests.unit.full_disk_job", tmp_path, "2m")


def test_job_whose_files_may_not_grow_ends_in_one_line_with_the_place_and_the_remedy(tmp_path):
    check_writers(tmp_path, "File too large", partial(files_end_at, 1_000_000))


def test_job_on_a_disk_with_room_ends_without_an_error(tmp_path):
    prepared(tmp_path)
    status, told = ended(tmp_path, lambda _: None)
    assert status == 0 and "error:" not in told


def of_a_task(error: Exception, text: str) -> Exception:
    """The error that `ray.get` raises for a task that has raised one, after its way between processes."""
    return pickle.loads(pickle.dumps(RayTaskError("write", text, error, "title", 1, "127.0.0.1"))).as_instanceof_cause()


TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1, in write\n    file.write(content)\n'


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (FULL, FOLDER),
        (NAMED, "/other/file"),
        (of_a_task(FULL, f"{TRACEBACK}OSError: {FULL}"), FOLDER),
        (of_a_task(NAMED, f"{TRACEBACK}OSError: {NAMED}"), "/other/file"),
        (of_a_task(UserCodeException(), f"{TRACEBACK}OSError: {NAMED}\n\nThe above exception was"), "/other/file"),
        (WorkerGroupError(f"[Rank 0]\n{TRACEBACK}OSError: {NAMED}", {0: NAMED}), "/other/file"),
        (OSError("Write failed: [Errno 28] No space left on device"), FOLDER),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), FOLDER),
    ],
)
def test_full_disk_is_told_whoever_wraps_it(error, place):
    with pytest.raises(StorageError) as raised, full_disk_told(FOLDER):
        raise error
    line = f"{place}: the disk is full (No space left on device); make room and run it again, what is finished stays"
    assert str(raised.value) == line


def test_full_disk_is_told_where_it_is_the_cause_of_another_error():
    with pytest.raises(StorageError, match="/other/file: the disk is full"), full_disk_told(FOLDER):
        raise DataError("no table") from NAMED


def test_read_only_disk_and_quota_are_told():
    for number, told in ((errno.EROFS, "read-only here"), (errno.EDQUOT, "the disk is full")):
        with pytest.raises(StorageError, match=told), full_disk_told(FOLDER):
            raise OSError(number, "x")


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "a"),
        PermissionError(errno.EACCES, "Permission denied", "a"),
        ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
        DataError("row 28: too long"),
        KeyError("x"),
    ],
)
def test_other_errors_of_a_job_pass_as_they_are(error):
    with pytest.raises(type(error)) as raised, full_disk_told(FOLDER):
        raise error
    assert raised.value is error
