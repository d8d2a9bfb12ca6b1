"""The LLM in a pool of actors, which reads blocks of groups, labels and commits them."""

from __future__ import annotations

import time
from typing import Any

import ray

from embedder.config.run import RunConfig
from embedder.labelling.label_statistics import LabelCost
from embedder.labelling.labeller import RewardLabeller
from embedder.labelling.prompts import ShotPools
from embedder.labelling.units import Unit
from embedder.models.causal_lm import load_lm, prepare_lm
from embedder.models.device import matmul_rate
from ray_jobs.cluster.blocks import Block, BlockActor, BlockCost, actor_pool, cut_blocks, run_blocks
from ray_jobs.cluster.tables import llm_ledger
from ray_jobs.labelling.block_plan import GroupRows, Planner, Survey


class LabelBlocks(BlockActor):
    """Labels blocks of groups with the LLM."""

    result = "labels"

    def __init__(self, config: RunConfig, shot_pools: ray.ObjectRef, selected: ray.ObjectRef, fingerprint: str) -> None:
        lm = load_lm(config.needed_llm, config.paths.cache)
        self.config, self.fingerprint = config, fingerprint
        self.labeller = RewardLabeller(lm, config.needed_llm, config.label, config.tasks, ray.get(shot_pools))
        self.planner = Planner(config, ray.get(selected))
        self.ledger = llm_ledger(config.paths)
        self.peak_flops = matmul_rate(lm.device, lm.model.dtype)

    def row_ids(self, block: Block) -> list[str]:
        return self.planner.read_block(block).ids_of(block["units"])

    def compute(self, block: Block) -> list[dict[str, Any]]:
        planned = self.planner.read_block(block)
        # Unit by unit, since what is read in one batch decides the last bits: blocks may be cut differently next time.
        return [row for number in block["units"] for row in self._label_unit(planned.rows, planned.units[number])]

    def computed(self) -> BlockCost:
        work = self.labeller.backend.work
        return BlockCost(pairs=self.labeller.pairs, tokens=work.tokens, flops=work.flops)

    def _label_unit(self, rows: GroupRows, unit: Unit) -> list[dict[str, Any]]:
        """The labelled rows of a unit, in its order."""
        return rows.labelled(
            unit, lambda groups: self.labeller.label(groups, self.fingerprint), self.config.tasks, self.fingerprint
        )


def label_with_llm(config: RunConfig, work: Survey, pools: ShotPools, fingerprint: str) -> LabelCost:
    """Let the pool of `label.num_actors` actors label the blocks ahead; returns what that cost."""
    settings = config.label
    # Once here, so that a GGUF file is not converted by every actor.
    prepare_lm(config.needed_llm, config.paths.cache)
    began = time.monotonic()
    cost = run_blocks(
        cut_blocks(work.blocks, settings.num_actors),
        LabelBlocks,
        # By reference: Ray then holds one copy a node in place of one an actor.
        (config, ray.put(pools), ray.put(work.selected), fingerprint),
        actor_pool(settings.num_actors, settings.gpus_per_actor, settings.cpus_per_actor, settings.min_actors),
        "label",
        _rates,
    )
    peak = cost.capacity / cost.seconds if cost.seconds else None
    return LabelCost(time.monotonic() - began, cost.pairs, cost.tokens, cost.flops, peak, settings.num_actors)


def _rates(cost: BlockCost, seconds: float) -> str:
    share = f", {cost.flops / cost.capacity:.0%} of peak" if cost.capacity else ""
    return f"{cost.pairs / seconds:,.1f} pairs/s, {cost.tokens / seconds:,.0f} tokens/s{share}"
