"""Makes the token ids that the LLM reads of a query and a candidate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from embedder.config.run import LlmConfig, RunConfig
from embedder.config.tasks import PromptTemplate, TaskSpec
from embedder.data.records import QUERY, parquet_files, read_tables
from embedder.errors import ConfigError
from embedder.hashing import row_seed
from embedder.labelling.chat_template import chat_text
from embedder.labelling.prefix_tree import PackedPrompt, common_length
from embedder.labelling.prompt_layout import (
    PromptLayout,
    PromptShape,
    Slot,
    Tokens,
    encode,
    lay_out,
    marked_text,
    output_text,
)
from embedder.models.locate import locate_llm

if TYPE_CHECKING:  # so that the checks of a job, which need shots alone, do not import torch
    from embedder.models.llm import LanguageModel

Shot = tuple[str, str]
"""A query and its answer."""
ShotPools = dict[str, list[tuple[str, str, str]]]
"""By dataset: (query_id, query, answer) rows from which worked examples are chosen."""

LAST_CHARACTERS = 24
"""As far back an output may change the tokens of a query that it goes on from."""
MAX_SHOT_CHARACTERS = 300
"""Longer examples are not used as shots: three of them would crowd out the candidate."""
SHOT_POOL_ROWS = 64
KNOWN_TEXTS = 4096
"""Tokenised texts that a builder keeps: those of a query and its outputs, which all of its candidates share."""


def shot_pool(rows: Iterable[Mapping[str, Any]], task: TaskSpec, seed: int) -> list[tuple[str, str, str]]:
    """(query_id, query, answer) of training rows short enough to serve as worked examples, a seeded choice.

    Where no row has an answer, they are the task's own.
    """
    fitting = [
        (row["query_id"], row["query"], row["answers"][0])
        for row in rows
        if row["answers"] and len(row["query"]) + len(row["answers"][0]) <= MAX_SHOT_CHARACTERS
    ]
    own = [(f"example {i}", each.query, each.answer) for i, each in enumerate(task.worked_examples)]
    return sorted(fitting or own, key=lambda row: row_seed(seed, "pool", row[0]))[:SHOT_POOL_ROWS]


def read_shot_pools(config: RunConfig) -> ShotPools:
    """The pools of all prepared datasets whose task has shots, from their training rows."""
    pools: ShotPools = {}
    for path in parquet_files(config.paths.queries / "train"):
        rows = read_tables([path], QUERY).to_pylist()
        if rows and config.tasks[rows[0]["task"]].shots:
            pools[path.stem] = shot_pool(rows, config.tasks[rows[0]["task"]], config.label.seed)
    return pools


def choose_shots(pool: Sequence[tuple[str, str, str]], asked: str, count: int, seed: int) -> list[Shot]:
    """`count` worked examples for a query from (query_id, query, answer) rows, never one with the query `asked` itself.

    One seeded order of the pool serves all queries, so that their prompts share their beginning. Answers differ while
    the pool has different ones: a small LLM shown "no" three times says "no" to everything.
    """
    ordered = sorted(pool, key=lambda row: row_seed(seed, "shot", row[0]))
    distinct: dict[str, Shot] = {}
    repeated: list[Shot] = []
    for _, query, answer in ordered:
        # By text and not by id, because a test query may have the id of another query, or the text of a training one.
        if query == asked:
            continue
        if answer not in distinct:
            distinct[answer] = (query, answer)
        else:
            repeated.append((query, answer))
    return [*distinct.values(), *repeated][:count]


@dataclass(frozen=True)
class Prefix:
    """The tokens that the LLM reads before an output, and what had to go for them to fit."""

    ids: list[int]
    shape: PromptShape
    passage_cut: bool = False
    """The passages lost their end."""
    passage_lost: bool = False
    """Nothing of the passages is left."""
    query_cut: bool = False
    """The rest alone was too long, and lost its beginning."""


@dataclass(frozen=True)
class PromptEnd:
    """The end of a prompt, which is tokenised together with each output."""

    text: str
    tokens: int
    """Number of the prompt's last tokens that stand for it."""
    tokens_of: Callable[[str], Tokens]
    """Tokenises it with what follows."""
    shape: PromptShape | None
    """The shape that the tokens depend on; None if they are the same for all."""


