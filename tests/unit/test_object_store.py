"""Files in an object store, against a server that speaks S3: whole or absent, found by name, no secret shown."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from urllib.parse import quote

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.data.ledger import Ledger
from embedder.data.records import parquet_files, read_tables, write_table
from embedder.errors import ConfigError, DataError
from embedder.storage.durable import write_durably
from embedder.storage.json_file import write_json
from embedder.storage.object_store import ObjectPath, masked, replacing
from tests.object_store import SECRET, proxy
from tests.unit.judges import quick
from tests.waiting import wait_until

SCHEMA = pa.schema([("row_id", pa.string()), ("value", pa.int64())])
ROWS = [{"row_id": "a" * 32, "value": 1}, {"row_id": "b" * 32, "value": 2}]
PARTS = 25 * 2**20
"""Bytes of an object that is uploaded in three parts."""


@pytest.fixture
def folder(object_store, request):
    """A folder of the test's own."""
    return object_store.path(quote(request.node.name))


def put(path, content=b"hello"):
    with replacing(path) as file:
        file.write(content)


def start_writer(uri, content):
    """Put an object from a process of its own: the proxy's threads would wait for a GIL that an upload may hold."""
    code = "import sys; from embedder.storage.object_store import *\n"
    code += "with replacing(ObjectPath.parse(sys.argv[1])) as file: "
    command = [sys.executable, "-c", f"{code} file.write({content})", uri]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def names(folder, pattern="*"):
    return sorted(path.name for path in folder.glob(pattern))


def test_object_is_read_back_as_written_and_found_by_name(folder):
    put(folder / "a.txt", "Röntgen".encode())
    put(folder / "empty.txt", b"")
    put(folder / "deep" / "b.txt")
    assert (folder / "a.txt").read_text() == "Röntgen"
    assert (folder / "empty.txt").read_text() == ""
    assert names(folder) == ["a.txt", "deep", "empty.txt"]
    assert names(folder, "*.txt") == ["a.txt", "empty.txt"]
    assert (folder / "a.txt").is_file() and not (folder / "a.txt").is_dir()
    assert (folder / "deep").is_dir() and not (folder / "deep").is_file()
    assert not (folder / "none").is_file() and not (folder / "none").is_dir() and names(folder / "none") == []


def test_object_is_replaced_by_a_second_write_and_gone_after_removal(folder):
    put(folder / "a.txt", b"old and long")
    put(folder / "a.txt", b"new")
    assert (folder / "a.txt").read_text() == "new"
    (folder / "a.txt").unlink()
    assert names(folder) == [] and not (folder / "a.txt").is_file()


def test_object_that_is_large_is_read_line_by_line(folder):
    line = b"x" * 99 + b"\n"
    put(folder / "lines", line * (PARTS // 100))
    with (folder / "lines").open("rb") as file:
        assert file.readline() == line
        assert sum(1 for _ in file) == PARTS // 100 - 1


@pytest.mark.parametrize(
    "name", ["a b", "ünï 中文", "a#b", "100%", "a%20b", "a+b", "q'\"", "a?b&c=d", "e\u0301", "a:b"]
)
def test_object_of_any_name_is_written_listed_and_read(object_store, name):
    folder = object_store.path(f"names/{quote(name)}")
    assert folder.name == name
    write_table(ROWS, SCHEMA, folder / f"{name}.parquet")
    assert parquet_files(folder) == [folder / f"{name}.parquet"]
    assert read_tables(parquet_files(folder), SCHEMA).to_pylist() == ROWS


@quick
@given(st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="/"), min_size=1, max_size=8))
def test_uri_names_what_it_decodes_to_and_is_printed_so_that_it_is_read_again(name):
    if name in {".", ".."}:
        return
    path = ObjectPath.parse(f"s3://bucket/run/{quote(name)}?region=eu-west-1")
    assert (path.name, path.key) == (name, f"bucket/run/{name}")
    assert ObjectPath.parse(path.uri) == path


def test_listing_of_more_objects_than_one_answer_holds_is_complete(folder):
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda i: put(folder / f"{i}.parquet", b"x"), range(101)))
    assert {path.name for path in parquet_files(folder)} == {f"{i}.parquet" for i in range(101)}


