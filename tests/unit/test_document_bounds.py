"""Tests files that are made to harm: each costs a bounded time and memory, is set aside, and the next one is read."""

from __future__ import annotations

import gzip
import os
import resource
from collections import Counter
from contextlib import ExitStack

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedder.data.documents.kinds import DocumentFile, document_files
from embedder.data.documents.reader_process import ReaderProcess
from embedder.data.documents.section import UnreadableError
from embedder.data.documents.table_rows import TableColumns

MEMORY = 2 * 2**30
LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))


def parquet_bomb(path):
    once = pa.array(["x" * 8_000_000])
    table = pa.table({"text": pa.DictionaryArray.from_arrays(pa.array([0] * 4_000, pa.int32()), once)})
    pq.write_table(table, path, compression="zstd")
    return path.read_bytes()


def read(folder, seconds=300.0):
    """Sections of each file, or why it is set aside."""
    told = {}
    with ReaderProcess(TableColumns(), "utf-8", seconds, MEMORY) as reader:
        for file in document_files(folder, None, Counter()):
            try:
                told[file.name] = list(reader.sections(file))
            except UnreadableError as error:
                told[file.name] = str(error)
                assert "\n" not in told[file.name]
    return told


def test_reader_process_survives_files_that_ask_for_too_much_memory(tmp_path):
    (tmp_path / "a.parquet").write_bytes(parquet_bomb(tmp_path / "a.parquet"))
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"a,text\n1," + b"x" * 40_000_000, 1))
    (tmp_path / "c.yaml").write_text(f"openapi: 3.0.0\n{LAUGHS}paths: {{/x: {{get: {{summary: *a11, tags: *a11}}}}}}\n")
    (tmp_path / "z.txt").write_text("The last one.")
    told = read(tmp_path)
    assert "memory" in told["a.parquet"] or "Parquet" in told["a.parquet"]
    assert told["b.csv.gz"] == "no readable CSV (field larger than field limit (16777216))"
    assert len(told["c.yaml"]) == 1 and len(told["c.yaml"][0].text) < 20_000
    assert told["z.txt"][0].text == "The last one."


def test_reader_process_that_hangs_is_replaced(tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    (tmp_path / "b.txt").write_text("The last one.")
    with ReaderProcess(TableColumns(), "utf-8", seconds=1) as reader:
        # A pipe that nobody writes to; the list of files would not have named it.
        with pytest.raises(UnreadableError, match="no further part within 1 s"):
            list(reader.sections(DocumentFile(tmp_path / "a.txt", "a.txt", "code")))
        reader.seconds = 300
        file = DocumentFile(tmp_path / "b.txt", "b.txt", "text")
        assert [section.text for section in reader.sections(file)] == ["The last one."]


def test_reader_process_reads_files_that_nest_without_end(tmp_path):
    (tmp_path / "a.html").write_text("<b>" * 20_000 + "deep")
    (tmp_path / "b.md").write_text(">" * 20_000 + " deep")
    (tmp_path / "c.py").write_text("(" * 20_000 + ")" * 20_000)
    (tmp_path / "d.json").write_text("[" * 100_000)
    told = read(tmp_path)
    assert [len(told[name]) for name in ("a.html", "b.md", "c.py", "d.json")] == [1, 1, 1, 1]


def test_reader_process_goes_on_where_nobody_wants_the_rest(tmp_path):
    (tmp_path / "a.csv").write_text("text\n" + "".join(f"row {i}\n" for i in range(5_000)))
    (tmp_path / "b.txt").write_text("The last one.")
    files = list(document_files(tmp_path, None, Counter()))
    with ReaderProcess(TableColumns(), "utf-8") as reader:
        for section in reader.sections(files[0]):
            assert section.text == "row 0"
            break
        assert [section.text for section in reader.sections(files[1])] == ["The last one."]


def test_reader_process_reads_in_a_process_that_has_many_files_open(tmp_path):
    """select() takes no descriptor above 1,023; a service or a notebook of some days may have more."""
    (tmp_path / "a.txt").write_text("Here.")
    file = next(document_files(tmp_path, None, Counter()))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(2_048, hard), hard))
    with ExitStack() as open_files, ReaderProcess(TableColumns(), "utf-8") as reader:
        open_files.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        while open_files.enter_context(open("/dev/null", "rb")).fileno() < 1_024:
            pass
        assert [section.text for section in reader.sections(file)] == ["Here."]


def test_reader_process_sets_a_file_that_has_gone_aside(tmp_path):
    (tmp_path / "a.txt").write_text("Here.")
    file = next(document_files(tmp_path, None, Counter()))
    (tmp_path / "a.txt").unlink()
    with ReaderProcess(TableColumns(), "utf-8") as reader, pytest.raises(UnreadableError, match="FileNotFoundError"):
        list(reader.sections(file))
