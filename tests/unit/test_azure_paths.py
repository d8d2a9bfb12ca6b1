"""A run's files in Azure, through the same paths as in S3: written, listed, read and removed."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from embedder.data.records import each_table, parquet_files, write_table
from embedder.errors import ConfigError
from embedder.storage.fetched import whole_copy
from embedder.storage.folders import file_names, folder_made, remove_folder
from embedder.storage.line_log import LineReader, LineWriter
from embedder.storage.object_store import ObjectPath

SCHEMA = pa.schema([("text", pa.string())])


def test_files_of_a_run_in_azure(azure: ObjectPath, tmp_path: Path) -> None:
    run = azure / tmp_path.name
    assert not run.is_dir() and parquet_files(run / "rows") == []
    for name in ("one", "two"):
        write_table([{"text": name}], SCHEMA, run / "rows" / f"{name}.parquet")
    assert [path.name for path in parquet_files(run / "rows")] == ["one.parquet", "two.parquet"]
    assert [table["text"][0].as_py() for table in each_table(parquet_files(run / "rows"), SCHEMA)] == ["one", "two"]
    (run / "rows" / "one.parquet").unlink()
    (run / "rows" / "one.parquet").unlink(missing_ok=True)
    assert [path.name for path in run.glob("*/*.parquet")] == ["two.parquet"]
    with folder_made(run / "model") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "weights").write_bytes(bytes(2**20))
    assert (whole_copy(run / "model") / "deep" / "weights").stat().st_size == 2**20
    writer = LineWriter(run / "metrics.jsonl")
    writer.add(b"a line")
    writer.put()
    assert LineReader(run / "metrics.jsonl").new() == [b"a line"]
    remove_folder(run / "model")
    assert not (run / "model").is_dir() and file_names(run) == ["metrics.jsonl/00000001", "rows/two.parquet"]


def test_container_without_an_account_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(ConfigError, match="az://container: no account is named; set AZURE_STORAGE_ACCOUNT_NAME"):
        ObjectPath.parse("az://container/run").is_file()
