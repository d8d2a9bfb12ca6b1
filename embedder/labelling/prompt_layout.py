"""Where the data stands in a prompt: the tokens of the template around it are fixed, whatever the data says.

A prompt is the template's text with slots for data: worked examples, the passage, the query, and the output at its end.
The text is tokenised once, with a letter in each slot. So the tokens between the slots are known, and data can change
none of them: a passage cannot end the user's turn. Each slot's data is then tokenised between the same words, by a
tokenizer that knows no control tokens, and gives the tokens that it would have in the whole text. Only where it would
change a token of the template, as a passage may that ends in a colon before a colon, it is tokenised alone.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
from typing import TYPE_CHECKING

from embedder.config.tasks import PromptTemplate
from embedder.errors import ConfigError
from embedder.labelling.chat_template import chat_text

if TYPE_CHECKING:  # so that the checks of a job load no tokenizer where no task has a chat template
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

    from embedder.models.plain_tokenizer import PlainTokenizers

STAND_INS = ("a", "0", ".", "\N{CJK UNIFIED IDEOGRAPH-4E2D}")
"""Texts that may stand for data. A letter is what most data begins and ends with; the others merge with less."""
FIRST_MARK = 0xF0000
"""The first of the private characters that mark the slots in a text."""
MOST_MARKS = 0xFFFD


@dataclass(frozen=True)
class PromptShape:
    """The data of a prompt beside its query."""

    shots: int
    passage: bool


@dataclass(frozen=True)
class Tokens:
    """Token ids of a text with the characters of the text that each stands for."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    origin: int = 0
    """The offset of the text's first character."""

    def end(self, i: int) -> int:
        """One past the last character of a token."""
        return self.offsets[i][1] - self.origin

    # By bisection and not one by one, because this is asked of every text: a later token never begins or ends earlier.
    def first_after(self, character: int) -> int:
        """The first token that stands for this character or a later one."""
        return bisect_right(self.offsets, character + self.origin, key=itemgetter(1))

    def between(self, start: int, stop: int) -> tuple[int, int] | None:
        """The range of the tokens between two characters; None where a token stands for characters on both sides."""
        first = self.first_after(start)
        last = max(first, bisect_left(self.offsets, stop + self.origin, key=itemgetter(0)))
        if first < last and (self.offsets[first][0] < start + self.origin or self.end(last - 1) > stop):
            return None
        return first, last

    def part(self, start: int, stop: int) -> Tokens | None:
        """The tokens between two characters, which count from the first of them."""
        bounds = self.between(start, stop)
        if bounds is None:
            return None
        return Tokens(self.ids[slice(*bounds)], self.offsets[slice(*bounds)], self.origin + start)


def encode(tokenizer: Tokenizer, text: str) -> Tokens:
    """The tokens of a text, without those that begin and end one."""
    encoding = tokenizer.encode(text, add_special_tokens=False)
    return Tokens(encoding.ids, encoding.offsets)


@dataclass(frozen=True, eq=False)
class Slot:
    """A place for data between texts of the template."""

    number: int
    """Which data it holds, in the order of `marked_text`."""
    before: str
    """Spaces of the template that most tokenizers make a part of the data's first word."""
    after: str
    """Line ends of the template that some tokenizers make a part of the data's last token."""
    left: str
    left_ids: list[int]
    right: str
    right_ids: list[int]
    tokenizer: Tokenizer | None
    """Tokenises data between `left` and `right`, and gives the template's own tokens for them; None if none does."""
    alone: Tokenizer
    """Tokenises data that would change the template's tokens."""
    after_ids: list[int]
    """The tokens of `after` behind data that was cut."""

    def tokens(self, data: str) -> Tokens:
        """The tokens of some data, with the template's white space around it."""
        return self.tokens_of(self.before + data + self.after)

    def tokens_of(self, text: str) -> Tokens:
        """The tokens of a text that fills the whole slot."""
        if self.tokenizer is not None:
            whole = encode(self.tokenizer, self.left + text + self.right)
            start, stop = len(self.left), len(self.left) + len(text)
            bounds = whole.between(start, stop)
            if bounds and whole.ids[: bounds[0]] == self.left_ids and whole.ids[bounds[1] :] == self.right_ids:
                return Tokens(whole.ids[slice(*bounds)], whole.offsets[slice(*bounds)], start)
        return encode(self.alone, text)


