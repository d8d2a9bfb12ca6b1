"""A disk that is full, read-only or failing: what is told, what goes on, what is found later, and writes after it."""

from __future__ import annotations

import errno
import shutil
import tempfile
from pathlib import Path

import faiss
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient

from embedder.errors import StorageError
from embedder.index.catalog import Catalog
from embedder.index.faiss_index import empty_vectors, save_approximate, save_flat
from embedder.index.writes import WRITES, write_writes
from embedder.storage.durable import storage_failures
from serve.api import make_api
from tests.serving import local_service, publish, run_config
from tests.storage import files_end_at, passes_on_a_disk_of_its_own, read_only
from tests.unit.full_disk import VECTORS, found, opened
from tests.unit.index_cases import documents_of, live_catalog

DOCUMENT = {"id": "new", "text": "qqnew " * 30}
DOCUMENTS = "/v1/indexes/live/documents"


@pytest.fixture
def folder():
    """A folder that everybody may read, which those of pytest are not."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made)


def catalog_in(folder: Path) -> Catalog:
    return live_catalog(folder / "indexes", documents_of("ab"), VECTORS[:2])


def test_index_on_a_full_disk_refuses_writes_and_takes_them_again_without_a_restart(tmp_path):
    passes_on_a_disk_of_its_own("tests.unit.full_disk", tmp_path, "2m")


def test_index_whose_files_may_not_grow_refuses_writes_and_takes_them_again(folder):
    catalog = catalog_in(folder)
    index = opened(catalog)
    index.upsert("qa", documents_of("cd"), VECTORS[2:4])
    with files_end_at(1000):
        for _ in range(2):
            with pytest.raises(StorageError, match="the disk is full"):
                index.upsert("qa", documents_of(["e" * 300, "f" * 300]), VECTORS[4:6])
            with pytest.raises(StorageError, match="the disk is full"):
                index.compact()
            assert found(index) == found(opened(catalog)) == set("abcd")
    assert not list(folder.rglob(".unfinished-*"))
    index.upsert("qa", documents_of("gh"), VECTORS[4:6])
    assert index.compact() == 2
    assert found(index) == found(opened(catalog)) == set("abcdgh")


@pytest.mark.parametrize("is_new", [True, False])
def test_index_that_may_not_be_written_is_searched_and_refuses_in_one_line(folder, is_new):
    catalog = catalog_in(folder)
    index = opened(catalog)
    known = {"a", "b"}
    if not is_new:
        index.upsert("qa", documents_of("cd"), VECTORS[2:4])
        known |= {"c", "d"}
    with read_only(folder):
        for one in (index, opened(catalog)):
            assert found(one) == known
            for act in (
                lambda one=one: one.upsert("qa", documents_of("e"), VECTORS[4:5]),
                lambda one=one: one.delete("qa", [("a", "d")]),
                lambda one=one: one.snapshot(catalog, "two"),
                lambda: catalog.point("other", "one"),
                lambda: catalog.drop("live"),
            ):
                with pytest.raises(StorageError, match=r"read-only here \(Permission denied\)"):
                    act()
        late = opened(catalog)
    late.upsert("qa", documents_of("e"), VECTORS[4:5])
    assert found(late) == found(index) == found(opened(catalog)) == known | {"e"}


@pytest.mark.parametrize("write", ["flat", "approximate", "writes"])
def test_file_of_a_collection_is_never_cut_short_in_silence(write):
    """FAISS's own writer closes a file on a full disk without an error."""
    flat, vectors = empty_vectors(4, 8)
    vectors[:] = VECTORS[:4]
    full = Path("/dev/full")
    small = faiss.IndexFlatIP(8)
    small.add(VECTORS[:2])
    table = pa.table({"id": ["a"], "dataset": [""], "replaced": [None]}, schema=WRITES)
    act = {
        "flat": lambda: save_flat(flat, full),
        "approximate": lambda: save_approximate(small, full),
        "writes": lambda: write_writes(table, full),
    }[write]
    with pytest.raises(StorageError, match="the disk is full"), storage_failures(full):
        act()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.EDQUOT, "x"), "the disk is full"),
        (OSError(errno.EROFS, "x"), "read-only here"),
        (OSError(errno.EIO, "x"), "the disk fails (Input/output error)"),
        (OSError(errno.ESTALE, "x"), "the disk fails (Stale file handle)"),
        (TimeoutError(errno.ETIMEDOUT, "x"), "the disk fails (Connection timed out)"),
        (OSError("Write failed: [Errno 28] No space left on device"), "the disk is full"),
        (shutil.Error([("a", "b", "[Errno 30] Read-only file system")]), "read-only here"),
    ],
)
def test_storage_failure_is_told_by_its_kind_and_place(error, told):
    with pytest.raises(StorageError) as raised, storage_failures(Path("/x")):
        raise error
    assert str(raised.value).startswith(f"/x: {told}") and raised.value.reason.startswith(told)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory, tiny_encoder_folder):
    folder = tmp_path_factory.mktemp("bundles")
    publish(folder, tiny_encoder_folder, "v1")
    publish(folder, tiny_encoder_folder, "v2", alias=None)
    return folder / "indexes"


