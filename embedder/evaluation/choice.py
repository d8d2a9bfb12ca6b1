"""Multiple choice (MMLU): the letter that the LLM finds likeliest after the passages; template A.2, zero-shot."""

from __future__ import annotations

from string import ascii_uppercase

from embedder.config.tasks import MULTIPLE_CHOICE, PromptTemplate, TaskSpec
from embedder.evaluation.base import LIKELIHOOD, Ask, Evaluation, Measure, Question, Reply, Value


def ask(question: Question) -> Ask:
    """Score the letters of the options; nothing is written."""
    options = question.options or []
    about = f" about {question.category.replace('_', ' ')}" if question.category else ""
    lines = [f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options, strict=False)]
    heading = f"The following are multiple choice questions (with answers){about}."
    return Ask("\n".join([heading, "", question.query, *lines]), list(ascii_uppercase[: len(options)]))


def judge(question: Question, reply: Reply) -> dict[str, Value]:
    """Whether the likeliest letter is the right one, and the log-likelihood of the right one."""
    right = (question.options or []).index(question.answers[0])
    chosen = max(range(len(reply.likelihoods)), key=lambda i: reply.likelihoods[i])
    return {"accuracy": (float(chosen == right), 1.0), LIKELIHOOD.name: (reply.likelihoods[right], 1.0)}


def template(spec: TaskSpec) -> PromptTemplate:
    """That of the paper; as a chat message if the task's own is one."""
    return MULTIPLE_CHOICE.model_copy(update={"chat": spec.template is not None and spec.template.chat})


CHOICE = Evaluation(
    name="choice",
    describes="Multiple choice: the option whose letter the LLM finds likeliest after the passages found.",
    headline=("accuracy",),
    rankings=("nDCG@10", "R@10"),
    measures=(Measure("accuracy"), LIKELIHOOD),
    ask=ask,
    judge=judge,
    template=template,
)
