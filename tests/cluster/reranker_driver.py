"""A driver as `label` is one: train the reranker on the LLM's rows, let it label the groups, tell what it measured."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow.parquet as pq

from embedder.config.load import load_run
from embedder.console import console
from embedder.data.ledger import Ledger
from embedder.data.records import GROUP, LABELLED, parquet_files, read_tables
from ray_jobs.cluster.session import connect
from ray_jobs.labelling.block_plan import select_llm_groups
from ray_jobs.labelling.reranker import reranker_lines, score_with_reranker, train_reranker


def main(run_file: Path) -> None:
    """`llm.parquet` beside the run file holds the rows that the LLM labelled."""
    config = load_run(run_file)
    connect(config.cluster)
    groups = read_tables(parquet_files(config.paths.candidates), GROUP).to_pylist()
    model = train_reranker(config, pq.read_table(run_file.with_name("llm.parquet")))
    score_with_reranker(config, Ledger(config.paths.labelled / "blocks", LABELLED, "row_id"), "print")
    for line in [*reranker_lines(model), f"chosen {len(select_llm_groups(groups, 3, 0))}"]:
        console().print(line, markup=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
