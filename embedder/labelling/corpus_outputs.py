"""Desired outputs of other queries of a dataset, as rivals of a query's own: text of the same origin, made by nobody.

Needs no torch, because what labels depend on is told from these too.
"""

from __future__ import annotations

from collections.abc import Sequence

from embedder.config.run import RunConfig
from embedder.data.records import QUERY, parquet_files, read_tables
from embedder.hashing import row_seed
from embedder.labelling.rewards import distinct_samples

OutputPools = dict[str, list[str]]
"""By dataset: outputs from which rivals are chosen."""

POOL_OUTPUTS = 256
"""Most outputs of a dataset's pool."""


def read_output_pools(config: RunConfig) -> OutputPools:
    """The pools of all prepared datasets whose task ranks outputs; none where `label.corpus_outputs` is 0."""
    pools: OutputPools = {}
    for path in parquet_files(config.paths.queries / "train") if config.label.corpus_outputs else []:
        rows = read_tables([path], QUERY, ["task", "answers"]).to_pylist()
        if rows and config.tasks[rows[0]["task"]].has_rivals:
            outputs = {row["answers"][0] for row in rows if row["answers"]}
            pools[path.stem] = _first_by_seed(sorted(outputs), config.label.seed, "output pool")[:POOL_OUTPUTS]
    return pools


def choose_outputs(
    pool: Sequence[str], accepted: Sequence[str], count: int, seed: int, dataset: str, query_id: str
) -> list[str]:
    """At most `count` outputs of a pool for one query, seeded by it, none that equals an accepted one."""
    return distinct_samples(_first_by_seed(pool, seed, "corpus output", dataset, query_id), accepted)[:count]


def _first_by_seed(outputs: Sequence[str], seed: int, *names: str) -> list[str]:
    return sorted(outputs, key=lambda output: (row_seed(seed, *names, output), output))
