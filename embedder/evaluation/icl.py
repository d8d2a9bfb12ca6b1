"""In-context learning: the LLM does a task after the worked examples that were found; template A.5."""

from __future__ import annotations

from embedder.evaluation.answers import exact_match, rouge_l
from embedder.evaluation.base import LIKELIHOOD, Ask, Evaluation, Measure, Question, Reply, Value, best_last

WRITTEN_TOKENS = 64
"""As in the reference."""


def ask(question: Question) -> Ask:
    """Score every option where there are some; else write an answer, and score the desired one."""
    if question.options:
        return Ask(question.query, question.options)
    return Ask(question.query, [question.answers[0]], WRITTEN_TOKENS)


def judge(question: Question, reply: Reply) -> dict[str, Value]:
    """Accuracy of the likeliest option; or ROUGE-L and exact match of what was written. And the log-likelihood."""
    if not question.options:
        values: dict[str, Value] = {LIKELIHOOD.name: (reply.likelihoods[0], 1.0)}
        if reply.text is None:
            return values
        rouge, exact = rouge_l(reply.text, question.answers), exact_match(reply.text, question.answers)
        return values | {"ROUGE-L": (rouge, 1.0), "exact match": (exact, 1.0)}
    chosen = max(range(len(reply.likelihoods)), key=lambda i: reply.likelihoods[i])
    right = question.options.index(question.answers[0])
    return {
        "accuracy": (float(question.options[chosen] in question.answers), 1.0),
        LIKELIHOOD.name: (reply.likelihoods[right], 1.0),
    }


ICL = Evaluation(
    name="icl",
    describes="Tasks that the LLM does after the worked examples found, the best one last. For rankings an example "
    "with the query's own answer counts as relevant.",
    headline=("accuracy", "ROUGE-L", "nDCG@10"),
    rankings=("nDCG@10",),
    measures=(Measure("accuracy"), Measure("ROUGE-L"), Measure("exact match"), LIKELIHOOD),
    ask=ask,
    judge=judge,
    arrange=best_last,
    whole_passages=True,
    relevance="same_answer",
)
