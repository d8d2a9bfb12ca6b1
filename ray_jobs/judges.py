"""Ray Data actor that asks the LLM about retrieved passages. Apart from its job, so that it travels by name."""

from __future__ import annotations

import pyarrow as pa
import ray

from embedder.config import RunConfig
from embedder.errors import ConfigError
from embedder.evaluation.answers import LlmJudge
from embedder.lm import load_lm


class JudgeBlocks:
    """Loads the LLM once; adds to each row its greedy answer (`kind` answer) or log-likelihood (`kind` likelihood)."""

    def __init__(self, config: RunConfig, shot_pools: ray.ObjectRef) -> None:
        if config.llm is None:
            raise ConfigError("the run file has no `llm` section")
        lm = load_lm(config.llm, config.paths.cache)
        self.judge = LlmJudge(lm, config.llm, config.tasks, ray.get(shot_pools), config.evaluate.seed)

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = batch.to_pylist()
        for task, kind in sorted({(row["task"], row["kind"]) for row in rows}):
            mine = [row for row in rows if (row["task"], row["kind"]) == (task, kind)]
            if kind == "answer":
                for row, answer in zip(mine, self.judge.answers(task, mine), strict=True):
                    row["answer"] = answer
            else:
                for row, likelihood in zip(mine, self.judge.likelihoods(task, mine), strict=True):
                    row["likelihood"] = likelihood
        return pa.Table.from_pylist(rows, schema=JUDGED)


JUDGED = pa.schema(
    [
        *((name, pa.string()) for name in ("task", "dataset", "query_id", "query", "retriever", "kind")),
        ("answers", pa.list_(pa.string())),
        ("passages", pa.list_(pa.string())),
        ("answer", pa.string()),
        ("likelihood", pa.float64()),
    ]
)
"""A test query with the passages one retriever found, and what the LLM made of it."""
