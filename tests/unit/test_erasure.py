"""Texts that were deleted or replaced: after `erase` no file holds them, and all else is found as before."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from embedder.index.documents import Document
from embedder.index.erasure import erase
from embedder.index.search_options import SearchOptions
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
