"""From a query and a candidate to the token ids the LLM reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from embedder.config import LlmConfig
from embedder.lm import CausalLm
from embedder.records import row_seed
from embedder.tasks import PromptTemplate, TaskSpec

Shot = tuple[str, str]
"""A query and its answer."""


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
class PromptBuilder:
    """Builds the prefixes and outputs of one task for one LLM."""

    lm: CausalLm
    template: PromptTemplate
    max_output_tokens: int
    max_prefix_tokens: int

    def prefix(self, query: str, passages: Sequence[str], shots: Sequence[Shot]) -> list[int]:
        """Token ids before the output.

        Where they exceed `max_prefix_tokens`, the passages lose tokens from their end; the query is kept whole. A
        query that alone is too long loses tokens from its beginning.
        """
        whole = self._prefix_ids(query, passages, shots)
        excess = len(whole) - self.max_prefix_tokens
        if excess > 0 and passages:
            joined = "\n".join(passages)
            ids = self.lm.tokens(joined)
            kept = ids[: max(0, len(ids) - excess - 2)]
            cut = [self.lm.tokenizer.decode(kept)] if kept else []
            whole = self._prefix_ids(query, cut, shots)
        return whole[-self.max_prefix_tokens :]

    def _prefix_ids(self, query: str, passages: Sequence[str], shots: Sequence[Shot]) -> list[int]:
        template = self.template
        worked = [
            template.input.format(query=shot) + template.output.format(answer=answer) + template.separator
            for shot, answer in shots
        ]
        context = template.context.format(passage="\n".join(passages)) if passages else ""
        text = "".join(worked) + context + template.input.format(query=query)
        if template.chat:
            messages = [{"role": "user", "content": text}]
            text = self.lm.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self.lm.tokens(text)

    def output(self, answer: str) -> list[int]:
        """Token ids of an output, cut to `max_output_tokens`."""
        return self.lm.tokens(self.template.output.format(answer=answer.strip()))[: self.max_output_tokens]

    def clean_sample(self, ids: Sequence[int]) -> str:
        """The text of sampled token ids, up to the template's stop text."""
        text = self.lm.tokenizer.decode(ids, skip_special_tokens=True)
        if self.template.stop is not None:
            text = text.split(self.template.stop, 1)[0]
        return str(text).strip()


def prompt_builder(
    lm: CausalLm, task: TaskSpec, config: LlmConfig, template: PromptTemplate | None = None
) -> PromptBuilder:
    """The builder of a task; `template` replaces the task's own (an evaluation has its own prompt)."""
    chosen = template or task.template
    if chosen is None:
        raise ValueError("the task has no template")
    return PromptBuilder(lm, chosen, task.max_output_tokens, config.max_prefix_tokens)
