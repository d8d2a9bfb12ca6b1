"""A corpus in parts, and the texts of some of its passages, found by tasks that read a part each."""

from __future__ import annotations

from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc
import ray

from embedder.config.paths import Paths
from embedder.data.records import PASSAGE, each_table
from embedder.storage.object_store import AnyPath
from ray_jobs.cluster.tables import corpus_files
from ray_jobs.cluster.task_tree import some_at_a_time

PART_FILES = 4
"""Files of a part, which `prepare` writes with 20,000 passages each."""


def corpus_parts(paths: Paths, dataset: str) -> list[list[AnyPath]]:
    """The files of each part of a corpus."""
    files = corpus_files(paths, dataset)
    return [files[first : first + PART_FILES] for first in range(0, len(files), PART_FILES)]


def named_texts(paths: Paths, dataset: str, ids: Collection[str]) -> dict[str, str]:
    """The texts of some passages by id."""
    if not ids:
        return {}
    parts, wanted = corpus_parts(paths, dataset), ray.put(pa.array(sorted(ids), pa.string()))
    texts: dict[str, str] = {}
    most = 2 * int(ray.cluster_resources().get("CPU", 1))
    for _, found in some_at_a_time(lambda part: texts_of_part.remote(part, wanted), parts, most):
        texts.update(zip(found["id"].to_pylist(), found["text"].to_pylist(), strict=True))
    return texts


@ray.remote(num_cpus=1)
def texts_of_part(files: list[AnyPath], wanted: pa.Array) -> pa.Table:
    """Ray task: ids and texts of the wanted passages of a part of the corpus."""
    return pa.concat_tables(
        table.filter(pc.is_in(table["id"], wanted)) for table in each_table(files, PASSAGE, ["id", "text"])
    )