@dataclass(frozen=True)
class PromptBuilder:
    """Builds the prefixes and outputs of one task for one LLM. Whatever data says, it is text in its own slot."""

    lm: LanguageModel
    template: PromptTemplate
    max_output_tokens: int
    max_prefix_tokens: int
    _layouts: dict[PromptShape, PromptLayout] = field(init=False, default_factory=dict, repr=False, compare=False)
    _spans: dict[tuple[object, ...], Tokens] = field(init=False, default_factory=dict, repr=False, compare=False)

    def prefix(self, query: str, passages: Sequence[str], shots: Sequence[Shot]) -> Prefix:
        """Token ids before the output, at most `max_prefix_tokens`: the passages lose their end where they must."""
        joined = "\n".join(passages)
        shape = PromptShape(len(shots), bool(joined))
        spans = self._data_tokens(shape, query, joined, shots)
        room = self.max_prefix_tokens - self._length(shape, spans)
        if room >= 0:
            return Prefix(self._assemble(shape, spans), shape)
        if joined and self._cut_passage(shape, spans, joined, room):
            return Prefix(self._assemble(shape, spans), shape, passage_cut=True)
        bare = PromptShape(len(shots), passage=False)
        spans = self._data_tokens(bare, query, "", shots)
        ids, lost = self._assemble(bare, spans), bool(joined)
        if len(ids) <= self.max_prefix_tokens:
            return Prefix(ids, bare, passage_cut=lost, passage_lost=lost)
        return Prefix(ids[-self.max_prefix_tokens :], bare, passage_cut=lost, passage_lost=lost, query_cut=True)

    def _layout(self, shape: PromptShape) -> PromptLayout:
        if shape not in self._layouts:
            self._layouts[shape] = lay_out(self.lm.tokenizer, self.lm.plain, self.template, shape)
        return self._layouts[shape]

    def _data_tokens(self, shape: PromptShape, query: str, passage: str, shots: Sequence[Shot]) -> list[Tokens]:
        """The tokens in each slot."""
        data = [text for shot in shots for text in shot] + [passage] * shape.passage + [query]
        spans = []
        for i, slot in enumerate(self._layout(shape).slots):
            if self._is_passage(shape, slot):
                spans.append(slot.tokens(passage))
            else:
                text = data[slot.number]
                # All candidates of a query have the same shots and the same query.
                spans.append(self._known((shape, i, text), partial(slot.tokens, text)))
        return spans

    def _known(self, key: tuple[object, ...], make: Callable[[], Tokens]) -> Tokens:
        """The tokens of this key, kept for the next prompt."""
        if key not in self._spans:
            if len(self._spans) >= KNOWN_TEXTS:
                self._spans.clear()
            self._spans[key] = make()
        return self._spans[key]

    def _is_passage(self, shape: PromptShape, slot: Slot) -> bool:
        return shape.passage and slot.number == 2 * shape.shots

    def _lead(self) -> list[int]:
        # A chat template brings the beginning-of-text token itself.
        return [] if self.template.chat else self.lm.lead_ids

    def _length(self, shape: PromptShape, spans: Sequence[Tokens]) -> int:
        fixed = sum(map(len, self._layout(shape).fixed))
        return len(self._lead()) + fixed + sum(len(span.ids) for span in spans)

    def _assemble(self, shape: PromptShape, spans: Sequence[Tokens]) -> list[int]:
        fixed = self._layout(shape).fixed
        ids = [*self._lead(), *fixed[0]]
        for span, behind in zip(spans, fixed[1:], strict=True):
            ids += span.ids
            ids += behind
        return ids

    def _cut_passage(self, shape: PromptShape, spans: list[Tokens], passage: str, room: int) -> bool:
        """Shorten the passage's tokens by the `room` that is missing; False if none of its letters would be left."""
        slots = self._layout(shape).slots
        held = [i for i, slot in enumerate(slots) if self._is_passage(shape, slot)]
        for i in held:
            span, slot = spans[i], slots[i]
            # A template that holds the passage twice loses as much of each.
            keep = len(span.ids) + room // len(held) - len(slot.after_ids)
            # A letter of several tokens is kept whole, because a part of it would be read as another sign.
            while keep > 0 and span.offsets[keep - 1][1] > span.offsets[keep][0]:
                keep -= 1
            if keep <= 0 or not passage[: max(0, span.end(keep - 1) - len(slot.before))].strip():
                return False
            spans[i] = Tokens(span.ids[:keep] + slot.after_ids, [])
        return bool(held)

    def _end(self, shape: PromptShape, query: str) -> PromptEnd:
        """What of a prompt is tokenised together with its outputs: text of the template, or the query's last words."""
        layout = self._layout(shape)
        if layout.ending is not None:
            return PromptEnd(layout.ending_text, layout.ending_tokens, layout.ending.tokens_of, shape)
        last, slot = len(layout.slots) - 1, layout.slots[-1]
        text, whole = slot.before + query + slot.after, self._known((shape, last, query), partial(slot.tokens, query))
        # No token goes on over several words, so an output changes the last ones at most; a long query is not
        # tokenised again for each output. Where its last words alone have other tokens, it is.
        cut = text.rfind(" ", 0, max(0, len(text) - LAST_CHARACTERS))
        known = whole.part(cut, len(text)) if cut > 0 else None
        if known and encode(self.lm.plain.inner, text[cut:]).ids == known.ids:
            return PromptEnd(text[cut:], len(known.ids), partial(encode, self.lm.plain.inner), None)
        return PromptEnd(text, len(whole.ids), slot.tokens_of, shape)

    def _joined(self, end: PromptEnd, answer: str) -> tuple[Tokens, int]:
        """The tokens of the prompt's end and an output, and the first of them that stands for a sign of the output."""
        text = end.text + self._said(answer)
        tokens = self._known((end.shape, end.text, text), partial(end.tokens_of, text))
        return tokens, tokens.first_after(len(end.text))

    def _said(self, answer: str) -> str:
        """An output as it follows the prompt."""
        return self._layout(PromptShape(0, passage=False)).space + output_text(self.template, answer)

    def output(self, answer: str, query: str = "") -> list[int]:
        """The tokens of an output that are scored, at most `max_output_tokens`; none where it is blank."""
        if not answer.strip():
            return []
        tokens, first = self._joined(self._end(PromptShape(0, passage=False), query), answer)
        return tokens.ids[first : first + self.max_output_tokens]

    def pack(self, prefix: Prefix, query: str, answers: Sequence[str]) -> PackedPrompt:
        """A prefix of this query with its outputs, tokenised as the LLM would see prefix and output together.

        Where an output changes the prefix's last tokens, as "ing" changes "market", all outputs begin before these. The
        tokens that stand for the prefix alone are not scored.
        """
        end = self._end(prefix.shape, query)
        fixed = len(prefix.ids) - end.tokens
        joined = [self._joined(end, answer) for answer in answers]
        shared = min(min(common_length(prefix.ids[fixed:], tokens.ids), first) for tokens, first in joined)
        if fixed + shared == 0:
            # The first token of a text is predicted by none, so it must be the prefix's own.
            apart = [encode(self.lm.plain.inner, self._said(answer)).ids for answer in answers]
            return PackedPrompt(prefix.ids, [ids[: self.max_output_tokens] for ids in apart])
        return PackedPrompt(
            prefix.ids[: fixed + shared],
            [tokens.ids[shared : first + self.max_output_tokens] for tokens, first in joined],
            [first - shared for _, first in joined],
        )

    def clean_sample(self, ids: Sequence[int]) -> str:
        """The text of sampled token ids, up to the first of the template's stop texts."""
        # Behind a letter, because some tokenizers drop the space with which a text begins.
        before = encode(self.lm.plain.inner, "a").ids
        options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        text = str(self.lm.tokenizer.decode([*before, *ids], **options))
        text = text[len(str(self.lm.tokenizer.decode(before, **options))) :]
        # A stop text may end within a token, whose other letters belong to the output or to what follows it.
        cuts = [text.find(stop) for stop in self.template.stop if stop in text]
        text = text[: min(cuts, default=len(text))]
        return text if self.template.output == "{answer}" else text.strip()


