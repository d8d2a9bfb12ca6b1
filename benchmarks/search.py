"""Our search against raw FAISS, on the same index and in the same run: `python -m benchmarks.search --rows 100000`.

Each kind of index is built once and searched by turns: raw FAISS gives scores and row numbers, ours gives documents
with text and metadata, having looked for new writes. For 2 and 4 shards raw FAISS is an IndexShards of the same parts.
Recall@10 is against exact search. Real MiniLM vectors, repeated with noise where more are wanted (search_vectors.py).

Waiting threads sleep here: those of FAISS's OpenMP and of the two OpenBLAS would else spin for milliseconds after each
call and slow down whichever library has its turn.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_THREAD_TIMEOUT": "1"}

import faiss
import numpy as np
import pyarrow as pa

from benchmarks.labelling_rounds import ForeignLoad, machine, write_figures
from benchmarks.real_data import find_data_or_say
from benchmarks.search_vectors import Real, payload, real_vectors, repeated
from embedder.config.index import BuildSettings, SearchParameters
from embedder.index.bundle import Manifest, TaskInstructions, shard_folder, shard_of
from embedder.index.collection import Collection, write_collection
from embedder.index.exact import Vectors
from embedder.index.faiss_index import DEFAULTS, REFINED, empty_vectors, open_flat, open_index
from embedder.index.filters import Condition, Filter, Range, equals
from embedder.index.opened import OpenIndex
from embedder.index.search_options import SearchOptions
from embedder.index.state_places import StatePlaces

K = 10
TASK = "qa"
BATCHES = (1, 32)
TRUTH_QUERIES = 512
SECONDS = "build_seconds"
"""File beside a version that was kept: how long it took."""
FACTORIES = {
    0: ("Flat", "auto", "IVF1024,Flat", "HNSW16", "SQ8"),
    1_000_000: ("Flat", "auto", "IVF4096,Flat", "HNSW16", "SQ8"),
}
"""Kinds of index that are compared from so many rows on."""
CHOICES = (SearchParameters(nprobe=32), SearchParameters(nprobe=128), SearchParameters(nprobe=256, k_factor=40))
"""Beside the defaults, of the automatic choice."""
Figures = dict[str, Any]


@dataclass(frozen=True)
class Raw:
    """An index of FAISS."""

    index: Any
    parts: list[Any]
    """What it refers to, which FAISS does not keep alive."""


def main(arguments: list[str] | None = None) -> int:
    """Measure what is asked for, print and write it; 1 if the data is absent."""
    given = _parser().parse_args(arguments)
    data = find_data_or_say(given.data)
    if data is None:
        return 1
    load, real = ForeignLoad(), real_vectors(data, given.cache)
    found: Figures = {"machine": machine(), "rows": given.rows, "distinct": len(real.texts)}
    vectors, table = repeated(real, given.rows, seed=0), payload(real, given.rows)
    found["by_index"] = {}
    usual = FACTORIES[max(rows for rows in FACTORIES if rows <= given.rows)]
    kinds = [(factory, 1) for factory in given.factory or usual]
    for factory, shards in [*kinds, *((factory, shards) for shards in given.shards for factory in ("Flat", "auto"))]:
        name = factory if shards == 1 else f"{factory}, {shards} shards"
        folder = given.cache / "search" / f"{given.rows}-{factory.replace(',', '_')}-{shards}"
        seconds = build(folder, vectors, table, factory, shards)
        if not given.build_only:
            index = OpenIndex(folder, StatePlaces.beside(folder), Manifest.read(folder), range(shards))
            found["by_index"][name] = {"build_s": seconds, **measure(index, folder, real, given.rounds)}
            print(name, *(f"{key} {value:.4g}" for key, value in found["by_index"][name].items()), sep="  ", flush=True)
        if not given.keep:
            shutil.rmtree(folder)
    found["foreign_cores"] = load.cores()
    found |= headlines(found["by_index"])
    write_figures(found, given.json)
    return 0


def build(folder: Path, vectors: Vectors, table: pa.Table, factory: str, shards: int) -> float:
    """Write a version, unless an earlier run has left it; seconds, those of writing and hashing its files included."""
    if (folder / SECONDS).is_file():
        return float((folder / SECONDS).read_text(encoding="ascii"))
    shutil.rmtree(folder, ignore_errors=True)
    width = vectors.shape[1]
    owner = np.array([shard_of(name, shards) for name in table["id"].to_pylist()])
    manifest = Manifest(
        name="bench",
        encoder_fingerprint="minilm",
        pooling="mean",
        max_tokens=160,
        dimension=width,
        tasks={TASK: TaskInstructions(query="", passage="")},
        collections={TASK: len(vectors)},
        num_shards=shards,
        files={},
    )
    began = time.perf_counter()
    for shard in range(shards):
        rows = np.flatnonzero(owner == shard)
        flat, view = empty_vectors(len(rows), width)
        view[:] = vectors[rows]
        place = shard_folder(folder, shard) / TASK
        place.mkdir(parents=True)
        settings = BuildSettings(factory=factory, lexical=False)
        write_collection(place, table.take(pa.array(rows)), flat, manifest.collection_identity(TASK, shard), settings)
    manifest.write(folder)
    seconds = time.perf_counter() - began
    (folder / SECONDS).write_text(f"{seconds}", encoding="ascii")
    return seconds


def measure(index: OpenIndex, folder: Path, real: Real, rounds: int) -> Figures:
    """Latency of both by turns, recall, filters, disk and memory."""
    before = _memory()
    raw = raw_index(folder, index.manifest)
    queries = real.query_QD[np.random.default_rng(1).permutation(len(real.query_QD))]
    exact = SearchOptions(k=K, parameters=SearchParameters(exact=True))
    truth = _ids(index, queries[:TRUTH_QUERIES], exact)
    found: Figures = {"recall": _recall(truth, _ids(index, queries[:TRUTH_QUERIES], SearchOptions(k=K)))}
    for batch in BATCHES:
        asked = [queries[i * batch : (i + 1) * batch] for i in range(len(queries) // batch)]
        theirs, ours = by_turns(
            [
                partial(_raw_search, raw),
                partial(_search, index, SearchOptions(k=K)),
            ],
            asked,
            rounds,
        )
        found |= {f"raw_ms_{batch}": theirs, f"ours_ms_{batch}": ours, f"overhead_ms_{batch}": ours - theirs}
    if index.manifest.num_shards == 1:
        found["same_as_raw"] = _same_as_raw(raw, index, queries[:TRUTH_QUERIES])
    for name, wanted in _filters().items():
        options = SearchOptions(k=K, filter=wanted)
        (found[f"{name}_ms_1"],) = by_turns([partial(_search, index, options)], list(queries[:64, None]), 1)
        exactly = options.model_copy(update={"parameters": SearchParameters(exact=True)})
        found[f"{name}_recall"] = _recall(_ids(index, queries[:64], exactly), _ids(index, queries[:64], options))
    if index.manifest.num_shards == 1 and folder.name.count("auto"):
        found |= _choices(index, queries, truth)
    found["disk_mb"] = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    found["own_memory_mb"] = (_memory() - before) / 1e6
    return found


def raw_index(folder: Path, manifest: Manifest) -> Raw:
    """FAISS on the same files, without anything of ours around it, set to our defaults."""
    swig: Any = faiss
    parts, shards = [], swig.IndexShards(manifest.dimension, False, True)
    for shard in range(manifest.num_shards):
        place = shard_folder(folder, shard) / TASK
        collection = Collection.load(place, manifest.collection_identity(TASK, shard), check=False)
        part: Any = open_flat(place / "vectors.faiss")
        if collection.info.factory != "Flat":
            flat, part = part, open_index(place / "approximate.faiss")
            if isinstance(part, faiss.IndexHNSWFlat):
                part.storage = flat
            if REFINED.search(collection.info.factory):
                part = faiss.IndexRefine(part, flat)
            parts.append(flat)
            _configure(part)
        parts.append(part)
        if manifest.num_shards > 1:
            shards.add_shard(part)
    return Raw(shards if manifest.num_shards > 1 else parts[-1], parts)


def _configure(index: Any) -> None:  # noqa: ANN401 - FAISS's own classes
    """Our defaults as FAISS keeps its own."""
    swig: Any = faiss
    if isinstance(index, swig.IndexRefine):
        index.k_factor = DEFAULTS.k_factor
        _configure(faiss.downcast_index(index.base_index))
    elif isinstance(index, swig.IndexIVF):
        index.nprobe = DEFAULTS.nprobe
    elif isinstance(index, swig.IndexHNSWFlat):
        index.hnsw.efSearch = DEFAULTS.ef_search


def by_turns(ways: list[Callable[[Vectors], object]], asked: list[Vectors], rounds: int) -> list[float]:
    """Median milliseconds of each way, called by turns on the same queries after a warm-up."""
    times: list[list[float]] = [[] for _ in ways]
    for one in asked[:3]:
        for way in ways:
            way(one)
    for one in (asked * rounds)[: 100 * rounds]:
        for way, taken in zip(ways, times, strict=True):
            began = time.perf_counter()
            way(one)
            taken.append(time.perf_counter() - began)
    return [median(taken) * 1000 for taken in times]


def headlines(by_index: dict[str, Figures]) -> Figures:
    """The figures to quote. Overhead is of all kinds but Flat, where ours is another algorithm than FAISS's."""
    if not by_index:
        return {}
    kinds = {name: one for name, one in by_index.items() if not name.startswith("Flat")}
    quoted: Figures = {"recall_at_10": {name: one["recall"] for name, one in by_index.items()}}
    if "Flat" in by_index:
        quoted["exact_batch32_vs_flat"] = by_index["Flat"]["raw_ms_32"] / by_index["Flat"]["ours_ms_32"]
    if kinds:
        quoted["overhead_batch1_ms"] = max(one["overhead_ms_1"] for one in kinds.values())
        quoted["overhead_batch32_share"] = max(one["overhead_ms_32"] / one["raw_ms_32"] for one in kinds.values())
    return quoted