@dataclass(frozen=True, eq=False)
class PromptLayout:
    """The fixed tokens of a prompt, the slots between them, and how an output goes on from its end."""

    fixed: list[list[int]]
    """Tokens before each slot, and after the last."""
    slots: list[Slot]
    ending: Slot | None
    """Tokenises the end of the prompt together with an output; None where the last slot's data is this end."""
    ending_text: str
    """The end of the prompt: text of the template behind the last slot."""
    ending_tokens: int
    """How many of the last fixed tokens stand for it."""
    space: str
    """White space that the chat template puts before an answer."""


def marked_text(template: PromptTemplate, shape: PromptShape) -> str:
    """The text of a prompt with a mark for each slot: query and answer of each shot, the passage, the query."""
    marks = map(chr, range(FIRST_MARK, FIRST_MARK + MOST_MARKS))
    parts = [
        template.input.format(query=next(marks)) + template.output.format(answer=next(marks)) + template.separator
        for _ in range(shape.shots)
    ]
    if shape.passage:
        parts.append(template.context.format(passage=next(marks)))
    return "".join(parts) + template.input.format(query=next(marks))


def lay_out(
    tokenizer: PreTrainedTokenizerBase, plain: PlainTokenizers, template: PromptTemplate, shape: PromptShape
) -> PromptLayout:
    """The layout of a prompt; `plain` are the tokenizer's own forms without control tokens.

    Raises:
        ConfigError: the chat template is none for this message, or the template's words run into the data.
    """
    text, space = marked_text(template, shape), ""
    if template.chat:
        text, space = chat_text(tokenizer, template, text)
    marks = [i for i, sign in enumerate(text) if FIRST_MARK <= ord(sign) < FIRST_MARK + MOST_MARKS]
    texts = [text[first + 1 : last] for first, last in pairwise([-1, *marks, len(text)])]
    numbers = [ord(text[i]) - FIRST_MARK for i in marks]
    # Another than a letter only where a letter runs into the template's words, because most data begins with one.
    for stand_in in STAND_INS:
        answer = space + output_text(template, stand_in)
        layout = _Draft(plain, texts, stand_in).layout(numbers, answer, space)
        if layout is not None:
            return layout
    raise ConfigError(
        f"template {template.input!r}: the LLM's tokenizer joins its words with those of the data; put white space "
        "around {query} and {passage}"
    )


def output_text(template: PromptTemplate, answer: str) -> str:
    """An output as it follows the prompt; an assistant's message begins without white space."""
    if template.output == "{answer}":
        return answer.lstrip() if template.chat else answer
    text = template.output.format(answer=answer.strip())
    return text.lstrip() if template.chat else text


@dataclass(frozen=True)
class _Border:
    """The characters of a slot in a draft, which begins and ends within a section between control tokens."""

    section: int
    start: int
    data: int
    data_end: int
    stop: int
    section_end: int


