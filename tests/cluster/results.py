"""What each stage of a run has made, in a form in which two runs can be compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from embedder.config.run import RunConfig
from embedder.index.bundle import verify
from embedder.index.catalog import Catalog
from embedder.storage.fetched import local_copy
from embedder.storage.object_store import AnyPath, entries
from embedder.training.job import MetricsReader
from ray_jobs.cluster.tables import labelled_ledger
from tests.cluster.label_helpers import labels


def served_bundle(config: RunConfig) -> Path:
    """The version of the index that the alias of a run names."""
    catalog = Catalog(config.paths.indexes)
    return catalog.here(catalog.resolve(config.index.alias))


def tables(folder: AnyPath) -> dict[str, list[dict[str, Any]]]:
    """The rows of every Parquet file below a folder, by its name there."""
    here = local_copy(folder)
    return {str(path.relative_to(here)): pq.read_table(path).to_pylist() for path in sorted(here.rglob("*.parquet"))}


def prepared(config: RunConfig) -> object:
    """All rows, and those that were set aside."""
    folder = config.paths.work / "prepared"
    return tables(folder), {path.name: path.read_text() for path in entries(folder, "rejected/*.json")}


def mined(config: RunConfig) -> object:
    """All groups."""
    return tables(config.paths.work / "candidates")


def labelled(config: RunConfig) -> object:
    """All labels, and how many are there twice."""
    ledger = labelled_ledger(config)
    return labels(ledger), ledger.count_duplicates()


def trained(config: RunConfig) -> object:
    """The losses of each step, and the weights."""
    (folder,) = entries(config.paths.training, "*")
    steps = MetricsReader(folder / "metrics.jsonl").steps()
    losses = [(row.step, row.losses, row.learning_rate, row.paces) for row in steps]
    return losses, (local_copy(config.paths.model) / "model.safetensors").read_bytes()


def indexed(config: RunConfig) -> object:
    """The hashes of the bundle's files, but for those that tell where sources and models lie."""
    files = verify(served_bundle(config)).files
    return {name: digest for name, digest in files.items() if name not in {"model/README.md", "model/lineage.json"}}


def evaluated(config: RunConfig) -> object:
    """Every value of every query."""
    folder = config.paths.work / "evaluation" / "test"
    return tables(folder), json.loads((folder / "results.json").read_text(encoding="utf-8"))


RESULTS: dict[str, Callable[[RunConfig], object]] = {
    "prepare": prepared,
    "mine": mined,
    "label": labelled,
    "train": trained,
    "index": indexed,
    "evaluate": evaluated,
}
