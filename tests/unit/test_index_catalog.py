"""Names of versions and aliases: what is refused, what moves at once, and what a removal must not take."""

from __future__ import annotations

import errno
import json
import threading

import numpy as np
import pytest

from embedder.errors import BundleError, ConfigError, StorageError
from embedder.hashing import content_id
from embedder.index.catalog import Catalog
from embedder.storage.numbered import MARK_BYTES
from embedder.storage.revisions import Revisions
from tests.unit.index_cases import add_version, count, documents_of, live_catalog, opened, unit

NAMES = [f"b{i:02}" for i in range(30)]
VECTORS = unit(np.random.default_rng(3), 30)


@pytest.fixture
def catalog(tmp_path):
    """A catalog with one version of two shards."""
    return live_catalog(tmp_path / "indexes", documents_of(NAMES), VECTORS)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "/etc", "a/b", "a\\b", "x" * 200, ".hidden", "a\0b"])
def test_catalog_refuses_a_name_that_leads_elsewhere(catalog, name):
    for act in (catalog.resolve, lambda one: catalog.point(one, "one"), catalog.remove):
        with pytest.raises(ConfigError):
            act(name)
    with pytest.raises(ConfigError), catalog.adding(name):
        pass


def test_catalog_keeps_aliases_and_versions_apart(catalog):
    with pytest.raises(ConfigError, match="is a version"):
        catalog.point("one", "one")
    with pytest.raises(ConfigError, match="no version or alias 'nine'"):
        catalog.point("next", "nine")
    with pytest.raises(ConfigError, match=r"served as \['live'\]"):
        catalog.remove("one")
    add_version(catalog, "two", documents_of("ab"), VECTORS[:2])
    assert catalog.built() is None
    catalog.mark_built("one")
    assert catalog.built() == "one"
    catalog.point("live", "two")
    catalog.remove("one")
    assert catalog.built() is None and not any(catalog.bundle("one").parent.glob("*one*"))
    assert (catalog.versions(), catalog.aliases()) == (["two"], {"live": "two"})
    catalog.drop("live")
    assert catalog.aliases() == {}


def test_catalog_reads_a_table_that_notes_what_aliases_named_before(catalog):
    """As versions of this program did that replayed writes when an alias moved."""
    fields = {"aliases": {"live": "one"}, "previous": {"live": {"two": 1}}, "built": "one", "leaving": []}
    content = json.dumps({"table": fields, "digest": content_id(fields)}).encode()
    newest = max((catalog.folder / "catalog").iterdir())
    newest.write_bytes(content + bytes(MARK_BYTES))
    assert catalog.aliases() == {"live": "one"} and catalog.built() == "one"


def test_version_that_is_removed_leaves_what_was_written_through_it(catalog):
    index = opened(catalog)
    add_version(catalog, "two", documents_of(NAMES), VECTORS)
    index.upsert("qa", documents_of(["new"]), VECTORS[:1])
    assert index.compact() == 1
    catalog.point("live", "two")
    catalog.remove("one")
    assert not catalog.state("one", "live").generations.exists()
    assert count(opened(catalog, "two")) == 31


def test_catalog_never_overwrites_a_version_with_another(catalog):
    add_version(catalog, "one", documents_of(NAMES), VECTORS)
    with pytest.raises(ConfigError, match="exists with another content"):
        add_version(catalog, "one", documents_of("ab"), VECTORS[:2])
    assert count(opened(catalog)) == 30


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"table": {"aliases": {"live": "two"}}, "digest": "0"}',
        b"\xff",
        b'{"table": 1, "digest": "0"}',
    ],
)
def test_catalog_refuses_damaged_aliases(catalog, content):
    newest = max((catalog.folder / "catalog").iterdir())
    newest.write_bytes(content + bytes(MARK_BYTES))
    for act in (catalog.aliases, lambda: catalog.resolve("live"), lambda: catalog.point("next", "one")):
        with pytest.raises(BundleError, match="catalog: the file with the highest number is damaged"):
            act()
    newest.unlink()
    catalog.point("live", "one")
    assert catalog.aliases() == {"live": "one"}


def test_catalogs_that_move_aliases_at_once_lose_none_of_them(catalog):
    def move(who: int) -> None:
        for number in range(5):
            Catalog(catalog.folder).point(f"{who}-{number}", "one")

    threads = [threading.Thread(target=move, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert catalog.aliases() == {"live": "one", **{f"{who}-{number}": "one" for who in range(4) for number in range(5)}}


def test_catalog_writes_nothing_where_nothing_changes(catalog):
    catalog.point("live", "one")
    catalog.drop("next")
    assert len(list((catalog.folder / "catalog").iterdir())) == 1


def test_version_whose_removal_was_cut_short_gets_no_alias_and_is_removed_again(catalog, monkeypatch):
    add_version(catalog, "two", documents_of("ab"), VECTORS[:2])

    def is_cut_short(_) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr("embedder.index.catalog.discard_folder", is_cut_short)
        with pytest.raises(StorageError):
            catalog.remove("two")
    for act in (lambda: catalog.point("live", "two"), lambda: catalog.resolve("two")):
        with pytest.raises(ConfigError, match="no version or alias 'two'"):
            act()
    with pytest.raises(ConfigError, match="remove it once more"):
        add_version(catalog, "two", documents_of("ab"), VECTORS[:2])
    catalog.remove("two")
    add_version(catalog, "two", documents_of("ab"), VECTORS[:2])
    catalog.point("live", "two")
    assert catalog.resolve("live") == "two"


def test_version_that_is_removed_while_an_alias_goes_to_it_keeps_its_files_or_gets_no_alias(catalog, monkeypatch):
    """The alias comes first: the removal sees it, although it began before."""
    add_version(catalog, "two", documents_of("ab"), VECTORS[:2])
    newest, asked = Revisions.newest, []

    def overtaken(revisions: Revisions):
        found = newest(revisions)
        if not asked:
            asked.append(found)
            Catalog(catalog.folder).point("next", "two")
        return found

    monkeypatch.setattr(Revisions, "newest", overtaken)
    with pytest.raises(ConfigError, match=r"served as \['next'\]"):
        catalog.remove("two")
    assert asked and count(opened(catalog, "next")) == 2