def client_of(folder: Path, model: Path) -> TestClient:
    service = local_service(run_config(folder, model))
    return TestClient(make_api(service, lambda *_: None), raise_server_exceptions=False)


def answers(client: TestClient) -> list[int]:
    """Status of a search, an upsert, a deletion, and a move of an alias."""
    found = client.post("/v1/search", json={"task": "tool", "query": "list", "k": 1})
    assert found.status_code == 200 and len(found.json()["results"][0]) == 1, found.text
    asked = [
        client.post(DOCUMENTS, json={"task": "tool", "documents": [DOCUMENT]}),
        client.post(
            f"{DOCUMENTS}/delete", json={"task": "tool", "documents": [{"id": "list-sorts", "dataset": "docs"}]}
        ),
        client.put("/v1/indexes/other", json={"version": "v2"}),
    ]
    for answer in asked:
        if answer.status_code == 507:
            assert answer.headers["x-should-retry"] == "false" and "/indexes" not in answer.json()["error"]["message"]
            assert "read-only" in answer.text or "full" in answer.text
    return [found.status_code, *(answer.status_code for answer in asked)]


def test_service_on_a_read_only_index_searches_and_refuses_writes(folder, bundles, tiny_encoder_folder):
    """case 30-read-only-index"""
    shutil.copytree(bundles, folder / "indexes")
    shutil.copytree(bundles, folder / "other" / "indexes")
    # Once before: somebody else than root may not read the modules that a first request imports.
    assert answers(client_of(folder / "other", tiny_encoder_folder)) == [200, 200, 200, 200]
    with read_only(folder):
        client = client_of(folder, tiny_encoder_folder)
        assert answers(client) == [200, 507, 507, 507]
    assert answers(client) == [200, 200, 200, 200]
    with read_only(folder):
        # What has been deleted needs no write any more.
        assert answers(client) == answers(client_of(folder, tiny_encoder_folder)) == [200, 507, 200, 507]


def test_service_whose_disk_is_full_says_507_until_there_is_room(folder, bundles, tiny_encoder_folder):
    shutil.copytree(bundles, folder / "indexes")
    client = client_of(folder, tiny_encoder_folder)
    with files_end_at(50):
        assert answers(client) == [200, 507, 507, 507]
    assert answers(client) == [200, 200, 200, 200]
    assert client.post("/v1/search", json={"task": "tool", "query": "qqnew", "mode": "lexical"}).status_code == 200


def test_shard_on_a_full_disk_tries_its_next_compaction_later(folder, bundles, tiny_encoder_folder):
    """Each attempt builds a collection in vain, and takes the room that writes need."""
    shutil.copytree(bundles, folder / "indexes")
    shard = local_service(run_config(folder, tiny_encoder_folder)).backend.parts[0]
    index = FullIndex()
    for _ in range(3):
        shard._tidy(index)
    assert (index.adopted, index.compacted) == (3, 1)
    shard._compact_from = 0.0
    shard._tidy(index)
    assert (index.adopted, index.compacted) == (4, 2)


class FullIndex:
    """An index whose disk is full."""

    adopted = compacted = 0

    def adopt(self) -> None:
        self.adopted += 1

    def compact(self, least_rows: int) -> int:
        self.compacted += 1
        raise StorageError("/x: the disk is full")

    def fold(self) -> int:
        return 0

    def stats(self) -> dict:
        return {}
