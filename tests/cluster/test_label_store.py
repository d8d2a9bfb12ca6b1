"""A labelling run in an object store whose driver is killed: the labels of a folder, and no secret anywhere."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from pyarrow import fs

from embedder.data.ledger import Ledger
from embedder.data.records import LABELLED, parquet_files
from embedder.storage.object_store import ObjectPath, replacing
from tests.cluster.conftest import Cluster
from tests.cluster.label_actors import BEGUN, PAUSE
from tests.cluster.label_helpers import Driver, group, labels, write_groups, write_run_file
from tests.object_store import SECRET, ObjectStore
from tests.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]
GROUPS = {"qa": 32, "tool": 6}
UNIT_GROUPS, BLOCK_UNITS = 2, 2
UNITS = GROUPS["qa"] // UNIT_GROUPS
PAUSE_S = 0.3
SECRETS = [SECRET.encode(), SECRET.replace("/", "%2F").replace("+", "%2B").replace("=", "%3D").encode()]
"""As it is, and as it stands in the URI."""


@dataclass
class StoredRun:
    """A run in the store that was killed half way and started again, and what it said."""

    run_file: Path
    work: ObjectPath
    drivers: list[Driver]
    expected: dict[str, bytes]
    """The labels of the same groups in a folder."""
    blocks: int = 0
    """Committed when the driver was killed."""

    @property
    def begun(self) -> int:
        """Units that actors have begun, in all starts together."""
        path = self.run_file.parent / "stored" / BEGUN
        return len(path.read_text().splitlines()) if path.is_file() else 0

    @property
    def ledger(self) -> Ledger:
        """The labels in the store."""
        return Ledger(self.work / "labelled" / "blocks", LABELLED, "row_id")

    def start_and_kill(self) -> None:
        """Kill the first driver when half of the units are begun."""
        pause = self.run_file.parent / "stored" / PAUSE
        pause.write_text(str(PAUSE_S))
        self.drivers[0].begin(self.run_file)
        process = self.drivers[0].process
        wait_until(lambda: self.begun >= UNITS // 2 or process.poll() is not None, 300)
        assert process.poll() is None
        self.drivers[0].process.kill()
        self.blocks = len(parquet_files(self.ledger.folder))
        pause.unlink()


@pytest.fixture(scope="module")
def stored(
    cluster: Cluster,
    object_store: ObjectStore,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_llama_folder: Path,
    tiny_encoder_folder: Path,
) -> Iterator[StoredRun]:
    """Candidates in the store, labelled with a kill in the middle, and exported beside them."""
    folder = tmp_path_factory.mktemp("store")
    for task, count in GROUPS.items():
        groups = [group(task, f"of-{task}", number) for number in range(count)]
        write_groups(groups, folder / "work" / "candidates" / f"{task}.parquet", row_group_rows=10)
    upload(folder / "work", object_store.path("label"))
    size = {"unit_groups": UNIT_GROUPS, "block_rows": BLOCK_UNITS * UNIT_GROUPS}
    local = write_run_file(folder, tiny_llama_folder, tiny_encoder_folder, **size)
    drivers = [Driver(cluster.address) for _ in range(2)]
    code, output = drivers[0].call(local)
    assert code == 0, output
    expected = labels(Ledger(folder / "work" / "labelled" / "blocks", LABELLED, "row_id"))
    run = yaml.safe_load(local.read_text())
    run["paths"] = {"work": object_store.uri("label"), "cache": str(folder / "stored")}
    run["label"]["export"] = object_store.uri("label/export.jsonl")
    (folder / "stored").mkdir()
    run_file = folder / "stored.yaml"
    run_file.write_text(yaml.safe_dump(run))
    run_in_store = StoredRun(run_file, object_store.path("label"), drivers, expected)
    run_in_store.start_and_kill()
    code, output = drivers[1].call(run_file)
    assert code == 0, output
    yield run_in_store
    for driver in drivers:
        driver.close()


def upload(folder: Path, root: ObjectPath) -> None:
    """Copy the files below a folder."""
    for path in folder.rglob("*.parquet"):
        target = root
        for name in path.relative_to(folder).parts:
            target = target / name
        with replacing(target) as file:
            file.write(path.read_bytes())


def objects_of(path: ObjectPath) -> Iterator[tuple[str, bytes]]:
    """Every object below a path, by its key."""
    for info in path.filesystem.get_file_info(fs.FileSelector(path.key, recursive=True)):
        if info.type == fs.FileType.File:
            with path.filesystem.open_input_stream(info.path) as file:
                yield info.path, file.read()


def logs_of(session: str) -> Iterator[tuple[str, bytes]]:
    """Every log of one session of Ray on this machine."""
    for folder in Path(tempfile.gettempdir()).glob(f"ray*/{session}/logs"):
        for path in folder.rglob("*"):
            if path.is_file():
                yield str(path), path.read_bytes()


def test_label_in_an_object_store_gives_the_labels_of_a_folder_though_killed(stored: StoredRun) -> None:
    assert 1 < stored.blocks < len(parquet_files(stored.ledger.folder))
    assert labels(stored.ledger) == stored.expected and stored.ledger.count_duplicates() == 0
    assert UNITS <= stored.begun <= UNITS + BLOCK_UNITS


def test_label_in_an_object_store_writes_and_prints_no_secret(stored: StoredRun) -> None:
    driver = stored.drivers[1]
    code, said = driver.call(stored.run_file, "--dry-run")
    assert code == 0 and "0 still to label" in said and "s3://***@bucket/label" in said
    code, error = driver.call(stored.run_file, "--set", "label.seed=1")
    assert code == 2 and "error: s3://bucket/label/labelled: holds labels" in error
    written, logs = dict(objects_of(stored.work)), dict(logs_of(driver.session))
    names = {name.rpartition("/")[2] for name in written}
    assert {"labelling.html", "labelling.json", "label.json", "provenance.json", "export.jsonl"} <= names
    assert any("worker" in name for name in logs)
    texts = {str(number): "".join(driver.lines).encode() for number, driver in enumerate(stored.drivers)}
    for name, content in (written | logs | texts | labels(stored.ledger)).items():
        assert not any(secret in content for secret in SECRETS), name