def _filters() -> dict[str, Filter]:
    """One session of 20 documents, and shares of the documents."""
    shares = {f"share_{share}": Range(lt=share) for share in (1, 10, 50)}
    return {"session": equals("session", "s7")} | {
        name: Filter(must=[Condition(key="share", range=bounds)]) for name, bounds in shares.items()
    }


def _choices(index: OpenIndex, queries: Vectors, truth: list[set[str]]) -> Figures:
    found: Figures = {}
    for choice in CHOICES:
        options = SearchOptions(k=K, parameters=choice)
        name = f"nprobe_{choice.nprobe}_k_factor_{choice.k_factor or DEFAULTS.k_factor}"
        found[f"{name}_recall"] = _recall(truth, _ids(index, queries[:TRUTH_QUERIES], options))
        (found[f"{name}_ms_1"],) = by_turns([partial(_search, index, options)], list(queries[:100, None]), 1)
    return found


def _search(index: OpenIndex, options: SearchOptions, queries: Vectors) -> object:
    return index.search(TASK, options, queries)


def _raw_search(raw: Raw, queries: Vectors) -> object:
    return raw.index.search(queries, K)


def _ids(index: OpenIndex, queries: Vectors, options: SearchOptions) -> list[set[str]]:
    found: list[set[str]] = [set() for _ in queries]
    for first in range(0, len(queries), 64):
        table = index.search(TASK, options, queries[first : first + 64]).table
        for query, name in zip(table["query"].to_pylist(), table["id"].to_pylist(), strict=True):
            found[first + query].add(name)
    return found


