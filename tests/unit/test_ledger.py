"""Committed blocks: what is done is known from the files alone."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.data.ledger import Ledger
from embedder.data.records import VECTOR, count_rows, read_tables, write_table
from embedder.errors import LabelError
from tests.unit.judges import quick

SCHEMA = pa.schema([("row_id", pa.string()), ("value", pa.int64())])
A, B, C = "a" * 32, "b" * 32, "c" * 32
"""Content ids."""


def rows(*ids: str) -> list[dict[str, object]]:
    return [{"row_id": row_id, "value": ord(row_id[0])} for row_id in ids]


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "blocks", SCHEMA, "row_id")


def test_ledger_that_is_new_is_empty(ledger):
    assert ledger.done() == set()
    assert ledger.read() == SCHEMA.empty_table()


def test_ledger_rows_are_done_and_read_sorted(ledger):
    ledger.commit(rows("d", "b"))
    ledger.commit(pa.Table.from_pylist(rows("a"), schema=SCHEMA))
    assert ledger.done() == {"a", "b", "d"}
    assert ledger.read().to_pylist() == rows("a", "b", "d")


def test_ledger_shows_another_process_what_was_committed(ledger):
    ledger.commit(rows("a"))
    assert Ledger(ledger.folder, SCHEMA, "row_id").done() == {"a"}


def test_ledger_block_that_is_repeated_replaces_itself(ledger):
    ledger.commit(rows(A, B))
    ledger.commit(rows(A, B))
    assert len(list(ledger.folder.iterdir())) == 1
    assert ledger.count_duplicates() == 0


def test_ledger_counts_a_row_of_two_blocks_once(ledger):
    ledger.commit(rows(A, B))
    ledger.commit(rows(B, C))
    assert ledger.read().to_pylist() == rows(A, B, C)
    assert ledger.count_duplicates() == 1


def test_ledger_reads_only_expected_rows(ledger):
    ledger.commit(rows("a", "b", "c"))
    assert ledger.read(["c", "a", "c"]).to_pylist() == rows("a", "c")


def test_ledger_names_a_missing_row(ledger):
    ledger.commit(rows("a"))
    with pytest.raises(LabelError, match="2 of 3 rows missing, first x"):
        ledger.read(["a", "y", "x"])


def test_ledger_ignores_a_half_written_block(ledger):
    ledger.commit(rows("a"))
    (ledger.folder / ".f00.parquet.1234").write_bytes(b"PAR1 half")
    (ledger.folder / ".f00.parquet").write_bytes(b"PAR1 half")
    assert ledger.done() == {"a"}
    assert ledger.read().to_pylist() == rows("a")


@quick
@given(st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4, unique=True), min_size=1, max_size=6))
def test_ledger_gives_the_same_table_for_any_cut_into_blocks(tmp_path_factory, blocks):
    ledger = Ledger(tmp_path_factory.mktemp("ledger"), SCHEMA, "row_id")
    for block in blocks:
        ledger.commit(rows(*block))
    assert ledger.read().to_pylist() == rows(*sorted({row_id for block in blocks for row_id in block}))


def test_ledger_merges_small_blocks_and_keeps_every_row(ledger):
    ids = [f"{number:032x}" for number in range(40)]
    for first in range(0, 30, 3):
        ledger.commit(rows(*ids[first : first + 3]))
    ledger.commit(rows(*ids[30:]))
    before = ledger.read()
    assert ledger.merge(12) == 10
    assert ledger.read() == before
    sizes = sorted(count_rows([path]) for path in ledger.folder.iterdir())
    assert sizes == [6, 10, 12, 12] and ledger.count_duplicates() == 0
    assert ledger.merge(12) == 0


def test_ledger_whose_merging_was_killed_keeps_every_row_once(ledger, monkeypatch):
    """The merged block is there, and the first of those it was made of is gone."""
    ids = [f"{number:032x}" for number in range(8)]
    for first in range(0, 8, 2):
        ledger.commit(rows(*ids[first : first + 2]))
    before, unlink, removed = ledger.read(), Path.unlink, []

    def killed(path, missing_ok=False):
        if path.name.startswith("."):
            return unlink(path, missing_ok=missing_ok)
        if removed:
            raise KeyboardInterrupt
        removed.append(path)
        unlink(path)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            ledger.merge(8)
    assert ledger.read() == before and ledger.count_duplicates() == 6
    ledger.merge(8)
    assert ledger.read() == before and ledger.count_duplicates() == 0


def test_vectors_have_a_width_in_the_file_and_those_of_before_are_read(tmp_path):
    made = [{"dataset": "d", "row_id": A, "id": "x", "is_cut": None, "vector": [0.5, 1.0]}]
    write_table(made, VECTOR, tmp_path / "new.parquet")
    file = pq.ParquetFile(tmp_path / "new.parquet")
    assert file.schema_arrow.field("vector").type == pa.list_(pa.float32(), 2)
    encodings = file.metadata.row_group(0).column(4).encodings
    assert "BYTE_STREAM_SPLIT" in encodings and not any("DICTIONARY" in each for each in encodings)
    pq.write_table(pa.Table.from_pylist(made, VECTOR), tmp_path / "old.parquet")
    tables = [read_tables([tmp_path / name], VECTOR) for name in ("new.parquet", "old.parquet")]
    assert tables[0] == tables[1] and tables[0].to_pylist() == made
