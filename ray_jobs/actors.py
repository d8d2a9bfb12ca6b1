"""Ray Data actors that hold the LLM. Apart from the jobs, so that they travel by name and not by value."""

from __future__ import annotations

import pyarrow as pa
import ray

from embedder.config import LlmConfig, RunConfig
from embedder.errors import ConfigError
from embedder.evaluation.answers import LlmJudge
from embedder.labelling.labeller import RewardLabeller
from embedder.lm import CausalLm, load_lm
from ray_jobs.tables import labelled_ledger


def _load(config: RunConfig) -> tuple[CausalLm, LlmConfig]:
    if config.llm is None:
        raise ConfigError("the run file has no `llm` section")
    return load_lm(config.llm, config.paths.cache), config.llm


class LabelBlocks:
    """Loads the LLM once, labels blocks of groups and commits each of them."""

    def __init__(self, config: RunConfig, shot_pools: ray.ObjectRef, fingerprint: str) -> None:
        lm, llm = _load(config)
        self.labeller = RewardLabeller(lm, llm, config.label, config.tasks, ray.get(shot_pools))
        self.ledger = labelled_ledger(config)
        self.fingerprint = fingerprint

    def __call__(self, batch: pa.Table) -> pa.Table:
        self.ledger.commit(self.labeller.label(batch.to_pylist(), self.fingerprint))
        return pa.table({"rows": [batch.num_rows]})


class JudgeBlocks:
    """Loads the LLM once; adds to each row its greedy answer (`kind` answer) or log-likelihood (`kind` likelihood)."""

    def __init__(self, config: RunConfig, shot_pools: ray.ObjectRef) -> None:
        lm, llm = _load(config)
        self.judge = LlmJudge(lm, llm, config.tasks, ray.get(shot_pools), config.evaluate.seed)

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