def _recall(truth: list[set[str]], found: list[set[str]]) -> float:
    return float(np.mean([len(one & other) / max(1, len(one)) for one, other in zip(truth, found, strict=True)]))


def _same_as_raw(raw: Raw, index: OpenIndex, queries: Vectors) -> float:
    """Share of equal results of one shard, where row i is document p000000i."""
    _, rows = raw.index.search(queries, K)
    table = index.search(TASK, SearchOptions(k=K), queries).table
    names = [f"p{row:07d}" for row in rows.ravel().tolist()]
    return float(np.mean([one == other for one, other in zip(names, table["id"].to_pylist(), strict=True)]))


def _memory() -> int:
    """Bytes of this process that are not memory-mapped files."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) * 1024


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.search", description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000, help="vectors (default 100,000)")
    parser.add_argument("--factory", action="append", help="only this kind of index; may be repeated")
    parser.add_argument("--shards", type=int, nargs="*", default=[2, 4], help="numbers of shards beside 1")
    parser.add_argument("--rounds", type=int, default=1, help="how often the queries are gone through")
    parser.add_argument("--data", type=Path, help="folder that holds qa/nq")
    parser.add_argument("--cache", type=Path, default=Path(".cache/benchmarks"), help="where vectors are kept")
    parser.add_argument("--keep", action="store_true", help="keep the indexes in the cache for the next run")
    parser.add_argument("--build-only", action="store_true", help="build the indexes, measure nothing")
    parser.add_argument("--json", type=Path, help="file that the figures are written to")
    return parser


if __name__ == "__main__":
    sys.exit(main())
