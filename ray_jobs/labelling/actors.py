"""Ray Data actors that hold the LLM. Apart from the jobs, so that they travel by name and not by value."""

from __future__ import annotations

import logging
import time
from typing import Any

import pyarrow as pa
import ray

from embedder.config.run import RunConfig
from embedder.labelling.labeller import RewardLabeller
from embedder.labelling.units import Unit
from embedder.models.causal_lm import load_lm
from embedder.models.device import matmul_rate
from ray_jobs.cluster.tables import llm_ledger
from ray_jobs.labelling.block_plan import GroupRows, Planner

logger = logging.getLogger(__name__)

LABELLED_BLOCK = pa.schema(
    [
        *((name, pa.int64()) for name in ("rows", "pairs", "tokens")),
        *((name, pa.float64()) for name in ("flops", "seconds", "peak_flops")),
    ]
)
"""What one block cost: rows committed, pairs scored, tokens through the layers, busy seconds of the actor."""


class LabelBlocks:
    """Loads the LLM once, then reads, labels and commits one block after another."""

    def __init__(self, config: RunConfig, shot_pools: ray.ObjectRef, selected: ray.ObjectRef, fingerprint: str) -> None:
        lm = load_lm(config.needed_llm, config.paths.cache)
        self.config, self.fingerprint = config, fingerprint
        self.labeller = RewardLabeller(lm, config.needed_llm, config.label, config.tasks, ray.get(shot_pools))
        self.planner = Planner(config, ray.get(selected))
        self.ledger = llm_ledger(config)
        self.peak_flops = matmul_rate(lm.device, lm.model.dtype)

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([self._label(place) for place in batch.to_pylist()], schema=LABELLED_BLOCK)

    def _label(self, place: dict[str, Any]) -> dict[str, float]:
        """Label one block, unless an actor did that before it was killed."""
        planned = self.planner.read(self.config.paths.candidates / place["file"], place["row_group"])
        units = [planned.units[number] for number in place["units"]]
        cost = dict.fromkeys(LABELLED_BLOCK.names, 0.0)
        cost |= {"rows": place["rows"], "peak_flops": self.peak_flops}
        if self.ledger.holds(planned.ids_of(units)):
            return cost
        began, work = time.perf_counter(), self.labeller.backend.work
        pairs, tokens, flops = self.labeller.pairs, work.tokens, work.flops
        self.ledger.commit([row for unit in units for row in self._label_unit(planned.rows, unit)])
        cost |= {"pairs": self.labeller.pairs - pairs, "tokens": work.tokens - tokens}
        cost |= {"flops": work.flops - flops, "seconds": time.perf_counter() - began}
        logger.info("committed labels", extra=cost)
        return cost

    def _label_unit(self, rows: GroupRows, unit: Unit) -> list[dict[str, Any]]:
        """The labelled rows of a unit, in its order."""
        readable = [position for position in unit if position not in rows.unreadable]
        labels = self.labeller.label([rows.groups[position] for position in readable], self.fingerprint)
        labelled = dict(zip(readable, labels, strict=True))
        for position in rows.unreadable.keys() & unit:
            labelled[position] = rows.without_rewards(position, self.config, self.fingerprint)
        return [labelled[position] for position in unit]
