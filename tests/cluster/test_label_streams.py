"""A hundred times the rows take no more memory, neither in the driver nor in an actor."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedder.data.records import GROUP
from tests.cluster.conftest import Cluster
from tests.cluster.label_actors import PEAK, peak_memory
from tests.cluster.label_helpers import Driver, group, write_groups, write_run_file

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROWS = [500, 50_000]
ROW_GROUP = 256
BLOCK_ROWS = 128
ROW_BYTES = 4_000
"""Of the texts of a group; as Python objects they take more."""
GROWTH_BYTES = 64 * 2**20
"""Allowed: a third of what the texts take, and enough for the ids, of which a process holds some copies of 16 bytes."""


def write_many(folder: Path, rows: int) -> None:
    """Groups of ROW_BYTES each, written as they are made."""
    write_groups([group("qa", "many", 0)], folder / "work" / "candidates" / "many.parquet", 1)
    with pq.ParquetWriter(folder / "work" / "candidates" / "many.parquet", GROUP) as file:
        for first in range(0, rows, ROW_GROUP):
            numbers = range(first, min(rows, first + ROW_GROUP))
            file.write_table(pa.Table.from_pylist([large_group(number) for number in numbers], schema=GROUP))


def large_group(number: int) -> dict[str, object]:
    """A group with long candidates."""
    small = group("qa", "many", number)
    length = ROW_BYTES // len(small["candidate_texts"])
    return {**small, "candidate_texts": [f"{text} " + "x" * length for text in small["candidate_texts"]]}


def test_label_of_a_hundred_times_the_rows_takes_no_more_memory(
    cluster: Cluster, tmp_path: Path, tiny_llama_folder: Path, tiny_encoder_folder: Path
) -> None:
    driver = Driver(cluster.address, "RewardedBlocks")
    peaks = []
    for rows in ROWS:
        folder = tmp_path / str(rows)
        write_many(folder, rows)
        run_file = write_run_file(folder, tiny_llama_folder, tiny_encoder_folder, block_rows=BLOCK_ROWS)
        code, output = driver.call(run_file)
        assert code == 0 and f"{rows:,} groups in = {rows:,} out" in output, output
        peaks.append((peak_memory(driver.process.pid), int((folder / "cache" / PEAK).read_text())))
    driver.close()
    (driver_before, actor_before), (of_driver, of_actor) = peaks
    assert of_driver - driver_before < GROWTH_BYTES
    assert of_actor - actor_before < GROWTH_BYTES
