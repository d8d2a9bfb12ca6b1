"""What a labelling run has ahead of it: every group that no block holds, once, and none that one holds."""

from __future__ import annotations

import gc
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.config.paths import Paths
from embedder.config.run import EncoderConfig, RunConfig
from embedder.data.ledger import Ledger
from embedder.data.records import GROUP, LABELLED, group_id
from embedder.data.row_ids import RowIds
from embedder.errors import DataError
from ray_jobs.labelling.block_plan import read_row_group, survey
from tests.unit.judges import quick

ROW_GROUP = 8


def group(task, number):
    texts = [f"passage {number // 2 + i}" for i in range(3)]
    values = (task, f"of-{task}", str(number), "query", ["answer"], ["a", "b", "c"], texts, [1, 0, 0])
    return dict(zip(GROUP.names, values, strict=True))


def run_of(folder, row_group=ROW_GROUP, **counts) -> RunConfig:
    """A run with candidates of some tasks in files of several row groups."""
    config = RunConfig(paths=Paths(work=folder), encoder=EncoderConfig(model="none", pooling="mean"))
    config = config.model_copy(update={"label": config.label.model_copy(update={"unit_groups": 2})})
    config.paths.candidates.mkdir(parents=True, exist_ok=True)
    for task, count in counts.items():
        table = pa.Table.from_pylist([group(task, number) for number in range(count)], schema=GROUP)
        pq.write_table(table, config.paths.candidates / f"{task}.parquet", row_group_size=row_group)
    return config


def ledger_of(config) -> Ledger:
    return Ledger(config.paths.labelled / "blocks", LABELLED, "row_id")


def units_of(config, work):
    """The queries ahead of every unit, in order."""
    units = []
    for block in work.blocks.to_pylist():
        rows = read_row_group(config.paths.candidates / block["file"], block["row_group"])
        units += [[rows.groups[position]["query_id"] for position in unit] for unit in block["units"]]
    return units


def commit(config, queries):
    """Let a block hold the groups of the task qa with these queries."""
    rows = []
    for number in range(pq.read_metadata(config.paths.candidates / "qa.parquet").num_row_groups):
        read = read_row_group(config.paths.candidates / "qa.parquet", number)
        for position, candidates in enumerate(read.groups):
            if candidates["query_id"] in queries:
                rows.append(read.without_rewards(position, config.tasks, "print"))
    ledger_of(config).commit(rows)


def test_survey_of_a_new_run_has_everything_ahead_in_whole_units(tmp_path):
    config = run_of(tmp_path, qa=21)
    work = survey(config, ledger_of(config), 5)
    units = units_of(config, work)
    assert sorted(query for unit in units for query in unit) == sorted(map(str, range(21)))
    assert (len(work.expected), work.before, work.plain) == (21, 0, [])
    assert (work.tasks["qa"].groups, work.tasks["qa"].ahead, work.tasks["qa"].pairs) == (21, 21, 63)
    assert sum(work.blocks["rows"].to_pylist()) == 21 and max(work.blocks["rows"].to_pylist()) == 6


@quick
@given(st.sets(st.integers(0, 20)), st.integers(1, 9), st.integers(1, 9))
def test_survey_has_just_what_is_missing_ahead_whatever_the_blocks_were(
    tmp_path_factory, done, block_rows, other_block_rows
):
    config = run_of(tmp_path_factory.mktemp("plan"), qa=21)
    before = units_of(config, survey(config, ledger_of(config), block_rows))
    commit(config, {str(number) for number in done})
    work = survey(config, ledger_of(config), other_block_rows)
    missing = [[query for query in unit if int(query) not in done] for unit in before]
    assert units_of(config, work) == [unit for unit in missing if unit]
    assert work.before == len(done) and work.tasks["qa"].ahead == 21 - len(done)
    assert work.tasks["qa"].pairs == 3 * (21 - len(done))
    assert sum(work.blocks["rows"].to_pylist()) == 21 - len(done)
    assert sum(work.blocks["tokens"].to_pylist()) == pytest.approx(work.tasks["qa"].tokens)


@quick
@given(st.sets(st.integers(0, 20)), st.integers(1, 9), st.integers(1, 9), st.data())
def test_survey_after_a_kill_has_the_same_parts_of_units_ahead(
    tmp_path_factory, done, block_rows, other_block_rows, data
):
    config = run_of(tmp_path_factory.mktemp("plan"), qa=21)
    commit(config, {str(number) for number in done})
    work = survey(config, ledger_of(config), block_rows)
    ahead, blocks = units_of(config, work), work.blocks.to_pylist()
    committed = data.draw(st.sets(st.integers(0, len(blocks) - 1))) if blocks else set()
    for number in committed:
        block = blocks[number]
        rows = read_row_group(config.paths.candidates / block["file"], block["row_group"])
        positions = [position for unit in block["units"] for position in unit]
        ledger_of(config).commit([rows.without_rewards(position, config.tasks, "print") for position in positions])
        ahead = [unit for unit in ahead if unit[0] not in {rows.groups[unit[0]]["query_id"] for unit in block["units"]}]
    assert units_of(config, survey(config, ledger_of(config), other_block_rows)) == ahead


def test_survey_keeps_groups_without_a_reward_apart(tmp_path):
    config = run_of(tmp_path, qa=5, tool=10)
    work = survey(config, ledger_of(config), 4)
    assert set(work.blocks["file"].to_pylist()) == {"qa.parquet"}
    assert work.plain == [(config.paths.candidates / "tool.parquet", number) for number in range(2)]
    assert len(work.expected) == 15 and work.tasks["tool"].pairs == 0


def test_survey_of_a_selection_leaves_out_groups_with_a_reward_alone(tmp_path):
    config = run_of(tmp_path, qa=9, tool=3)
    selected = RowIds([[group_id(group("qa", number)) for number in (0, 4, 8)]])
    work = survey(config, ledger_of(config), 4, selected)
    assert sorted(query for unit in units_of(config, work) for query in unit) == ["0", "4", "8"]
    assert len(work.expected) == 6 and work.plain


def test_survey_counts_a_group_that_stands_twice_once(tmp_path):
    config = run_of(tmp_path, qa=4)
    pq.write_table(pa.Table.from_pylist([group("qa", 0)] * 2, GROUP), config.paths.candidates / "copy.parquet")
    commit(config, {"0"})
    work = survey(config, ledger_of(config), 4)
    assert (len(work.expected), work.before, sum(work.blocks["rows"].to_pylist())) == (4, 1, 3)


def test_survey_names_an_unknown_task(tmp_path):
    config = run_of(tmp_path, qa=2)
    pq.write_table(pa.Table.from_pylist([group("other", 0)], GROUP), config.paths.candidates / "other.parquet")
    with pytest.raises(DataError, match=r"other\.parquet: task 'other' of query '0' is unknown; known are"):
        survey(config, ledger_of(config), 4)


def test_survey_remembers_a_few_bytes_of_a_row(tmp_path):
    """An id as text alone takes 90; the row itself more than 1,000."""
    held = {}
    for rows in (1024, 5 * 1024):
        config = run_of(tmp_path / str(rows), row_group=512, qa=rows)
        ledger = ledger_of(config)
        gc.collect()
        tracemalloc.start()
        work = survey(config, ledger, 64)
        gc.collect()
        held[rows] = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert len(work.expected) == rows
    assert held[5 * 1024] - held[1024] < 40 * 4 * 1024
