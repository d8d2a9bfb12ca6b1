"""Open questions (PopQA, NQ): the LLM answers with passages and seeded worked examples; template A.1 / A.3."""

from __future__ import annotations

from embedder.evaluation.answers import contains_answer, exact_match, token_f1
from embedder.evaluation.base import LIKELIHOOD, Ask, Evaluation, Measure, Question, Reply, Value

WRITTEN_TOKENS = 16
"""As in the reference."""


def ask(question: Question) -> Ask:
    """Answer to the end of the line, and score the first accepted answer."""
    return Ask(question.query, [question.answers[0]], WRITTEN_TOKENS)


def judge(question: Question, reply: Reply) -> dict[str, Value]:
    """Exact match (NQ), the answer contained (PopQA), F1, and the log-likelihood of the first accepted answer."""
    values: dict[str, Value] = {LIKELIHOOD.name: (reply.likelihoods[0], 1.0)}
    if reply.text is None:
        return values
    text, accepted = reply.text, question.answers
    return values | {
        "exact match": (exact_match(text, accepted), 1.0),
        "contains answer": (contains_answer(text, accepted), 1.0),
        "F1": (token_f1(text, accepted), 1.0),
    }


QA = Evaluation(
    name="qa",
    describes="Questions that the LLM answers with the passages found, after worked examples from the training split.",
    headline=("exact match", "nDCG@10", LIKELIHOOD.name),
    rankings=("nDCG@10", "R@10"),
    measures=(Measure("exact match"), Measure("contains answer"), Measure("F1"), LIKELIHOOD),
    ask=ask,
    judge=judge,
    uses_shots=True,
)
