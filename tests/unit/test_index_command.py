"""`python -m embedder.index`: versions listed, copied, restored, served and removed from the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from embedder.index.__main__ import main
from embedder.index.catalog import Catalog
from embedder.index.opened import OpenIndex
from tests.unit.index_cases import documents_of, live_catalog, unit

VECTORS = unit(np.random.default_rng(3), 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A catalog with one version, to which a document was written."""
    catalog = live_catalog(tmp_path / "indexes", documents_of("abc"), VECTORS[:3])
    OpenIndex.open(catalog.bundle("one"), catalog.state("one", "live")).upsert("qa", documents_of("d"), VECTORS[3:])
    return catalog.folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    main([str(one) for one in arguments])
    return " ".join(capsys.readouterr().out.split())


def test_index_command_takes_serves_copies_and_removes_a_snapshot(folder, tmp_path, capsys):
    assert "one: 3 of qa in 2 shards" in run(capsys, folder)
    assert "4 of qa" in run(capsys, folder, "snapshot", "two")
    run(capsys, folder, "point", "live", "two")
    assert "served as live" in run(capsys, folder).split("two: ")[1]
    other = tmp_path / "other"
    other.mkdir()
    assert "no versions" in run(capsys, other)
    assert "4 of qa" in run(capsys, other, "restore", folder / "versions" / "two", "copy")
    run(capsys, other, "remove", "copy")
    assert "no versions" in run(capsys, other)


def test_index_command_exports_what_is_there_with_vectors(folder, tmp_path, capsys):
    file = tmp_path / "qa.parquet"
    assert "4 documents of qa in one" in run(capsys, folder, "export", "qa", file)
    table = pq.read_table(file).sort_by("id")
    assert table["id"].to_pylist() == list("abcd") and table["text"][0].as_py() == "text of a"
    assert np.array_equal(np.array(table["vector"].to_pylist(), dtype=np.float32), VECTORS)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [file.name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["remove", "one"], "served as ['live']"),
        (["snapshot", "one"], "exists with another content"),
        (["snapshot", "two", "--of", "nine"], "no version or alias 'nine'"),
        (["restore", "nowhere", "two"], "nowhere"),
        (["export", "nothing", "file.parquet"], "task 'nothing': the index has ['qa']"),
        (["point", "live", "nine"], "no version or alias 'nine'"),
        (["snapshot", "two", "--of", "lvie"], "did you mean live?"),
        (["snapshot", "two", "--of", "nine"], "point ALIAS VERSION"),
    ],
)
def test_index_command_says_in_a_line_what_cannot_be_done(folder, capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        main([str(folder), *arguments])
    assert end.value.code == 2 and message in " ".join(capsys.readouterr().out.split())
    assert Catalog(folder).versions() == ["one"]


def test_index_command_names_a_folder_that_is_not_there(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path / "nowhere")])
    assert "no such folder" in " ".join(capsys.readouterr().out.split())
