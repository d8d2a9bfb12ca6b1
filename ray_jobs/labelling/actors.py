"""The LLM in a pool of actors, which reads blocks of groups, labels and commits them."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import ray

from embedder.config.run import RunConfig
from embedder.data.ledger import Ledger
from embedder.labelling.label_statistics import LabelCost, share_of_peak
from embedder.labelling.labeller import RewardLabeller
from embedder.models.memory import BatchLimit
from embedder.models.open_llm import open_llm, prepare_llm
from ray_jobs.cluster.blocks import Block, BlockActor, BlockCost, actor_pool, cut_blocks, run_blocks
from ray_jobs.cluster.tables import llm_ledger
from ray_jobs.labelling.block_plan import GroupRows, Survey, read_row_group
from ray_jobs.labelling.provenance import LabelPools, note_device


class GroupBlocks(BlockActor):
    """Labels blocks of groups with a model, which damaged groups are kept from; these say why."""

    def __init__(self, config: RunConfig, ledger: Ledger, fingerprint: str) -> None:
        self.config, self.ledger, self.fingerprint = config, ledger, fingerprint
        # The last one is kept, because blocks of one row group mostly follow each other, and each asks for it twice.
        self.read = lru_cache(maxsize=1)(read_row_group)

    @abstractmethod
    def label(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The groups as labelled rows, in the same order."""

    def row_ids(self, block: Block) -> list[str]:
        return self.read_block(block).ids_of(block["units"])

    def read_block(self, block: Block) -> GroupRows:
        """The row group of a block."""
        return self.read(self.config.paths.candidates / block["file"], block["row_group"])

    def label_rows(self, rows: GroupRows, positions: list[int]) -> list[dict[str, Any]]:
        """The labelled rows of the groups at some positions."""
        made = iter(self.label([rows.groups[position] for position in positions if position not in rows.unreadable]))
        return [
            rows.without_rewards(position, self.config.tasks, self.fingerprint)
            if position in rows.unreadable
            else next(made)
            for position in positions
        ]


class LabelBlocks(GroupBlocks):
    """Labels blocks of groups with the LLM."""

    def __init__(self, config: RunConfig, pools: ray.ObjectRef, fingerprint: str) -> None:
        super().__init__(config, llm_ledger(config.paths), fingerprint)
        gpus = config.label.gpus_per_actor
        lm = open_llm(config.needed_llm, config.paths.cache, gpus)
        self.labeller = RewardLabeller(lm, config.needed_llm, config.label, config.tasks, *ray.get(pools))
        self.peak_flops = lm.peak_flops
        self.noted = ""

    def limits(self) -> Sequence[BatchLimit]:
        return self.labeller.backend.limits

    def label(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        labelled = self.labeller.label(groups, self.fingerprint)
        kind = f"{self.labeller.lm.device_kind}, {self.labeller.backend.how}"
        if kind != self.noted:  # at first, and when memory was short
            note_device(self.config.paths, kind)
            self.noted = kind
        return labelled

    def compute(self, block: Block) -> list[dict[str, Any]]:
        rows = self.read_block(block)
        # Unit by unit, since what is read in one batch decides the last bits: blocks may be cut differently next time.
        return [row for unit in block["units"] for row in self.label_rows(rows, unit)]

    def computed(self) -> BlockCost:
        work = self.labeller.backend.work
        return BlockCost(pairs=self.labeller.pairs, tokens=work.tokens, flops=work.flops, money=work.money)


def label_with_llm(config: RunConfig, work: Survey, pools: LabelPools, fingerprint: str) -> LabelCost:
    """Let the pool of `label.num_actors` actors label the blocks ahead; returns what that cost."""
    settings = config.label
    # Once here, so that a GGUF file is not converted by every actor.
    prepare_llm(config.needed_llm, config.paths.cache)
    began = time.monotonic()
    cost = run_blocks(
        cut_blocks(work.blocks, settings.num_actors),
        LabelBlocks,
        # By reference: Ray then holds one copy a node in place of one an actor.
        (config, ray.put(pools), fingerprint),
        actor_pool(settings.num_actors, settings.gpus_per_actor, settings.cpus_per_actor, settings.min_actors),
        "label",
        _rates,
    )
    peak = cost.capacity / cost.seconds if cost.seconds else None
    seconds = time.monotonic() - began
    return LabelCost(seconds, cost.pairs, cost.tokens, cost.flops, peak, settings.num_actors, cost.money)


def _rates(cost: BlockCost, seconds: float, share: float) -> str:
    """Rates so far, and what all of it will have been if the rest needs as much for what was expected of it."""
    of_peak = share_of_peak(cost.flops, cost.capacity)
    peak = "" if of_peak is None else f", {of_peak:.0%} of peak"
    whole = f"; about {cost.tokens / share:,.0f} tokens in all" if share else ""
    money = f", money {cost.money:,.2f} so far" if cost.money else ""
    return f"{cost.pairs / seconds:,.1f} pairs/s, {cost.tokens / seconds:,.0f} tokens/s{peak}{whole}{money}"
