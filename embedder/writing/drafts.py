"""Reads what the LLM wrote as a question with its output, and tells what is wrong with it by its words alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from embedder.config.questions import KindName, QuestionsConfig, WorkedQuestion
from embedder.mining.candidates import normalise, word_overlap
from embedder.writing.question_kinds import KINDS

OUTPUT_LABEL = "Answer:"
MOST_WORDS = 48
"""Words of a question."""
SUPPORT = 0.5
"""Share of the output's words, and of search words, that the passages hold at least."""
LIKE_AN_EXAMPLE = 0.6
"""Overlap of words from which a question is taken for one of the worked examples."""
POINTS_AT_TEXT = re.compile(
    r"\b(?:"
    r"(?:this|the|that|given|above|first|second|both|these|two) (?:passage|text|paragraph|excerpt|author|article)s?"
    r"|according to (?:the|this)"
    r"|(?:dies\w*|de[rmns]|die|das|beide[nr]?) (?:texte?[ns]?|absatz(?:es)?|abschnitts?|autors?)"
    r"|(?:ce|cet|le|les|du|deux) (?:texte|passage|paragraphe|extrait)s?"
    r"|(?:este|el|los|del|ambos) (?:texto|pasaje|párrafo|fragmento)s?"
    r")\b",
    re.IGNORECASE,
)
"""Words that point at the passage, which who asks has not seen."""


@dataclass(frozen=True)
class Draft:
    """One question as the LLM wrote it; `fault` says why it cannot be used, and is empty if it can."""

    query: str
    output: str
    fault: str = ""


def read_draft(
    text: str,
    kind: KindName,
    passages: Sequence[str],
    examples: Sequence[WorkedQuestion],
    settings: QuestionsConfig,
) -> Draft:
    """A sampled text as a draft: a line with the question, and one with its output."""
    lines = [line.strip() for line in text.strip().splitlines()]
    if len(lines) < 2 or not lines[0] or not lines[1].startswith(OUTPUT_LABEL):
        return Draft(text.strip(), "", "not a question with an answer")
    query, output = lines[0], lines[1].removeprefix(OUTPUT_LABEL).strip()
    return Draft(query, output, _fault(query, output, kind, passages, examples, settings))


def _fault(
    query: str,
    output: str,
    kind: KindName,
    passages: Sequence[str],
    examples: Sequence[WorkedQuestion],
    settings: QuestionsConfig,
) -> str:
    """What is wrong with a question; empty if nothing is."""
    asked, said = normalise(query).split(), normalise(output).split()
    held = [normalise(passage) for passage in passages]
    wanted = KINDS[kind]
    if len(asked) < wanted.least_words or not output:
        return "too short"
    if len(asked) > MOST_WORDS:
        return "too long"
    if wanted.is_sentence and not query.endswith(("?", "？", "؟")):
        return "no question"
    if any(word_overlap(" ".join(asked), normalise(each.query)) >= LIKE_AN_EXAMPLE for each in examples):
        return "a worked example again"
    if POINTS_AT_TEXT.search(query):
        return "points at the passage"
    if _in_a_row(said, asked):
        return "holds its answer"
    if any(has_common_run(asked, passage.split(), settings.copied_words) for passage in held):
        return "copied from the passage"
    known = {word for passage in held for word in passage.split()}
    if _share_in(said, known) < SUPPORT:
        return "answer is not in the passage"
    if kind == "keywords" and _share_in(asked, known) < SUPPORT:
        return "search words are not of the passage"
    return ""


def _share_in(words: Sequence[str], known: set[str]) -> float:
    return sum(word in known for word in words) / max(1, len(words))


def _in_a_row(words: Sequence[str], others: Sequence[str]) -> bool:
    count = len(words)
    return bool(count) and any(list(others[i : i + count]) == list(words) for i in range(len(others) - count + 1))


def has_common_run(words: Sequence[str], others: Sequence[str], length: int) -> bool:
    """True if `length` words in a row stand in both."""
    runs = {tuple(others[i : i + length]) for i in range(len(others) - length + 1)}
    return any(tuple(words[i : i + length]) in runs for i in range(len(words) - length + 1))
