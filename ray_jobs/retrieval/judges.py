"""The LLM in a pool of actors, which is asked about the passages that retrievers found and commits its replies."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import pyarrow as pa
import ray

from embedder.config.run import RunConfig
from embedder.data.ledger import Ledger
from embedder.evaluation.asked import Row, plan_units
from embedder.evaluation.base import ASKED
from embedder.evaluation.judge import LlmJudge
from embedder.evaluation.measurements import DatasetValues, ask_about, enter_all_replies
from embedder.evaluation.replies import judge_fingerprint, judged_ledger
from embedder.labelling.prompts import ShotPools
from embedder.models.open_llm import open_llm, prepare_llm
from ray_jobs.cluster.blocks import Block, BlockActor, BlockCost, actor_pool, cut_blocks, run_blocks
from ray_jobs.cluster.tables import shot_pools
from ray_jobs.retrieval.passages import named_texts

BLOCK = pa.schema([("questions", pa.list_(pa.struct(list(ASKED)))), ("rows", pa.int64())])
"""Questions that are asked and committed together."""


class JudgeBlocks(BlockActor):
    """Asks the LLM blocks of questions."""

    def __init__(self, config: RunConfig, shot_pools: ray.ObjectRef) -> None:
        gpus = config.evaluate.gpus_per_actor
        lm = open_llm(config.needed_llm, config.paths.cache, gpus)
        self.judge = LlmJudge(lm, config.needed_llm, config.tasks, config.evaluate, ray.get(shot_pools))
        self.ledger = reply_ledger(config)

    def row_ids(self, block: Block) -> list[str]:
        return [row["row_id"] for row in block["questions"]]

    def compute(self, block: Block) -> list[dict[str, Any]]:
        return self.judge.judge(block["questions"])

    def computed(self) -> BlockCost:
        return BlockCost(tokens=self.judge.backend.work.tokens)


def reply_ledger(config: RunConfig) -> Ledger:
    """The LLM's replies."""
    return judged_ledger(config.paths.work / "evaluation")


def ask_llm(config: RunConfig, measured: list[DatasetValues]) -> list[str]:
    """Let the actor pool answer what no block holds yet, and judge all replies; lines on what that took."""
    settings, pools = config.evaluate, shot_pools(config)
    fingerprint = judge_fingerprint(config.needed_llm, config.tasks, settings, pools)
    asked = ask_about(measured, partial(named_texts, config.paths), settings, fingerprint)
    if not asked.rows:
        return []
    ledger = reply_ledger(config)
    done = ledger.done()
    before = sum(row_id in done for row_id in asked.rows)
    lines = [f"{len(asked.ids):,} prompts, {len(asked.rows):,} different ones, {before:,} answered before this run"]
    if units := plan_units(asked.rows.values(), settings.unit_queries, done):
        lines.append(_compute(config, units, pools))
    enter_all_replies(measured, asked, ledger)
    return lines


def _compute(config: RunConfig, units: list[list[Row]], pools: ShotPools) -> str:
    """Let the actor pool answer units of questions; a line on what that took."""
    settings = config.evaluate
    # Once here, so that a GGUF file is not converted by every actor.
    prepare_llm(config.needed_llm, config.paths.cache)
    blocks = pa.Table.from_pylist([{"questions": unit, "rows": len(unit)} for unit in units], schema=BLOCK)
    began = time.monotonic()
    cost = run_blocks(
        cut_blocks(blocks, settings.num_actors),
        JudgeBlocks,
        (config, ray.put(pools)),
        actor_pool(settings.num_actors, settings.gpus_per_actor, settings.cpus_per_actor),
        "evaluate: LLM",
        lambda spent, seconds, share: f"{spent.tokens / seconds:,.0f} tokens/s",
    )
    return f"LLM: {cost.tokens:,} tokens scored in {time.monotonic() - began:,.1f} s"
