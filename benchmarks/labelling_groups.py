"""Groups to label for the benchmark: real queries, candidates and outputs that the LLM itself sampled, by a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from embedder.config.prepare import Source
from embedder.config.run import LlmConfig
from embedder.config.tasks import BUILTIN_TASKS
from embedder.data.dataset import read_source
from embedder.data.rows import Prepared
from embedder.hashing import row_seed
from embedder.labelling.prefix_tree import PackedPrompt
from embedder.labelling.prompts import PromptBuilder, choose_shots, prompt_builder
from embedder.labelling.sampling import Sampling, sample_outputs
from embedder.models.causal_lm import CausalLm

CANDIDATES = 8
SAMPLES = 10
LONGEST_OUTPUT = 32
LONG_PREFIX = 300
CHUNK_WORDS = 96
"""Of lrlm: a candidate is two such chunks and a query one, together some 400 tokens."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Group:
    """One query with its candidates, as token ids."""

    query_id: str
    prefixes: list[list[int]]
    """Without a candidate first, then with each."""
    question: list[int]
    """What the outputs are sampled from."""
    desired: list[int]
    sampled: tuple[list[int], ...] = ()

    @property
    def pairs(self) -> int:
        """Query and candidate pairs."""
        return len(self.prefixes) - 1

    def ranked(self, cap: int) -> list[PackedPrompt]:
        """What a rank-aware reward needs: each prefix, the bare one too, with the desired and the sampled outputs."""
        outputs = [output[:cap] for output in (self.desired, *self.sampled)]
        return [PackedPrompt(prefix, outputs) for prefix in self.prefixes]

    def alone(self, cap: int) -> list[PackedPrompt]:
        """All that a likelihood reward needs: each prefix with a candidate, and the desired output."""
        return [PackedPrompt(prefix, [self.desired[:cap]]) for prefix in self.prefixes[1:]]


def question_groups(lm: CausalLm, llm: LlmConfig, data: Path, count: int, seed: int) -> list[Group]:
    """Questions of qa/nq, each with its gold passages and seeded others; the prompt of the task without examples.

    The outputs are sampled behind three worked examples: without them SmolLM2 often answers an empty line.
    """
    prepared, builder = _read(lm, llm, data, "qa", "nq", seed)
    queries = _chosen(prepared, count, seed)
    return [
        _group(builder, prepared, query, _with_others(prepared, query["positive_ids"], seed), seed) for query in queries
    ]


def shared_groups(lm: CausalLm, llm: LlmConfig, data: Path, sharing: int, seed: int) -> list[Group]:
    """`sharing` questions of qa/nq with the same candidates: the gold passages of all of them and seeded others."""
    prepared, builder = _read(lm, llm, data, "qa", "nq", seed)
    queries = _chosen(prepared, sharing, seed)
    common = _with_others(prepared, [query["positive_ids"][0] for query in queries], seed)
    return [_group(builder, prepared, query, common, seed) for query in queries]


def long_groups(lm: CausalLm, llm: LlmConfig, data: Path, count: int, seed: int) -> list[Group]:
    """Chunks of lrlm/books with earlier ones as candidates; every prefix with a candidate has at least 300 tokens."""
    prepared, builder = _read(lm, llm, data, "lrlm", "books", seed)
    groups: list[Group] = []
    for query in _chosen(prepared, 5 * count, seed):
        group = _group(builder, prepared, query, query["pool_ids"][:CANDIDATES], seed)
        if group.pairs == CANDIDATES and min(map(len, group.prefixes[1:])) >= LONG_PREFIX:
            groups.append(group)
    return groups[:count]


def with_samples(lm: CausalLm, groups: Sequence[Group], seed: int, batch_tokens: int) -> list[Group]:
    """The same groups with ten outputs each, which the LLM samples at temperature 1 among the 50 likeliest tokens.

    No text stops them, so that nearly all reach the cap, which is the case with the most work for every scorer.
    """
    sampling = Sampling(2 * SAMPLES, LONGEST_OUTPUT, temperature=1.0, top_k=50, end_ids=lm.end_ids)
    seeds = [row_seed(seed, "sample", group.query_id) for group in groups]
    drawn = sample_outputs(lm, [group.question for group in groups], seeds, sampling, batch_tokens)
    return [
        replace(group, sampled=tuple(output for output in outputs if output)[:SAMPLES])
        for group, outputs in zip(groups, drawn, strict=True)
    ]


def _read(
    lm: CausalLm, llm: LlmConfig, data: Path, task: str, dataset: str, seed: int
) -> tuple[Prepared, PromptBuilder]:
    spec = BUILTIN_TASKS[task].model_copy(update={"max_output_tokens": LONGEST_OUTPUT})
    # One chunk asks and the twelve before it are candidates, as in the runs with which results are compared.
    chunks = {"chunk_words": CHUNK_WORDS, "recent_chunks": 0, "history_chunks": 12}
    source = Source(task=task, dataset=dataset, path=data / task / dataset, **chunks)
    return read_source(source, spec, seed), prompt_builder(lm, spec, llm)


def _chosen(prepared: Prepared, count: int, seed: int) -> list[Row]:
    rows = prepared.queries["train"]
    return [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))[:count]]


def _with_others(prepared: Prepared, positives: Sequence[str], seed: int) -> list[str]:
    """The positives and as many seeded passages of the corpus as make up a group."""
    others = sorted(prepared.passages, key=lambda passage_id: row_seed(seed, *positives, passage_id))
    return list(dict.fromkeys([*positives, *others]))[:CANDIDATES]


def _group(builder: PromptBuilder, prepared: Prepared, query: Row, candidates: Sequence[str], seed: int) -> Group:
    passages = [[], *([prepared.passages[passage_id]["text"]] for passage_id in candidates)]
    shots = []
    if query["task"] == "qa":
        rows = prepared.queries["train"]
        pool = [(row["query_id"], row["query"], row["answers"][0]) for row in rows[:100]]
        shots = choose_shots(pool, query["query"], 3, seed)
    return Group(
        query_id=query["query_id"],
        prefixes=[builder.prefix(query["query"], each, []).ids for each in passages],
        question=builder.prefix(query["query"], [], shots).ids,
        desired=builder.output(query["answers"][0]),
    )