def test_object_that_is_missing_is_an_error_that_names_it(folder):
    for act in (lambda path: path.open("rb"), ObjectPath.read_text, ObjectPath.unlink):
        with pytest.raises(DataError, match=r"s3://bucket/.*/none: no such bucket or object"):
            act(folder / "none")


def test_bucket_that_is_missing_is_an_error_and_no_empty_folder(object_store):
    path = object_store.path("run", bucket="elsewhere")
    with pytest.raises(DataError, match=r"s3://elsewhere/run: no such bucket"):
        parquet_files(path)
    with pytest.raises(DataError, match=r"s3://elsewhere/run/x\.json: cannot be written .*NO_SUCH_BUCKET"):
        write_json({}, path / "x.json")


def test_server_that_refuses_or_does_not_answer_is_an_error_of_one_line_without_the_secret(object_store):
    with proxy(object_store, lambda *_: True) as (endpoint, _):
        refused = object_store.path("run", endpoint=endpoint)
        for act in (lambda: names(refused), (refused / "x").is_file, lambda: put(refused / "x")):
            with pytest.raises(DataError, match=r"s3://bucket/run.*ACCESS_DENIED.*credentials") as caught:
                act()
            assert SECRET not in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(DataError, match="AWS_ENDPOINT_URL"):
        names(object_store.path("run", endpoint="127.0.0.1:1"))


def test_uri_with_an_unknown_parameter_is_an_error_without_the_secret(object_store):
    path = ObjectPath.parse(object_store.uri("run") + "&regoin=eu")
    with pytest.raises(ConfigError, match="regoin") as caught:
        path.is_file()
    assert SECRET not in str(caught.value) and "not%2F" not in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__context__ is None