class _Draft:
    """The text of a prompt with the same stand-in in each slot, and its tokens."""

    def __init__(self, plain: PlainTokenizers, texts: Sequence[str], stand_in: str) -> None:
        self.plain = plain
        self.text = stand_in.join(texts)
        self.tokens = encode(plain.template, self.text)
        controls = [self.tokens.offsets[i] for i, token in enumerate(self.tokens.ids) if token in plain.control_ids]
        self.section_starts = [0, *(end for _, end in controls)]
        self.section_ends = [*(start for start, _ in controls), len(self.text)]
        self.borders: list[_Border] = []
        position = 0
        for before, after in pairwise(texts):
            position += len(before)
            self.borders.append(self._border(position, len(stand_in), before, after))
            position += len(stand_in)

    def _border(self, data: int, width: int, before: str, after: str) -> _Border:
        section = max(start for start in self.section_starts if start <= data)
        section_end = min(end for end in self.section_ends if end >= data + width)
        if self.borders:  # line ends behind the last slot belong to it
            before = before[len(before) - len(before.lstrip("\r\n")) :]
        spaces, lines = len(before) - len(before.rstrip(" ")), len(after) - len(after.lstrip("\r\n"))
        # A control token may take white space beside it, which then is no part of the slot.
        start, stop = max(data - spaces, section), min(data + width + lines, section_end)
        return _Border(section, start, data, data + width, stop, section_end)

    def layout(self, numbers: Sequence[int], answer: str, space: str) -> PromptLayout | None:
        """The layout; None where a token of the template stands for a part of a stand-in too."""
        inside = [self.tokens.between(border.start, border.stop) for border in self.borders]
        ranges = [bounds for bounds in inside if bounds is not None]
        if len(ranges) < len(inside):
            return None
        cuts = [0, *(cut for bounds in ranges for cut in bounds), len(self.tokens.ids)]
        fixed = [self.tokens.ids[first:last] for first, last in zip(cuts[::2], cuts[1::2], strict=True)]
        slots = [self._slot(i, number) for i, number in enumerate(numbers)]
        last = self.borders[-1] if self.borders else None
        section = max(self.section_starts)
        start = max(section, last.stop) if last else section
        if last and last.stop == len(self.text):
            return PromptLayout(fixed, slots, None, "", 0, space)
        behind = self.tokens.between(start, len(self.text))
        if behind is None:
            return None
        ending = self._ending(section, start, last, answer)
        return PromptLayout(fixed, slots, ending, self.text[start:], behind[1] - behind[0], space)

    def _slot(self, i: int, number: int) -> Slot:
        border = self.borders[i]
        before, after = self.borders[i - 1] if i else None, self.borders[i + 1] if i + 1 < len(self.borders) else None
        left, known_from, goes_on = border.section, border.section, False
        if before and before.data >= border.section:
            left, known_from, goes_on = before.data, before.stop, True
        right, known_to = border.section_end, border.section_end
        if after and after.data_end <= border.section_end:
            right, known_to = after.data_end, after.start
        texts = self.text[left : border.start], self.text[border.stop : right]
        chosen, whole = self._choose(self.text[left:right], left, known_from, known_to, self.tokens)
        bounds = whole.between(border.start - left, border.stop - left)
        begins = not goes_on and border.start == border.section
        closing = whole.part(border.data_end - left, border.stop - left) if bounds else None
        return Slot(
            number=number,
            before=self.text[border.start : border.data],
            after=self.text[border.data_end : border.stop],
            left=texts[0],
            left_ids=whole.ids[: bounds[0]] if bounds else [],
            right=texts[1],
            right_ids=whole.ids[bounds[1] :] if bounds else [],
            tokenizer=chosen if bounds else None,
            alone=(chosen or self.plain.leading) if begins else self.plain.inner,
            after_ids=(closing or encode(self.plain.inner, self.text[border.data_end : border.stop])).ids,
        )

    def _ending(self, section: int, start: int, last: _Border | None, answer: str) -> Slot:
        """The slot of the prompt's last text and the output."""
        goes_on = last is not None and last.data >= section
        left = last.data if last and goes_on else section
        text = self.text + answer
        chosen, whole = self._choose(text[left:], left, start, len(text), encode(self.plain.template, text))
        bounds = whole.between(start - left, len(text) - left)
        begins = not goes_on and start == section
        return Slot(
            number=-1,
            before="",
            after="",
            left=text[left:start],
            left_ids=whole.ids[: bounds[0]] if bounds else [],
            right="",
            right_ids=[],
            tokenizer=chosen if bounds else None,
            alone=(chosen or self.plain.leading) if begins else self.plain.inner,
            after_ids=[],
        )

    def _choose(
        self, text: str, begin: int, known_from: int, known_to: int, known: Tokens
    ) -> tuple[Tokenizer | None, Tokens]:
        """The plain tokenizer that gives the known tokens for a part of the text; it begins at character `begin`."""
        expected = known.part(known_from, known_to)
        candidates: Iterable[Tokenizer] = (self.plain.leading, self.plain.inner)
        # Tried and not told from the tokenizer's parts, because its parts decide together what stands before a text.
        for tokenizer in candidates:
            span = encode(tokenizer, text)
            part = span.part(known_from - begin, known_to - begin)
            if expected is not None and part is not None and part.ids == expected.ids:
                return tokenizer, span
        return None, Tokens([], [])
