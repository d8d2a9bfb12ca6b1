"""Makes the token ids that the LLM reads of a query and a candidate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedder.config.run import LlmConfig, RunConfig
from embedder.config.tasks import PromptTemplate, TaskSpec
from embedder.data.records import QUERY, parquet_files, read_tables
from embedder.errors import ConfigError
from embedder.hashing import row_seed

if TYPE_CHECKING:  # so that the checks of a job, which need shots alone, do not import torch
    from embedder.models.causal_lm import CausalLm

Shot = tuple[str, str]
"""A query and its answer."""
ShotPools = dict[str, list[tuple[str, str, str]]]
"""By dataset: (query_id, query, answer) rows from which worked examples are chosen."""

MAX_SHOT_CHARACTERS = 300
"""Longer examples are not used as shots: three of them would crowd out the candidate."""
SHOT_POOL_ROWS = 64


def shot_pool(rows: Iterable[Mapping[str, Any]], seed: int) -> list[tuple[str, str, str]]:
    """(query_id, query, answer) of training rows short enough to serve as worked examples, a seeded choice."""
    fitting = [
        (row["query_id"], row["query"], row["answers"][0])
        for row in rows
        if row["answers"] and len(row["query"]) + len(row["answers"][0]) <= MAX_SHOT_CHARACTERS
    ]
    return sorted(fitting, key=lambda row: row_seed(seed, "pool", row[0]))[:SHOT_POOL_ROWS]


def read_shot_pools(config: RunConfig) -> ShotPools:
    """The pools of all prepared datasets whose task has shots, from their training rows."""
    pools: ShotPools = {}
    for path in parquet_files(config.paths.queries / "train"):
        rows = read_tables([path], QUERY).to_pylist()
        if rows and config.tasks[rows[0]["task"]].shots:
            pools[path.stem] = shot_pool(rows, config.label.seed)
    return pools


def choose_shots(pool: Sequence[tuple[str, str, str]], query_id: str, count: int, seed: int) -> list[Shot]:
    """`count` worked examples for a query from (query_id, query, answer) rows, never the query itself.

    One seeded order of the pool serves all queries, so that their prompts share their beginning. Answers differ while
    the pool has different ones: a small LLM shown "no" three times says "no" to everything.
    """
    ordered = sorted(pool, key=lambda row: row_seed(seed, "shot", row[0]))
    distinct: dict[str, Shot] = {}
    repeated: list[Shot] = []
    for other, query, answer in ordered:
        if other != query_id and answer not in distinct:
            distinct[answer] = (query, answer)
        elif other != query_id:
            repeated.append((query, answer))
    return [*distinct.values(), *repeated][:count]


@dataclass(frozen=True)
class Prefix:
    """The tokens that the LLM reads before an output, and what had to go for them to fit."""

    ids: list[int]
    passage_cut: bool = False
    """The passages lost their end."""
    passage_lost: bool = False
    """Nothing of the passages is left."""
    query_cut: bool = False
    """The rest alone was too long, and lost its beginning."""


@dataclass(frozen=True)
class PromptBuilder:
    """Builds the prefixes and outputs of one task for one LLM."""

    lm: CausalLm
    template: PromptTemplate
    max_output_tokens: int
    max_prefix_tokens: int

    def prefix(self, query: str, passages: Sequence[str], shots: Sequence[Shot]) -> Prefix:
        """Token ids before the output, at most `max_prefix_tokens`: the passages lose their end where they must."""
        joined = "\n".join(passages)
        whole = self._prefix_ids(query, joined, shots)
        if len(whole) <= self.max_prefix_tokens:
            return Prefix(whole)
        without = self._prefix_ids(query, "", shots)
        if len(without) > self.max_prefix_tokens:
            return Prefix(without[-self.max_prefix_tokens :], bool(joined), bool(joined), query_cut=True)
        # Tokens at the seams of passage and template may merge, so a cut passage is put into the template and counted
        # again until it fits.
        passage_ids = self.lm.tokens(joined)
        keep = len(passage_ids) - (len(whole) - self.max_prefix_tokens)
        while keep > 0:
            # A cut within a letter of several tokens leaves a replacement character.
            begun = str(self.lm.tokenizer.decode(passage_ids[:keep])).rstrip("\N{REPLACEMENT CHARACTER}")
            if not begun.strip():
                break
            whole = self._prefix_ids(query, begun, shots)
            if len(whole) <= self.max_prefix_tokens:
                return Prefix(whole, passage_cut=True)
            keep -= len(whole) - self.max_prefix_tokens
        return Prefix(without, passage_cut=True, passage_lost=True)

    def _prefix_ids(self, query: str, passage: str, shots: Sequence[Shot]) -> list[int]:
        template = self.template
        worked = [
            template.input.format(query=shot) + template.output.format(answer=answer) + template.separator
            for shot, answer in shots
        ]
        context = template.context.format(passage=passage) if passage else ""
        text = "".join(worked) + context + template.input.format(query=query)
        # A chat template brings the beginning-of-text token itself.
        if template.chat:
            messages = [{"role": "user", "content": text}]
            rendered = self.lm.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            return self.lm.tokens(str(rendered))
        return [*self.lm.lead_ids, *self.lm.tokens(text)]

    def output(self, answer: str) -> list[int]:
        """Token ids of an output, cut to `max_output_tokens`."""
        return self.lm.tokens(self.template.output.format(answer=answer.strip()))[: self.max_output_tokens]

    def clean_sample(self, ids: Sequence[int]) -> str:
        """The text of sampled token ids, up to the first of the template's stop texts."""
        # A stop text may end within a token, whose other letters belong to the output or to what follows it.
        text = str(self.lm.tokenizer.decode(ids, skip_special_tokens=True))
        cuts = [text.find(stop) for stop in self.template.stop if stop in text]
        return text[: min(cuts, default=len(text))].strip()


def prompt_builder(
    lm: CausalLm, task: TaskSpec, config: LlmConfig, template: PromptTemplate | None = None
) -> PromptBuilder:
    """The builder of a task; `template` replaces the task's own (an evaluation has its own prompt).

    Raises:
        ConfigError: the template asks for a chat template that the LLM does not have.
    """
    chosen = template or task.template
    if chosen is None:
        raise ValueError("the task has no template")
    if chosen.chat and lm.tokenizer.chat_template is None:
        raise ConfigError(f"template.chat is true, but the tokenizer of {config.model!r} has no chat template")
    return PromptBuilder(lm, chosen, task.max_output_tokens, config.max_prefix_tokens)
