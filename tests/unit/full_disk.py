"""Fills the disk that a folder is on, under an index. Run by test_storage_failures.py on a small disk of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from embedder.errors import StorageError
from embedder.index.bundle import verify
from embedder.index.catalog import Catalog
from embedder.index.documents import Document
from embedder.index.opened import OpenIndex
from embedder.index.search_options import SearchOptions
from tests.unit.index_cases import NO_CHOICE, documents_of, live_catalog, unit

VECTORS = unit(np.random.default_rng(0), 8)
LONG = "long " * 4000
OPTIONS = SearchOptions(k=50, parameters=NO_CHOICE)


def opened(catalog: Catalog) -> OpenIndex:
    return OpenIndex(catalog.bundle("one"), catalog.state("one", "live"), verify(catalog.bundle("one")), range(2))


def found(index: OpenIndex) -> set[str]:
    """Ids of all documents, by search."""
    return {hit.id for hit in index.search("qa", OPTIONS, VECTORS[:1]).hits()[0]}


def is_refused(act: Callable[[], object]) -> None:
    """The disk being full is told in one line."""
    try:
        act()
    except StorageError as error:
        assert "the disk is full" in str(error) and "\n" not in str(error), error
    else:
        raise AssertionError("was not refused")


def files_of(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


def main(folder: Path) -> None:
    """Write, fill, be refused, make room, write again; then read what is there anew."""
    catalog, filler = live_catalog(folder / "indexes", documents_of("ab"), VECTORS[:2]), folder / "filler"
    index = opened(catalog)
    written = [Document(id=f"w{i}", text=LONG, dataset="d") for i in range(4)]
    index.upsert("qa", written, VECTORS[:4])
    known = {"a", "b", "w0", "w1", "w2", "w3"}
    with filler.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                break
    before = files_of(folder)
    more = [Document(id=f"n{i}", text=LONG, dataset="d") for i in range(4)]
    for _ in range(2):
        is_refused(lambda: index.upsert("qa", more, VECTORS[:4]))
        is_refused(index.compact)
        is_refused(lambda: index.snapshot(catalog, "two"))
        is_refused(lambda: catalog.point("other", "one"))
        assert found(index) == found(opened(catalog)) == known
        assert catalog.versions() == ["one"] and catalog.aliases() == {"live": "one"}
    assert not {path for path in files_of(folder) - before if (folder / path).is_file()}
    filler.unlink()
    index.upsert("qa", more, VECTORS[:4])
    known |= {"n0", "n1", "n2", "n3"}
    assert found(index) == found(opened(catalog)) == known
    assert index.compact() == 2 and found(index) == found(opened(catalog)) == known
    index.snapshot(catalog, "two")
    catalog.point("other", "two")
    verify(catalog.bundle("two"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