def test_endpoint_and_credentials_may_come_from_the_environment(object_store, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{object_store.endpoint}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    path = ObjectPath.parse("s3://bucket/environment/a.txt?region=us-east-1")
    put(path)
    assert object_store.path("environment/a.txt").read_text() == "hello"


def test_write_that_failed_leaves_nothing_and_the_old_object(folder):
    put(folder / "old", b"old")
    for error, path in [(ValueError, folder / "new"), (KeyboardInterrupt, folder / "old")]:
        with pytest.raises(error), replacing(path) as file:
            file.write(b"x" * PARTS)
            raise error
    with pytest.raises(pa.ArrowInvalid):
        write_table(pa.table({"row_id": ["c"], "value": ["many"]}), SCHEMA, folder / "rows.parquet")
    assert names(folder) == ["old"] and (folder / "old").read_text() == "old"


@pytest.mark.parametrize("request_", ["partNumber=1", "partNumber=2", "partNumber=3", "POST complete"])
def test_upload_that_is_refused_half_way_leaves_nothing(object_store, folder, request_):
    def refuse(method, target):
        complete = method == "POST" and "uploadId=" in target
        return complete if request_ == "POST complete" else request_ in target

    with proxy(object_store, refuse) as (endpoint, seen):
        writer = start_writer(object_store.uri(f"{quote(folder.name)}/big", endpoint=endpoint), f"b'x' * {PARTS}")
        _, printed = writer.communicate(timeout=60)
    assert writer.returncode == 1 and "NoAnswerError: s3://" in printed and "cannot be written" in printed
    assert any(refuse(*one.split(" ", 1)) for one in seen)
    assert names(folder) == []


def test_upload_whose_writer_is_killed_leaves_nothing(object_store, folder):
    is_dead = Event()

    def hold(_, target):
        return "partNumber=3" in target and not is_dead.wait(60)

    def parts(seen):
        return {one for one in seen if "partNumber=" in one}

    with proxy(object_store, hold) as (endpoint, seen):
        writer = start_writer(object_store.uri(f"{quote(folder.name)}/big", endpoint=endpoint), f"b'x' * {PARTS}")
        wait_until(lambda: len(parts(seen)) >= 2)
        writer.send_signal(signal.SIGKILL)
        assert writer.wait(timeout=30) == -signal.SIGKILL
        is_dead.set()
    assert names(folder) == []


def test_object_that_is_small_is_put_by_one_request(object_store, folder):
    with proxy(object_store, lambda *_: False) as (endpoint, seen):
        put(object_store.path(quote(folder.name), endpoint=endpoint) / "a")
        assert [one.split()[0] for one in seen] == ["PUT"]


def test_ledger_in_a_store_works_as_in_a_folder(folder):
    ledger = Ledger(folder / "blocks", SCHEMA, "row_id")
    assert ledger.done() == set() and len(ledger.row_ids()) == 0
    ledger.commit(ROWS)
    ledger.commit(ROWS)
    more = [{"row_id": f"{i:032x}", "value": i} for i in range(40)]
    for row in more:
        ledger.commit([row])
    assert len(names(ledger.folder)) == 41 and ledger.count_duplicates() == 0
    ids = [row["row_id"] for row in ROWS]
    assert ledger.holds(ids) and not ledger.holds(ids[::-1])
    assert ledger.read().to_pylist() == more + ROWS
    assert ledger.read(ids).to_pylist() == ROWS
    assert sorted(row["value"] for table in ledger.stream(ledger.row_ids()) for row in table.to_pylist()) == sorted(
        [1, 2, *range(40)]
    )
    assert sum(ledger.replace(lambda rows: [{**row, "value": 7} for row in rows])) == 42
    assert {row["value"] for row in ledger.read().to_pylist()} == {7}


def test_ledger_with_two_writers_of_one_block_has_one_whole_block(object_store, folder):
    wide = [{"row_id": f"{i:032x}", "value": i} for i in range(5000)]
    with ThreadPoolExecutor(2) as pool:
        one, other = (Ledger(object_store.path(quote(folder.name)), SCHEMA, "row_id") for _ in range(2))
        for writing in [pool.submit(ledger.commit, wide) for ledger in (one, other) for _ in range(5)]:
            writing.result()
    assert len(names(folder)) == 1 and one.read().to_pylist() == wide


def test_ledger_refuses_a_cut_object_by_name(folder):
    put(folder / "rows.parquet", b"PAR1 half")
    with pytest.raises(DataError, match=r"s3://bucket/.*rows\.parquet: not a readable Parquet file"):
        read_tables(parquet_files(folder), SCHEMA)


def test_object_path_travels_to_another_process_and_shows_no_secret(object_store):
    path = object_store.path("run") / "candidates"
    assert pickle.loads(pickle.dumps(path)) == path
    for shown in (str(path), repr(path), f"{path}", path.uri, repr([path])):
        assert SECRET not in shown and "not%2F" not in shown and "AKIATEST" not in shown
    assert str(path) == "s3://bucket/run/candidates" and path.uri.startswith("s3://***@bucket/run/candidates?")
    assert (path.name, (path / "a.b.parquet").stem, (path / "x.gz").suffix) == ("candidates", "a.b", ".gz")


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("hdfs://host/run", "hdfs:// is not supported"),
        ("abfs://KEY:SECRET@bucket/run", "abfs:// is not supported"),
        ("s3://", "not of the form"),
        ("s3:///run", "not of the form"),
        ("s3://KEY:SEC/RET@bucket/run", "write / as|not of the form"),
        ("s3://bucket/a#b", "# as %23"),
        ("s3://bucket/a//b", "between two slashes"),
        ("s3://bucket//b", "between two slashes"),
        ("s3://bucket/a/../b", "between two slashes"),
    ],
)
def test_uri_that_cannot_be_used_is_refused_without_its_secret(uri, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        ObjectPath.parse(uri)
    assert "SEC" not in str(caught.value).replace("KEY:SECRET@ before", "")


@pytest.mark.parametrize(
    "text", ["s3://KEY:SEC/R@ET@bucket", "x 's3://KEY:SECRET@b' y", "s3://b?secret_key=SECRET&a=b"]
)
def test_masked_text_holds_no_secret(text):
    assert "SEC" not in masked(text) and "KEY:" not in masked(text)
    assert masked("llm.max_tokens=5 at user@host") == "llm.max_tokens=5 at user@host"


def test_local_file_still_appears_by_a_rename(tmp_path):
    with pytest.raises(KeyError), replacing(tmp_path / "deep" / "a") as file:
        file.write(b"half")
        raise KeyError
    assert list((tmp_path / "deep").iterdir()) == []
    put(Path(tmp_path / "deep" / "a"))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a"]


def test_file_whose_name_is_as_long_as_one_can_be_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / ("漢" * 83 + ".text")
    with replacing(path) as file:
        file.write(b"x")
    write_durably(path, b"y")
    assert path.read_bytes() == b"y" and list(tmp_path.iterdir()) == [path]
