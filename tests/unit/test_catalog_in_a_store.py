"""Versions in an object store: fetched once a machine and by parts, whole or refused, and gone with their files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from embedder.errors import BundleError, ConfigError, DataError
from embedder.index.__main__ import main
from embedder.index.bundle import read_manifest
from embedder.index.catalog import BUILDING, Catalog
from embedder.index.manifest import hash_files
from embedder.index.opened import OpenIndex
from embedder.index.stored_files import FILES, file_sizes
from embedder.storage.json_file import write_json
from embedder.storage.node_cache import PLACE
from embedder.storage.object_store import ObjectPath, upload
from serve.api import make_api
from tests.object_store import ObjectStore
from tests.serving import local_service, publish, run_config
from tests.unit.index_cases import add_version, count, documents_of, live_catalog, opened, write_version
from tests.waiting import wait_until

NAMES = "abcdefghij"
VECTORS = np.eye(len(NAMES), dtype=np.float32)


class Machines:
    """Makes the tests' own process another machine, which has fetched nothing yet."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder, self._monkeypatch, self._count = folder, monkeypatch, 0
        self.next()

    def next(self) -> None:
        """Go on as the next one."""
        self._count += 1
        self._monkeypatch.setenv(PLACE, str(self._folder / f"machine-{self._count}"))


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machines:
    return Machines(tmp_path, monkeypatch)


@pytest.fixture
def place(object_store: ObjectStore, tmp_path: Path) -> ObjectPath:
    return object_store.path(f"catalogs/{tmp_path.name}")


@pytest.fixture
def catalog(place: ObjectPath, machines: Machines) -> Catalog:
    """A version of two shards that `live` names, as another machine than its builder sees it."""
    live_catalog(place, documents_of(NAMES), VECTORS)
    machines.next()
    return Catalog(place)


def test_version_is_fetched_and_searched_on_another_machine(catalog: Catalog, machines: Machines) -> None:
    index = opened(catalog)
    assert count(index) == len(NAMES)
    index.upsert("qa", documents_of("xy"), VECTORS[:2])
    assert index.compact() > 0 and count(index) == len(NAMES) + 2
    machines.next()
    # What the other one has compacted is its own; the log and the version are everybody's.
    assert count(opened(Catalog(catalog.folder))) == len(NAMES) + 2


def test_parts_of_a_version_are_fetched_as_they_are_asked_for(catalog: Catalog) -> None:
    folder = catalog.here("one", ["shards/00001/"])
    assert {name.split("/")[0] for name in hash_files(folder)} == {"shards", "manifest.json"}
    OpenIndex.open(folder, catalog.state("one", "live"), [1])
    assert catalog.here("one", ["model/"]) == folder and (folder / "model" / "config.json").is_file()
    assert not (folder / "shards" / "00000").exists()
    names = hash_files(catalog.here("one")).keys() - {"manifest.json"}
    assert catalog.sizes("one") == {name: (folder / name).stat().st_size for name in names}


def test_stored_file_that_was_changed_is_refused_and_fetched_again_once_it_is_right(
    catalog: Catalog, place: ObjectPath, object_store: ObjectStore
) -> None:
    digest = max(file_sizes(place), key=lambda name: file_sizes(place)[name])
    name = f"{place.key.partition('/')[2]}/{FILES}/{digest}"
    client, right = object_store.client(), (place / FILES / digest).open("rb").read()
    client.put_object(Bucket="bucket", Key=name, Body=right[:-1] + b"?")
    with pytest.raises(BundleError, match=f"{digest}: SHA-256 differs from its name"):
        catalog.here("one")
    client.put_object(Bucket="bucket", Key=name, Body=right)
    assert count(opened(catalog)) == len(NAMES)


def test_removed_version_takes_along_what_no_other_one_and_no_build_names(
    catalog: Catalog, place: ObjectPath, machines: Machines
) -> None:
    opened(catalog).delete("qa", [("a", "d")])
    opened(catalog).snapshot(catalog, "two")
    before = file_sizes(place)
    alone = before.keys() - set(read_manifest(catalog.bundle("two")).files.values())
    kept = sorted(alone)[0]
    write_json({"files": {"shards/00000/x": kept}, "rows": {}}, place / BUILDING / "next" / "00000.json")
    catalog.point("live", "two")
    catalog.remove("one")
    assert file_sizes(place).keys() == before.keys() - alone | {kept}
    machines.next()
    assert catalog.versions() == ["two"] and opened(Catalog(place)).stats()["qa"].documents >= len(NAMES) - 1
    with pytest.raises(ConfigError, match="no version 'one'"):
        catalog.remove("one")


