"""How good a written answer is: exact match, containment, F1 and ROUGE-L against the accepted ones."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from rouge_score.rouge_scorer import RougeScorer

ARTICLES = re.compile(r"\b(a|an|the)\b")
ROUGE = RougeScorer(["rougeL"])


def normalise_answer(text: str) -> str:
    """Lower case without articles, punctuation and extra spaces (SQuAD, Rajpurkar et al. 2016)."""
    plain = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(ARTICLES.sub(" ", plain).split())


def exact_match(answer: str, accepted: Sequence[str]) -> float:
    """1 if the normalised answer equals an accepted one, else 0."""
    return float(normalise_answer(answer) in {normalise_answer(gold) for gold in accepted})


def contains_answer(answer: str, accepted: Sequence[str]) -> float:
    """1 if an accepted answer stands as whole words in the answer, else 0 (PopQA's criterion)."""
    padded = f" {normalise_answer(answer)} "
    return float(any(f" {normalise_answer(gold)} " in padded for gold in accepted if normalise_answer(gold)))


def token_f1(answer: str, accepted: Sequence[str]) -> float:
    """Best F1 of the answer's words over the accepted answers."""
    return max(
        (_f1(normalise_answer(answer).split(), normalise_answer(gold).split()) for gold in accepted), default=0.0
    )


def _f1(words: list[str], gold: list[str]) -> float:
    common = sum((Counter(words) & Counter(gold)).values())
    return 2 * common / (len(words) + len(gold)) if common else 0.0


def rouge_l(answer: str, accepted: Sequence[str]) -> float:
    """Best ROUGE-L F1 over the accepted answers (rouge-score without stemming: words of a-z and 0-9 alone)."""
    return max((float(ROUGE.score(gold, answer)["rougeL"].fmeasure) for gold in accepted), default=0.0)
