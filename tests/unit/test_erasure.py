"""Texts that were deleted or replaced: after `erase` no file holds them, and all else is found as before."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from embedder.errors import StorageError
from embedder.index.documents import Document
from embedder.index.erasure import erase
from embedder.index.opened import OpenIndex
from embedder.index.search_options import SearchOptions
from embedder.index.task_log import TaskLog
from embedder.storage.position import Retention
from tests.unit.index_cases import add_version, documents_of, live_catalog, opened, unit

VECTORS = unit(np.random.default_rng(3), 8)
AT_ONCE = Retention(kept_s=0.0)
"""Nobody else writes here."""
SECRET = "qqsecret"


def secret(name: str, number: int) -> Document:
    return Document(id=name, dataset="d", text=f"{SECRET}{number}")


def holding(folder: Path) -> list[str]:
    """Secrets that are in any file."""
    content = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    return [f"{SECRET}{number}" for number in range(9) if f"{SECRET}{number}".encode() in content]


def texts(index) -> dict[str, str]:
    return {hit.id: hit.text for hit in index.search("qa", SearchOptions(k=50), VECTORS[:1]).hits()[0]}


def test_erased_texts_are_in_no_file_and_the_others_are_found(tmp_path):
    corpus = [*documents_of("ab"), secret("old", 0), secret("changed", 1), secret("kept", 2)]
    catalog = live_catalog(tmp_path / "indexes", corpus, VECTORS[:5])
    add_version(catalog, "before", [*documents_of("ab"), secret("old", 0)], VECTORS[:3])
    add_version(catalog, "clean", documents_of("ab"), VECTORS[:2])
    index = opened(catalog)
    index.upsert("qa", [secret("new", 3), secret("new2", 4), secret("stays", 5)], VECTORS[5:8])
    index.compact()
    index.upsert("qa", [secret("new2", 6), Document(id="changed", dataset="d", text="plain")], VECTORS[:2])
    index.delete("qa", [("new", "d"), ("old", "d")])
    index.fold(at_once=True)
    expected = texts(index)
    assert holding(catalog.folder) == [f"{SECRET}{number}" for number in range(7)]
    lines: list[str] = []
    erase(catalog, lines.append, AT_ONCE)
    assert holding(catalog.folder) == [f"{SECRET}{number}" for number in (2, 5, 6)]
    assert texts(opened(catalog)) == expected and "clean" in catalog.versions() and len(catalog.versions()) == 2
    assert sum("removed, because" in line for line in lines) == 2
    versions = catalog.versions()
    erase(catalog, lines.append, AT_ONCE)
    assert catalog.versions() == versions and texts(opened(catalog)) == expected


def test_erasure_leaves_an_index_to_which_nothing_was_written(tmp_path):
    catalog = live_catalog(tmp_path / "indexes", documents_of("ab"), VECTORS[:2])
    shutil.copytree(catalog.bundle("one"), tmp_path / "copy")
    lines: list[str] = []
    erase(catalog, lines.append, AT_ONCE)
    assert catalog.versions() == ["one"] and lines[-1].startswith("0 commits")


def test_erased_texts_of_an_alias_that_was_dropped_and_of_killed_writers_go_too(tmp_path):
    catalog = live_catalog(tmp_path / "indexes", documents_of("ab"), VECTORS[:2])
    catalog.point("beta", "one")
    index = OpenIndex.open(catalog.here("one"), catalog.state("one", "beta"))
    index.upsert("qa", [secret("new", 1)], VECTORS[2:3])
    index.delete("qa", [("new", "d")])
    catalog.drop("beta")
    unfinished = [catalog.folder / "writes" / "beta" / "qa" / "log" / ".unfinished-1", catalog.folder / "versions"]
    unfinished[1] /= ".unfinished-2/shard"
    for path in unfinished:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{SECRET}2", encoding="utf-8")
    assert holding(catalog.folder) == [f"{SECRET}1", f"{SECRET}2"]
    erase(catalog, lambda _: None, AT_ONCE)
    assert holding(catalog.folder) == [] and not any(path.exists() for path in unfinished)


def test_erasure_leaves_a_version_that_another_alias_shows_as_it_is(tmp_path):
    catalog = live_catalog(tmp_path / "indexes", [*documents_of("ab"), secret("old", 0)], VECTORS[:3])
    catalog.point("beta", "one")
    opened(catalog).delete("qa", [("old", "d")])
    lines: list[str] = []
    for _ in range(2):
        erase(catalog, lines.append, AT_ONCE)
    assert len(catalog.versions()) == 2 and catalog.aliases()["beta"] == "one" != catalog.aliases()["live"]
    assert sum("stays, because beta shows" in line for line in lines) == 2


def test_erasure_leaves_an_alias_that_was_pointed_elsewhere_meanwhile(tmp_path, monkeypatch):
    catalog = live_catalog(tmp_path / "indexes", [*documents_of("ab"), secret("old", 0)], VECTORS[:3])
    add_version(catalog, "two", documents_of("ab"), VECTORS[:2])
    opened(catalog).delete("qa", [("old", "d")])
    snapshot = OpenIndex.snapshot

    def slow(index, catalog, name):
        catalog.point("live", "two")
        return snapshot(index, catalog, name)

    monkeypatch.setattr(OpenIndex, "snapshot", slow)
    erase(catalog, lambda _: None, AT_ONCE)
    assert catalog.aliases() == {"live": "two"} and catalog.versions() == ["two"]


def test_erasure_that_cannot_remove_all_commits_says_so(tmp_path, monkeypatch):
    catalog = live_catalog(tmp_path / "indexes", documents_of("ab"), VECTORS[:2])
    index = opened(catalog)
    index.upsert("qa", [secret("new", 1)], VECTORS[2:3])
    index.delete("qa", [("new", "d")])
    clean = TaskLog.clean

    def touched(log: TaskLog) -> int:
        for path in [each for each in (catalog.folder / "writes").rglob("*") if each.is_file()]:
            path.chmod(0o600)
        return clean(log)

    monkeypatch.setattr(TaskLog, "clean", touched)
    with pytest.raises(StorageError, match="not all commits could be removed yet; run erase again"):
        erase(catalog, lambda _: None, Retention(kept_s=0.2))
    assert holding(catalog.folder) == [f"{SECRET}1"]