def test_removal_that_was_cut_off_is_ended_by_the_next(catalog: Catalog, place: ObjectPath) -> None:
    opened(catalog).delete("qa", [("a", "d")])
    opened(catalog).snapshot(catalog, "two")
    catalog.point("live", "two")
    catalog._change(lambda table: catalog._leaving("one", table))
    (catalog.bundle("one") / "manifest.json").unlink()
    catalog.remove("one")
    add_version(catalog, "one", documents_of(NAMES), VECTORS)
    assert catalog.versions() == ["one", "two"]


def test_version_is_completed_where_files_of_it_are_gone(catalog: Catalog, place: ObjectPath) -> None:
    gone = sorted(file_sizes(place))[0]
    (place / FILES / gone).unlink()
    add_version(catalog, "one", documents_of(NAMES), VECTORS)
    assert gone in file_sizes(place) and count(opened(catalog)) == len(NAMES)


def test_name_that_leads_out_of_the_bundle_is_not_fetched(catalog: Catalog, place: ObjectPath, tmp_path: Path) -> None:
    manifest = read_manifest(catalog.bundle("one"))
    digest = sorted(manifest.files.values())[0]
    manifest.model_copy(update={"files": {"../../../evil": digest}}).write(tmp_path)
    upload(tmp_path / "manifest.json", place / "versions" / "evil" / "manifest.json")
    with pytest.raises(DataError, match=r"'\.\./\.\./\.\./evil', whose name cannot be that of a file"):
        catalog.here("evil")


def test_commands_work_on_a_store_and_bring_its_version_elsewhere(
    catalog: Catalog, place: ObjectPath, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = place.reference
    main([uri, "snapshot", "two"])
    main([uri, "point", "next", "two"])
    main([uri])
    (tmp_path / "indexes").mkdir()
    with pytest.raises(SystemExit):
        main([str(tmp_path / "indexes"), "restore", (place / "versions" / "none").reference, "here"])
    main([str(tmp_path / "indexes"), "restore", (place / "versions" / "two").reference, "here"])
    told = capsys.readouterr().out
    assert "two: 10 of qa in 2 shards" in told and "served as next" in told and "none: no bundle" in told
    assert Catalog(tmp_path / "indexes").versions() == ["here"]


def test_version_whose_files_are_not_all_stored_is_not_published(catalog: Catalog, tmp_path: Path) -> None:
    def lacks_a_file() -> None:
        with catalog.adding("two") as staged:
            write_version(staged, documents_of("xyz"), VECTORS[:3])
            next(staged.glob("shards/*/*/vectors.faiss")).unlink()

    with pytest.raises(BundleError, match="two: 1 of its files are not stored; run the job again"):
        lacks_a_file()
    assert catalog.versions() == ["one"]


def test_catalog_in_a_store_never_overwrites_a_version_with_another(catalog: Catalog) -> None:
    add_version(catalog, "one", documents_of(NAMES), VECTORS)
    with pytest.raises(ConfigError, match="exists with another content"):
        add_version(catalog, "one", documents_of("ab"), VECTORS[:2])


def test_service_goes_over_to_a_version_that_another_machine_has_built(
    place: ObjectPath, machines: Machines, tiny_encoder_folder: Path
) -> None:
    publish(place, tiny_encoder_folder, "v1")
    machines.next()
    with TestClient(make_api(local_service(run_config(place, tiny_encoder_folder)), lambda *_: None)) as client:

        def served() -> str:
            (index,) = client.get("/v1/indexes").json()["data"]
            return str(index["version"])

        assert served() == "v1"
        publish(place, tiny_encoder_folder, "v2", max_tokens=32)
        wait_until(lambda: served() == "v2")
        body = {"task": "chat", "query": "a", "k": 1}
        assert client.post("/v1/search", json=body).status_code == 200
