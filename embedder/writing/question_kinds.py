"""The kinds of questions, the prompt of each, and the worked examples that the LLM reads before it writes its own."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import get_args

from embedder.config.questions import KindName, QuestionsConfig, WorkedQuestion
from embedder.config.tasks import PromptTemplate, TaskSpec

QUESTIONS_FORMAT = 1
"""How prompts are made and replies are read; part of what drafts depend on."""
ALL_KINDS: tuple[KindName, ...] = get_args(KindName)
EXAMPLES = Path(__file__).parent / "examples.jsonl"
ENGLISH = "english"
FUNCTION_WORDS = {
    "english": "the of and is to in that which with for are by this from",
    "german": "der die das und ist nicht mit von den ein eine für auf wird",
    "french": "le les des et est une dans que pour qui par sur avec du",
    "spanish": "el los las y es una en que para con por del se como",
}
"""Frequent words, by which the language of a passage is told."""
WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class QuestionKind:
    """One kind of question: how the prompt names it, and what it must look like."""

    label: str
    """Stands before the question."""
    is_sentence: bool = True
    """It ends with a question mark."""
    least_words: int = 4
    passages: tuple[str, ...] = ("Passage",)
    """What stands before each of the passages that it needs."""

    @property
    def template(self) -> PromptTemplate:
        """The prompt: what `shown` makes of the passages takes the place of the query."""
        return PromptTemplate(context="", input=f"{{query}}\n{self.label}:", stop=("\n\n",))

    def shown(self, passages: Sequence[str]) -> str:
        """The passages as the LLM reads them."""
        # A blank line ends an example, so a passage may hold none.
        lines = ("\n".join(filter(None, map(str.strip, text.split("\n")))) for text in passages)
        return "\n".join(f"{name}: {text}" for name, text in zip(self.passages, lines, strict=True))


KINDS: dict[KindName, QuestionKind] = {
    "fact": QuestionKind("Question"),
    "reason": QuestionKind("Question about how or why"),
    "keywords": QuestionKind("Search words", is_sentence=False, least_words=2),
    "request": QuestionKind("Request of a user", is_sentence=False),
    "two_passages": QuestionKind(
        "Question that needs both passages", passages=("First passage", "Second passage"), least_words=6
    ),
}
BY_TASK: dict[str, tuple[KindName, ...]] = {"tool": ("request",), "convsearch": ("fact", "reason")}
OF_OTHERS: tuple[KindName, ...] = ("fact", "reason", "keywords", "two_passages")


def why_not_written(task: str, spec: TaskSpec) -> str | None:
    """Why no questions can be written for a task; None if they can."""
    if spec.template is not None and spec.template.continues:
        return "its queries are parts of long texts, which `prepare` cuts by itself"
    if spec.queries_are_examples:
        return "its queries are examples with the answers that people gave"
    if task == "chat":
        return "its passages are earlier turns of the conversation that a query is a part of"
    return None


def kinds_of(task: str, settings: QuestionsConfig) -> tuple[KindName, ...]:
    """The kinds of questions that are written for a task."""
    return tuple(dict.fromkeys(settings.kinds)) if settings.kinds else BY_TASK.get(task, OF_OTHERS)


def language_of(text: str) -> str:
    """The language with most function words in a text, among those with examples; English if there are none."""
    words = [word.lower() for word in WORD.findall(text)]
    counts = {name: sum(word in known.split() for word in words) for name, known in FUNCTION_WORDS.items()}
    return max(counts, key=lambda name: (counts[name], name == ENGLISH))


@cache
def builtin_examples() -> dict[tuple[KindName, str], tuple[WorkedQuestion, ...]]:
    """The examples of this package by kind and language."""
    found: dict[tuple[KindName, str], tuple[WorkedQuestion, ...]] = {}
    for line in EXAMPLES.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        example = WorkedQuestion(**{name: row[name] for name in WorkedQuestion.model_fields})
        key = (example.kind, row["language"])
        found[key] = (*found.get(key, ()), example)
    return found


def examples_for(kind: KindName, text: str, settings: QuestionsConfig) -> tuple[WorkedQuestion, ...]:
    """The worked examples of a kind before a passage: the user's own, or else those of the passage's language."""
    own = tuple(example for example in settings.examples if example.kind == kind)
    known = builtin_examples()
    return own or known.get((kind, language_of(text))) or known[kind, ENGLISH]
