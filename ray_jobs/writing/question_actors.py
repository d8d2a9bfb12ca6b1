"""The LLM in a pool of actors: it writes drafts of questions, and then scores the outputs of those without a fault."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import ray

from embedder.config.run import RunConfig
from embedder.data.ledger import Ledger
from embedder.hashing import content_id
from embedder.mining.bm25 import LexicalIndex
from embedder.models.memory import BatchLimit
from embedder.run.cost import tokens_of
from embedder.writing.verdicts import SEARCHED
from ray_jobs.cluster.blocks import Block, BlockActor, BlockCost, actor_pool, cut_blocks, run_blocks
from ray_jobs.cluster.llm_server import check_server, found_server, note_server
from ray_jobs.cluster.tables import passage_texts
from ray_jobs.writing.draft_tables import ASKED, CHECK


class LlmBlocks(BlockActor):
    """Blocks of rows that are handed over as they are, for one LLM."""

    def __init__(self, config: RunConfig, ledger: Ledger) -> None:
        # Here, because torch comes with them, which the driver does without.
        from embedder.models.open_llm import open_llm
        from embedder.writing.writer import QuestionWriter

        self.ledger = ledger
        lm = open_llm(config.needed_llm, config.paths.cache, config.label.gpus_per_actor)
        self.writer = QuestionWriter(lm, config.needed_llm, config.needed_questions, config.tasks)
        self.peak_flops = lm.peak_flops

    def limits(self) -> Sequence[BatchLimit]:
        return self.writer.backend.limits

    def row_ids(self, block: Block) -> list[str]:
        return [row["row_id"] for row in block["items"]]

    def computed(self) -> BlockCost:
        work = self.writer.backend.work
        return BlockCost(tokens=work.tokens, flops=work.flops, money=work.money)


class WriteBlocks(LlmBlocks):
    """Writes drafts."""

    def compute(self, block: Block) -> list[dict[str, Any]]:
        drafts = self.writer.write(block["items"])
        return [
            {**row, "drafts": [{"query": each.query, "output": each.output, "fault": each.fault} for each in written]}
            for row, written in zip(block["items"], drafts, strict=True)
        ]


class CheckBlocks(LlmBlocks):
    """Scores drafts and keeps the best of each row."""

    def compute(self, block: Block) -> list[dict[str, Any]]:
        best = self.writer.check(block["items"])
        return [
            {name: {**row, **chosen}.get(name) for name in CHECK.names}
            for row, chosen in zip(block["items"], best, strict=True)
        ]


def run_llm(
    config: RunConfig, actor: type[LlmBlocks], ledger: Ledger, rows: Iterable[dict[str, Any]], label: str
) -> BlockCost:
    """Let the pool of `label.num_actors` actors make the rows that the ledger lacks."""
    settings, done = config.label, ledger.row_ids()
    ahead = list(rows)
    ahead = [row for row, held in zip(ahead, done.contains([row["row_id"] for row in ahead]), strict=True) if not held]
    # Those of one kind together, whose prompts begin with the same examples.
    ahead.sort(key=lambda row: (row["kind"], row["row_id"]))
    size = config.needed_questions.block_rows
    blocks = [
        {
            "items": part,
            "rows": len(part),
            "tokens": float(sum(tokens_of(len(text)) for row in part for text in row["texts"])),
        }
        for part in (ahead[first : first + size] for first in range(0, len(ahead), size))
    ]
    if not blocks:
        return BlockCost()
    if config.needed_llm.endpoint is not None:
        folder, longest = ledger.folder.parent, config.needed_questions.max_tokens
        found = found_server(config.needed_llm, config.needed_llm.endpoint, longest)
        check_server(folder, found)
        note_server(folder, found)
    pool = actor_pool(settings.num_actors, settings.gpus_per_actor, settings.cpus_per_actor, settings.min_actors)
    parts = cut_blocks(pa.Table.from_pylist(blocks), settings.num_actors)
    return run_blocks(parts, actor, (config, ledger), pool, label)


@ray.remote(num_cpus=1)
def with_other_passages(config: RunConfig, dataset: str, drafts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ray task: the rows with a good draft, each draft with other passages that BM25 finds for it.

    Those above the draft's own passages come first; they are at most `questions.other_passages` together.
    """
    passages = passage_texts(config.paths, dataset)
    index = LexicalIndex(list(passages), list(passages.values()), config.words.stop_words)
    most = config.needed_questions.other_passages
    rows = []
    for row in drafts:
        good = [draft for draft in row["drafts"] if not draft["fault"]]
        own = set(row["passage_ids"])
        found = index.search([draft["query"] for draft in good], [None] * len(good), SEARCHED)
        candidates = []
        for draft, ranking in zip(good, found, strict=True):
            ids = [passage_id for passage_id, _ in ranking]
            first = next((i for i, passage_id in enumerate(ids) if passage_id in own), len(ids))
            others = [passage_id for passage_id in ids if passage_id not in own][:most]
            candidates.append(
                {
                    "query": draft["query"],
                    "output": draft["output"],
                    "other_ids": others,
                    "other_texts": [passages[passage_id] for passage_id in others],
                    "above": min(first, len(others)),
                    "rank": first + 1 if first < len(ids) else None,
                }
            )
        if candidates:
            asked = {name: row[name] for name in ASKED.names}
            named = content_id(
                row["row_id"], [[each["query"], each["other_ids"], each["above"], each["rank"]] for each in candidates]
            )
            rows.append({**asked, "draft_id": row["row_id"], "row_id": named, "drafts": candidates})
    return rows
