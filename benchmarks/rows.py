"""What `mine` takes of memory and time by the number of passages and queries: a row a stage and size.

    python -m benchmarks.rows --work /tmp/rows                    # 20,000 passages, 1,000 and 10,000 queries
    python -m benchmarks.rows --work /tmp/rows --passages 200000 2000000 --queries 1000 100000

writes benchmarks/scale.json after each row; a second call measures only the rows that are not there. Each row runs in a
driver of its own with a Ray of its own. Texts and vectors come from a seeded generator, so nothing is encoded.

Memory is what a process holds for itself (resident less shared), the highest of some looks a second; of the driver also
by how much it grew since Ray was up. Bytes read are those that the workers asked the system for.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from embedder.config.paths import Paths
from embedder.config.run import EncoderConfig, RunConfig
from embedder.console import console, progress
from embedder.data.records import PASSAGE, QUERY, VECTOR, parquet_files, write_table
from embedder.storage.json_file import write_json
from embedder.storage.object_store import stamp_of
from ray_jobs.prepare import PART_ROWS

RESULTS = Path(__file__).with_name("scale.json")
DATASET, WIDTH, VECTOR_ROWS, DEPTH = "made-up", 384, 4096, 51
STAGES = ("words", "vectors", "groups")
WORDS, PASSAGE_WORDS, QUERY_WORDS = 50_000, 60, 8
LOOK_EVERY_S = 0.1
CPUS = 2


class Watch:
    """The peak memory of this process and of the workers below it, and the bytes that these read."""

    def __init__(self) -> None:
        self.own = psutil.Process()
        self.began, self.driver, self.worker = _held(self.own), 0, 0
        self._read: dict[int, int] = {}
        self._ended = Event()
        self._thread = Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def read(self) -> int:
        """Bytes that the workers have read."""
        return sum(self._read.values())

    def _look(self) -> None:
        while not self._ended.wait(LOOK_EVERY_S):
            self.driver = max(self.driver, _held(self.own))
            for process in self.own.children(recursive=True):
                try:
                    if process.name().startswith("ray::"):
                        self.worker = max(self.worker, _held(process))
                        self._read[process.pid] = process.io_counters().read_chars
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue


def _held(process: psutil.Process) -> int:
    memory = process.memory_info()
    return int(memory.rss - memory.shared)


def run_config(work: Path) -> RunConfig:
    """A run without a model."""
    return RunConfig(paths=Paths(work=work), encoder=EncoderConfig(model="none", pooling="mean", num_actors=CPUS))


def make_data(config: RunConfig, passages: int, queries: int) -> None:
    """Write a corpus, its queries, and the vectors of both, unless they are there."""
    from ray_jobs.retrieval.vectors import VectorStore

    store = VectorStore(config.paths.vectors / "made-up", config.tasks)
    asked = config.paths.queries / "train" / f"{DATASET}.parquet"
    if asked.is_file():
        return
    random = np.random.default_rng(0)
    subjects = random.standard_normal((512, WIDTH), dtype=np.float32)
    firsts: list[str] = []
    for part, first in enumerate(range(0, passages, PART_ROWS)):
        count = min(PART_ROWS, passages - first)
        texts = _texts(random, count, PASSAGE_WORDS)
        firsts += [text.split(" ", QUERY_WORDS)[0] for text in texts]
        common = {"task": ["qa"] * count, "dataset": [DATASET] * count}
        ids = [f"p{first + number}" for number in range(count)]
        table = pa.table(
            {**common, "id": ids, "text": texts, **{name: pa.nulls(count, pa.string()) for name in PASSAGE.names[4:]}}
        )
        write_table(table, PASSAGE, config.paths.corpus / DATASET / f"part-{part:05d}.parquet")
        for block in _vectors(store.keys(table, "passage"), ids, subjects, random):
            store.ledger(DATASET, "passage").commit(block)
    right = random.integers(0, passages, queries)
    rows = [
        dict.fromkeys(QUERY.names)
        | {"task": "qa", "dataset": DATASET, "query_id": f"q{number}", "positive_ids": [f"p{passage}"]}
        | {"query": f"{firsts[passage]} {text}", "answers": [firsts[passage]]}
        for number, (passage, text) in enumerate(zip(right.tolist(), _texts(random, queries, QUERY_WORDS), strict=True))
    ]
    table = pa.Table.from_pylist(rows, QUERY)
    for block in _vectors(store.keys(table, "query"), table["query_id"].to_pylist(), subjects, random):
        store.ledger(DATASET, "query").commit(block)
    write_table(table, QUERY, asked)


def _texts(random: np.random.Generator, count: int, length: int) -> list[str]:
    """Texts whose words are as frequent as those of a language (Zipf)."""
    numbers = np.minimum(random.zipf(1.3, (count, length)), WORDS)
    return [" ".join(f"w{number}" for number in row) for row in numbers.tolist()]


def _vectors(
    keys: Sequence[str], ids: Sequence[str], subjects: np.ndarray, random: np.random.Generator
) -> Iterator[pa.Table]:
    """Unit vectors around some directions, as those of texts are, in blocks of VECTOR."""
    for first in range(0, len(ids), VECTOR_ROWS):
        own = slice(first, first + VECTOR_ROWS)
        count = len(ids[own])
        matrix = subjects[random.integers(0, len(subjects), count)]
        matrix = matrix + random.standard_normal((count, WIDTH), dtype=np.float32)
        matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
        ends = pa.array(np.arange(count + 1, dtype=np.int32) * WIDTH)
        vectors = pa.ListArray.from_arrays(ends, pa.array(matrix.reshape(-1)))
        yield pa.table([[DATASET] * count, keys[own], ids[own], [False] * count, vectors], schema=VECTOR)


def measure_row(stage: str, config: RunConfig) -> dict[str, Any]:
    """Run one stage of `mine` in this process and its workers; those before it have left their files."""
    import ray

    from embedder.run.ray_token import prepare_own_ray
    from ray_jobs.retrieval.candidate_groups import write_groups
    from ray_jobs.retrieval.ranking_files import Search
    from ray_jobs.retrieval.vector_rankings import rank_by_vectors
    from ray_jobs.retrieval.vectors import VectorStore
    from ray_jobs.retrieval.word_rankings import rank_by_words

    prepare_own_ray(ray.util.get_node_ip_address(), False)
    ray.init(address="local", num_cpus=CPUS, include_dashboard=False, log_to_driver=False)
    store, search = VectorStore(config.paths.vectors / "made-up", config.tasks), Search("train", DATASET, DEPTH)
    began = time.perf_counter()
    with Watch() as watch, progress(stage, 0, console()) as counter:
        words = rank_by_words(config.paths, config.words, search, counter)
        folder = words.folder
        if stage != "words":
            vectors = rank_by_vectors(config, store, search, counter, words)
            folder = vectors.folder
        if stage == "groups":
            write_groups(config.paths, config.mine, DATASET, words, vectors, counter)
            folder = config.paths.work / "candidates"
    seconds = time.perf_counter() - began
    ray.shutdown()
    return {
        "seconds": round(seconds, 1),
        "driver_mb": watch.driver >> 20,
        "driver_growth_mb": max(0, watch.driver - watch.began) >> 20,
        "worker_mb": watch.worker >> 20,
        "read_mb": watch.read >> 20,
        "written_mb": round(sum(stamp_of(path)[0] for path in parquet_files(folder)) / 2**20, 1),
    }


def slopes(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Log of seconds over log of rows between the two largest sizes of an axis, the worst stage."""
    found: dict[str, list[float]] = {}
    for axis in ("passages", "queries"):
        other = "queries" if axis == "passages" else "passages"
        for row in rows.values():
            smaller = [
                each
                for each in rows.values()
                if each["stage"] == row["stage"] and each[other] == row[other] and each[axis] < row[axis]
            ]
            if smaller and row[axis] == max(each[axis] for each in rows.values()):
                last = max(smaller, key=lambda each: int(each[axis]))
                slope = math.log(row["seconds"] / last["seconds"]) / math.log(row[axis] / last[axis])
                found.setdefault(f"by_{axis}", []).append(slope)
    return {name: round(max(each), 2) for name, each in found.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the made-up runs")
    parser.add_argument("--passages", type=int, nargs="+", default=[20_000])
    parser.add_argument("--queries", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--row", choices=STAGES, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.row:
        config = run_config(options.work)
        console().print(json.dumps(measure_row(options.row, config)), markup=False)
        return 0
    rows = json.loads(options.results.read_text())["rows"] if options.results.is_file() else {}
    for passages in options.passages:
        for queries in options.queries:
            for stage in STAGES:
                name = f"{stage}, {passages} passages, {queries} queries"
                if name in rows:
                    continue
                work = options.work / f"{passages}-{queries}"
                make_data(run_config(work), passages, queries)
                command = [sys.executable, "-m", "benchmarks.rows", "--work", str(work), "--row", stage]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    console().print(f"{name}: failed\n{done.stderr[-2000:]}", markup=False)
                    return 1
                measured = json.loads(done.stdout.splitlines()[-1])
                rows[name] = {"stage": stage, "passages": passages, "queries": queries, **measured}
                growth = max(row["driver_growth_mb"] for row in rows.values())
                write_json({"driver_growth_mb": growth, "time_slope": slopes(rows), "rows": rows}, options.results)
                console().print(f"{name}: {measured}", markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
