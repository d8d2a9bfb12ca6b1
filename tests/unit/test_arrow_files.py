"""No reader runs what a file holds: extension types that unpickle, pickled arrays, pickles in place of an index."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data  # makes the extension type known that unpickles
from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

from embedder.config.paths import Paths
from embedder.data.records import GROUP, PASSAGE, QUERY, VECTOR, count_rows, each_table, open_parquet, read_tables
from embedder.errors import BundleError, DataError
from embedder.index.collection import Collection, CollectionInfo
from embedder.index.documents import PAYLOAD
from embedder.index.metadata_index import BATCHES, METADATA
from embedder.index.writes import WRITES
from embedder.storage.arrow_files import open_arrow, refuse_extension_types
from embedder.storage.json_file import write_json
from embedder.training.group_rows import TRAINING_ROW
from embedder.training.row_files import RowFiles
from embedder.training.training_rows import TrainingRows
from ray_jobs.cluster.tables import candidate_groups, query_table
from ray_jobs.labelling.block_plan import read_row_group, row_groups
from ray_jobs.retrieval.shards import vector_dimension
from ray_jobs.retrieval.vectors import VectorStore
from tests.unit.index_cases import documents_of, unit, write
from tests.unit.test_rules import FILES, tree_of

ROOT = Path(__file__).parents[2]
assert ray.data is not None


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """The file that a planted pickle makes."""
    path = tmp_path / "ran"
    pickle.loads(pickle.dumps(Payload(path)))
    path.unlink()
    return path


def planted(schema: pa.Schema, marker: Path, column: int = 0) -> pa.Table:
    """One row of a schema, with a pickle in one of its columns."""
    values = pa.ExtensionArray.from_storage(
        ArrowPythonObjectType(), pa.array([pickle.dumps(Payload(marker))], pa.large_binary())
    )
    arrays = [pa.nulls(1, field.type) for field in schema]
    arrays[column] = values
    fields = [pa.field(field.name, array.type) for field, array in zip(schema, arrays, strict=True)]
    return pa.table(arrays, schema=pa.schema(fields, schema.metadata))


def write_arrow(table: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def test_planted_pickle_runs_where_nobody_looks_at_the_type(tmp_path: Path, marker: Path) -> None:
    """Else the other tests here would show nothing."""
    write_arrow(planted(WRITES, marker), tmp_path / "file")
    pa.ipc.open_file(pa.memory_map(str(tmp_path / "file"))).read_all().to_pylist()
    assert marker.exists()


@pytest.mark.parametrize("nesting", ["plain", "list", "struct", "dictionary", "unknown"])
def test_extension_type_is_found_wherever_it_hides(nesting: str) -> None:
    kind = ArrowPythonObjectType()
    named = pa.field("a", pa.large_binary(), metadata={"ARROW:extension:name": kind.extension_name})
    field = {
        "plain": pa.field("a", kind),
        "list": pa.field("a", pa.list_(pa.list_(kind))),
        "struct": pa.field("a", pa.struct([("b", pa.string()), ("c", kind)])),
        "dictionary": pa.field("a", pa.dictionary(pa.int8(), pa.list_(kind))),
        "unknown": pa.field("a", pa.list_(named)),
    }[nesting]
    with pytest.raises(pa.ArrowInvalid, match="column 'a' is of an extension type"):
        refuse_extension_types(pa.schema([("id", pa.string()), field]))


def test_schemas_of_ours_are_not_refused() -> None:
    for schema in (PASSAGE, QUERY, GROUP, VECTOR, PAYLOAD, WRITES, METADATA, TRAINING_ROW):
        refuse_extension_types(schema)


INDEX_FILES = {"payload.arrow": PAYLOAD, "writes.arrow": WRITES, "metadata.arrow": METADATA}


@pytest.mark.parametrize("name", INDEX_FILES)
def test_index_refuses_a_file_with_a_pickle(tmp_path: Path, marker: Path, name: str) -> None:
    """Fault 8.15: the metadata of an index had no check of its columns."""
    folder, schema = tmp_path / "collection", INDEX_FILES[name]
    info = write(folder, documents_of("a"), unit(np.random.default_rng(0), 1))
    if name == "metadata.arrow":
        schema = schema.with_metadata({BATCHES: b'[["subject", "text"]]'})
    for column in range(len(schema)):
        write_arrow(planted(schema, marker, column), folder / name)
        with pytest.raises(BundleError, match=rf"{name}.*extension type"):
            Collection(folder, info)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["vectors.faiss", "approximate.faiss", "lexical"])
def test_index_refuses_a_pickle_in_place_of_a_file(tmp_path: Path, marker: Path, name: str) -> None:
    folder = tmp_path / "collection"
    documents = documents_of([f"d{number}" for number in range(40)])
    info = write(folder, documents, unit(np.random.default_rng(0), 40), factory="HNSW8,Flat")
    assert (folder / name).exists()
    if name == "lexical":
        for path in (folder / name).glob("*.npy"):
            np.save(path, np.array([Payload(marker)], dtype=object), allow_pickle=True)
    else:
        (folder / name).write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(BundleError, match=r"not readable|not the vectors"):
        Collection(folder, info)
    assert not marker.exists() and isinstance(info, CollectionInfo)


def test_training_rows_refuse_a_file_with_a_pickle(tmp_path: Path, marker: Path) -> None:
    """Fault 8.15: the rows of a training had no check of their columns."""
    write_arrow(planted(TRAINING_ROW, marker), tmp_path / "part-00000.arrow")
    part = {"name": "part-00000.arrow", "rows": 1, "bytes": (tmp_path / "part-00000.arrow").stat().st_size}
    write_json(asdict(RowFiles({"qa": 1}, 1, {"qa": 1.0}, 0.0, [part])), tmp_path / "rows.json")
    np.save(tmp_path / "order.npy", np.zeros(1, dtype=np.int64))
    with pytest.raises(DataError, match=r"not readable .*extension type"):
        TrainingRows(tmp_path)
    assert not marker.exists()


def test_training_rows_refuse_an_order_with_a_pickle(tmp_path: Path, marker: Path) -> None:
    write_json(asdict(RowFiles({"qa": 1}, 1, {"qa": 1.0}, 0.0, [])), tmp_path / "rows.json")
    np.save(tmp_path / "order.npy", np.array([Payload(marker)], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="not readable"):
        TrainingRows(tmp_path)
    assert not marker.exists()


def run_of(folder: Path) -> Paths:
    return Paths(work=folder, cache=folder / "cache")


PARQUET: dict[str, tuple[pa.Schema, str, Callable[[Path, Path], object]]] = {
    "read_tables": (QUERY, "file.parquet", lambda folder, path: read_tables([path], QUERY).to_pylist()),
    "each_table": (PASSAGE, "file.parquet", lambda folder, path: list(each_table([path], PASSAGE))),
    "count_rows": (VECTOR, "file.parquet", lambda folder, path: count_rows([path])),
    "read_row_group": (GROUP, "file.parquet", lambda folder, path: read_row_group(path, 0)),
    "row_groups": (GROUP, "candidates/d.parquet", lambda folder, path: list(row_groups(run_of(folder)))),
    "candidate_groups": (GROUP, "candidates/d.parquet", lambda folder, path: candidate_groups(run_of(folder))),
    "query_table": (
        QUERY,
        "prepared/queries/test/d.parquet",
        lambda folder, path: query_table(run_of(folder), "test", "d"),
    ),
}


@pytest.mark.parametrize("name", PARQUET)
def test_parquet_reader_refuses_a_column_with_a_pickle(tmp_path: Path, marker: Path, name: str) -> None:
    schema, file, read = PARQUET[name]
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    for column in range(len(schema)):
        pq.write_table(planted(schema, marker, column), path)
        with pytest.raises(DataError, match=r"\.parquet: not a readable Parquet file"):
            read(tmp_path, path)
    assert not marker.exists()


def test_vector_dimension_refuses_a_column_with_a_pickle(tmp_path: Path, marker: Path) -> None:
    paths = run_of(tmp_path)
    store = VectorStore(tmp_path / "vectors", {})
    for folder in (paths.corpus / "d", store.ledger("d", "passage").folder):
        folder.mkdir(parents=True)
        pq.write_table(planted(VECTOR, marker, 4), folder / "0.parquet")
    with pytest.raises(DataError, match="not a readable Parquet file of vectors"):
        vector_dimension(paths, store)
    assert not marker.exists()


def test_open_functions_read_what_ours_write(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([{"id": "a"}], schema=WRITES)
    write_arrow(table, tmp_path / "file")
    assert open_arrow(tmp_path / "file", WRITES).read_all().equals(table)
    with pytest.raises(pa.ArrowInvalid, match="not"):
        open_arrow(tmp_path / "file", PAYLOAD)
    pq.write_table(table, tmp_path / "file.parquet")
    with open_parquet(tmp_path / "file.parquet") as file:
        assert file.read().equals(table)


READERS: dict[str, set[str]] = {
    "open_file": {"embedder/storage/arrow_files.py"},
    "ParquetFile": {"embedder/data/records.py"},
    "read_index": {"embedder/index/faiss_index.py"},
    "open_stream": {"embedder/index/operations.py"},
    **{name: set() for name in ("read_record_batch", "read_table", "read_schema", "read_feather", "read_message")},
    **{name: set() for name in ("RecordBatchFileReader", "RecordBatchStreamReader", "ParquetDataset")},
    **{name: set() for name in ("read_metadata", "read_parquet", "fromfile")},
}


def test_readers_that_could_run_code_are_called_in_one_place_each() -> None:
    """A new reader goes through `open_arrow` or `open_parquet`, or looks at the types itself and is named here."""
    called: dict[str, set[str]] = {name: set() for name in READERS}
    wrong = []
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            owner, name = ast.unparse(node.func.value), node.func.attr
            if name in called:
                called[name].add(str(path))
            if name == "load" and owner in {"np", "numpy", "torch", "joblib", "dill"}:
                wrong.append(f"{path}:{node.lineno} {owner}.load")
    assert not wrong
    assert called == READERS
