"""Ray Data actor that asks the LLM about retrieved passages. Apart from its job, so that it travels by name."""

from __future__ import annotations

import logging
import time
from typing import Any

import pyarrow as pa
import ray

from embedder.config.run import RunConfig
from embedder.evaluation.base import ASKED
from embedder.evaluation.judge import LlmJudge
from embedder.evaluation.replies import judged_ledger
from embedder.models.causal_lm import load_lm

logger = logging.getLogger(__name__)

UNIT = pa.schema([("rows", pa.list_(pa.struct(list(ASKED))))])
"""Questions that are asked and committed together."""
JUDGED_UNIT = pa.schema([("questions", pa.int64()), ("tokens", pa.int64()), ("seconds", pa.float64())])
"""What one unit cost."""


class JudgeBlocks:
    """Loads the LLM once, then asks it one unit after another and commits the replies."""

    def __init__(self, config: RunConfig, shot_pools: ray.ObjectRef) -> None:
        lm = load_lm(config.needed_llm, config.paths.cache)
        self.judge = LlmJudge(lm, config.needed_llm, config.tasks, config.evaluate, ray.get(shot_pools))
        self.ledger = judged_ledger(config.paths.mounted / "evaluation")

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([self._unit(unit["rows"]) for unit in batch.to_pylist()], schema=JUDGED_UNIT)

    def _unit(self, rows: list[dict[str, Any]]) -> dict[str, float]:
        """Ask one unit, unless an actor did that before it was killed."""
        began, before = time.perf_counter(), self.judge.backend.work.tokens
        if not self.ledger.holds([row["row_id"] for row in rows]):
            self.ledger.commit(self.judge.judge(rows))
        cost = {
            "questions": len(rows),
            "tokens": self.judge.backend.work.tokens - before,
            "seconds": time.perf_counter() - began,
        }
        logger.info("committed replies", extra=cost)
        return cost