def prompt_builder(
    lm: LanguageModel, task: TaskSpec, config: LlmConfig, template: PromptTemplate | None = None
) -> PromptBuilder:
    """The builder of a task; `template` replaces the task's own (an evaluation has its own prompt).

    Raises:
        ConfigError: the template's chat template is missing or fails, or its words run into the data.
    """
    chosen = template or task.template
    if chosen is None:
        raise ValueError("the task has no template")
    builder = PromptBuilder(lm, chosen, task.max_output_tokens, config.max_prefix_tokens)
    for passage in (False, True):
        builder.prefix("query", ["passage"] * passage, [])
    return builder


def check_chat(llm: LlmConfig | None, templates: Mapping[str, PromptTemplate | None]) -> list[str]:
    """Try the LLM's chat template with each task's prompt that asks for it; a line for the user about it.

    Raises:
        ConfigError: it fails with one of them; the message names the task.
    """
    chats = {task: template for task, template in templates.items() if template and template.chat}
    if llm is None or not chats:
        return []
    # Here, because transformers comes with it, and most run files have no chat template to try.
    from embedder.models.loader import load_tokenizer

    tokenizer = load_tokenizer(locate_llm(llm))
    for task, template in sorted(chats.items()):
        for shape in (PromptShape(0, passage=False), PromptShape(1, passage=True)):
            try:
                chat_text(tokenizer, template, marked_text(template, shape))
            except ConfigError as error:
                raise ConfigError(f"tasks.{task}: {error}") from error
    named = tokenizer.chat_template
    others = f", the default of {', '.join(sorted(named))}" if isinstance(named, Mapping) else ""
    return [f"prompts of {', '.join(sorted(chats))} are messages in the chat template of {llm.model}{others}"]
