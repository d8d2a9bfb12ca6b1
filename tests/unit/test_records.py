"""Rows between jobs: ids that never change, files that are whole or absent."""

from __future__ import annotations

import subprocess
import sys

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.data.records import GROUP, LABELLED, group_id, parquet_files, read_rows, read_tables, write_table
from embedder.errors import DataError
from embedder.hashing import content_id, row_seed
from embedder.storage.json_file import write_json
from tests.unit.judges import quick

SCHEMA = pa.schema([("id", pa.string()), ("n", pa.int64())])
ROWS = [{"id": "a", "n": 1}, {"id": "b", "n": 2}]


def test_content_id_is_the_same_in_every_run_and_version():
    assert content_id("qa", "what?", ["x", 1, None]) == "2357281c6b3c61fb028e9c028555f3bc"


def test_content_id_is_the_same_in_another_process():
    code = "from embedder.data.records import content_id; print(content_id('é', 3))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == content_id("é", 3)


@quick
@given(st.lists(st.text("ab,\"'[] ", max_size=5), max_size=3), st.lists(st.text("ab,\"'[] ", max_size=5), max_size=3))
def test_content_id_is_equal_only_for_equal_parts(one, other):
    assert (content_id(*one) == content_id(*other)) == (one == other)


def test_row_seed_fits_into_63_bits_and_differs_by_seed_and_part():
    seeds = {row_seed(seed, part) for seed in range(20) for part in "abc"}
    assert len(seeds) == 60
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_group_id_changes_with_every_column():
    group = dict.fromkeys(GROUP.names, "x")
    ids = {group_id(group), *(group_id({**group, name: "y"}) for name in GROUP.names)}
    assert len(ids) == len(GROUP.names) + 1


def test_group_id_ignores_columns_that_labelling_adds():
    group = dict.fromkeys(GROUP.names, "x")
    assert group_id({**group, "rewards": [1.0]}) == group_id(group)


def test_read_tables_gives_null_for_a_column_that_earlier_versions_did_not_write(tmp_path):
    row = {**dict.fromkeys(LABELLED.names), "task": "qa", "outputs": ["Paris", "London"]}
    old = pa.schema([field for field in LABELLED if field.name != "output_tokens"])
    write_table([{name: row[name] for name in old.names}], old, tmp_path / "a.parquet")
    write_table([{**row, "output_tokens": [1, 2]}], LABELLED, tmp_path / "b.parquet")
    table = read_tables(parquet_files(tmp_path), LABELLED)
    assert table.to_pylist() == [row, {**row, "output_tokens": [1, 2]}] and table.schema == LABELLED
    asked = read_tables(parquet_files(tmp_path), LABELLED, ["output_tokens"])
    assert asked.to_pylist() == [{"output_tokens": None}, {"output_tokens": [1, 2]}]
    with pytest.raises(DataError, match="expected"):
        read_tables(parquet_files(tmp_path), pa.schema([*LABELLED, ("other", pa.string())]))


def test_write_table_is_read_back_as_written(tmp_path):
    write_table(ROWS, SCHEMA, tmp_path / "deep" / "rows.parquet")
    table = read_tables(parquet_files(tmp_path / "deep"), SCHEMA)
    assert (table.schema, table.to_pylist()) == (SCHEMA, ROWS)


def test_read_tables_reads_only_the_columns_asked_for(tmp_path):
    write_table(ROWS, SCHEMA, tmp_path / "rows.parquet")
    assert read_tables([tmp_path / "rows.parquet"], SCHEMA, ["n"]).to_pylist() == [{"n": 1}, {"n": 2}]


def test_read_tables_of_no_files_is_an_empty_table_of_the_schema():
    assert read_tables([], SCHEMA) == SCHEMA.empty_table()


def test_write_table_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    write_table(ROWS, SCHEMA, tmp_path / "rows.parquet")
    with pytest.raises(pa.ArrowInvalid):
        write_table(pa.table({"id": ["c"], "n": ["not a number"]}), SCHEMA, tmp_path / "rows.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"]
    assert read_tables([tmp_path / "rows.parquet"], SCHEMA).to_pylist() == ROWS


def test_parquet_files_leaves_out_a_half_written_file(tmp_path):
    write_table(ROWS, SCHEMA, tmp_path / "rows.parquet")
    (tmp_path / ".rows.parquet").write_bytes(b"PAR1 half")
    assert parquet_files(tmp_path) == [tmp_path / "rows.parquet"]


def test_read_tables_refuses_a_cut_file_by_name(tmp_path):
    path = tmp_path / "rows.parquet"
    write_table(ROWS, SCHEMA, path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"rows\.parquet: not a readable Parquet file"):
        read_tables([path], SCHEMA)


def test_read_tables_refuses_a_file_of_other_columns_by_name(tmp_path):
    write_other_columns(tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"rows\.parquet: "):
        read_tables([tmp_path / "rows.parquet"], SCHEMA)


def test_read_tables_names_the_other_columns_in_one_line(tmp_path):
    write_other_columns(tmp_path / "rows.parquet")
    with pytest.raises(DataError) as caught:
        read_tables([tmp_path / "rows.parquet"], SCHEMA)
    assert "\n" not in str(caught.value)
    assert "columns ['id', 'm'], expected ['id', 'n']" in str(caught.value)


def test_read_tables_refuses_a_file_of_other_types_by_name(tmp_path):
    other = pa.schema([("id", pa.string()), ("n", pa.string())])
    write_table([{"id": "a", "n": "many"}], other, tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"rows\.parquet: "):
        read_tables([tmp_path / "rows.parquet"], SCHEMA)


@pytest.mark.parametrize(("first", "last"), [(0, 0), (0, 3), (1020, 1030), (1024, 2048), (2100, 2500), (3000, 3010)])
def test_read_rows_gives_the_rows_asked_for_whatever_the_row_groups(tmp_path, first, last):
    rows = [{"id": f"p{number}", "n": number} for number in range(2500)]
    write_table(rows, SCHEMA, tmp_path / "rows.parquet")
    found = read_rows(tmp_path / "rows.parquet", SCHEMA, first, last)
    assert (found.schema, found.to_pylist()) == (SCHEMA, rows[first:last])
    assert read_rows(tmp_path / "rows.parquet", SCHEMA, first, last, ["n"]) == found.select(["n"])


def test_read_rows_names_a_file_that_is_not_readable(tmp_path):
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"rows\.parquet: not a readable Parquet file"):
        read_rows(tmp_path / "rows.parquet", SCHEMA, 0, 1)


def write_other_columns(path):
    write_table([{"id": "a", "m": 1}], pa.schema([("id", pa.string()), ("m", pa.int64())]), path)


def test_write_json_is_whole_and_in_utf8(tmp_path):
    write_json({"name": "Röntgen"}, tmp_path / "a" / "x.json")
    assert (tmp_path / "a" / "x.json").read_text(encoding="utf-8") == '{\n  "name": "Röntgen"\n}\n'
    assert len(list((tmp_path / "a").iterdir())) == 1
