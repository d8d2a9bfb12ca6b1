"""How good a written answer is: exact match, containment, F1 and ROUGE-L against the accepted ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer

from embedder.answer_text import answer_words, normalise_answer, rouge_words


class _RougeWords(Tokenizer):
    """The words of any script for rouge-score, whose own are of a-z and 0-9 alone."""

    def tokenize(self, text: str) -> list[str]:
        return rouge_words(text)


ROUGE = RougeScorer(["rougeL"], tokenizer=_RougeWords())


def exact_match(answer: str, accepted: Sequence[str]) -> float:
    """1 if the normalised answer equals an accepted one, else 0."""
    return float(normalise_answer(answer) in {normalise_answer(gold) for gold in accepted})


def contains_answer(answer: str, accepted: Sequence[str]) -> float:
    """1 if the words of an accepted answer stand in the answer, one after another, else 0 (PopQA's criterion)."""
    whole, parted = _padded(answer_words(answer)), _padded(rouge_words(answer))
    for words, parts in ((answer_words(gold), rouge_words(gold)) for gold in accepted):
        # In other company words lose other articles and hyphens: `The The is a band`, `New-York`.
        if (words and _padded(words) in whole) or (len(parts) > 1 and _padded(parts) in parted):
            return 1.0
    return 0.0


def _padded(words: Sequence[str]) -> str:
    return f" {' '.join(words)} "


def token_f1(answer: str, accepted: Sequence[str]) -> float:
    """Best F1 of the answer's words over the accepted answers."""
    words = answer_words(answer)
    return max((_f1(words, answer_words(gold)) for gold in accepted), default=0.0)


def _f1(words: list[str], gold: list[str]) -> float:
    common = sum((Counter(words) & Counter(gold)).values())
    return 2 * common / (len(words) + len(gold)) if common else 0.0


def rouge_l(answer: str, accepted: Sequence[str]) -> float:
    """Best ROUGE-L F1 over the accepted answers (rouge-score without stemming)."""
    return max((float(ROUGE.score(gold, answer)["rougeL"].fmeasure) for gold in accepted), default=0.0)
