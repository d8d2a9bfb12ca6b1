"""The seven evaluations: what the LLM is asked about a question, what its reply is worth, and which one a dataset gets.

Templates A.1 to A.5 are those of the paper's appendix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from embedder.config.evaluate import EvaluationName
from embedder.config.tasks import MULTIPLE_CHOICE, PromptTemplate, TaskSpec
from embedder.evaluation.answers import contains_answer, exact_match, rouge_l, token_f1
from embedder.evaluation.base import (
    LIKELIHOOD,
    PERPLEXITY,
    Ask,
    Evaluation,
    Measure,
    Passage,
    Question,
    Reply,
    Value,
    best_last,
    in_time,
    score_answer,
    weigh_tokens,
)

QA_TOKENS = 16
"""Tokens of a written answer, as in the reference."""
ICL_TOKENS = 64
"""Tokens of a written answer, as in the reference."""
LONGEST_WRITTEN = max(QA_TOKENS, ICL_TOKENS)
"""Tokens that any evaluation lets the LLM write."""
LEAST_OVERLAP = 16
"""Characters that neighbouring chunks must share to be taken for one text."""


def ask_qa(question: Question) -> Ask:
    """Answer to the end of the line, and score the first accepted answer."""
    return Ask(question.query, [question.answers[0]], QA_TOKENS)


def judge_qa(question: Question, reply: Reply) -> dict[str, Value]:
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


QA = Evaluation(  # PopQA, NQ; template A.1 / A.3
    name="qa",
    describes="Questions that the LLM answers with the passages found, after worked examples from the training split.",
    headline=("exact match", "nDCG@10", LIKELIHOOD.name),
    rankings=("nDCG@10", "R@10"),
    measures=(Measure("exact match"), Measure("contains answer"), Measure("F1"), LIKELIHOOD),
    ask=ask_qa,
    judge=judge_qa,
    uses_shots=True,
)


def ask_choice(question: Question) -> Ask:
    """Score the letters of the options; nothing is written."""
    options = question.options or []
    letters = option_letters(len(options))
    about = f" about {question.category.replace('_', ' ')}" if question.category else ""
    lines = [f"{letter}. {option}" for letter, option in zip(letters, options, strict=True)]
    heading = f"The following are multiple choice questions (with answers){about}."
    return Ask("\n".join([heading, "", question.query, *lines]), letters)


def option_letters(count: int) -> list[str]:
    """A to Z for the options, then AA, AB and so on: each option has a name, however many there are."""
    rows = ["", *option_letters((count - 1) // 26)] if count > 26 else [""]
    return [row + letter for row in rows for letter in ascii_uppercase][:count]


def judge_choice(question: Question, reply: Reply) -> dict[str, Value]:
    """Accuracy of the likeliest letter, and the log-likelihood of the right one."""
    options = question.options or []
    right = options.index(question.answers[0])
    return {
        # By text, since an option may stand twice.
        "accuracy": (float(options[_likeliest(reply)] == options[right]), 1.0),
        LIKELIHOOD.name: (reply.likelihoods[right], 1.0),
    }


def choice_template(spec: TaskSpec) -> PromptTemplate:
    """The paper's template, as a chat message if the task's own is one."""
    if spec.template is None:
        return MULTIPLE_CHOICE
    return MULTIPLE_CHOICE.model_copy(
        update={name: getattr(spec.template, name) for name in ("chat", "chat_arguments", "chat_date")}
    )


CHOICE = Evaluation(  # MMLU, zero-shot; template A.2
    name="choice",
    describes="Multiple choice: the option whose letter the LLM finds likeliest after the passages found.",
    headline=("accuracy",),
    rankings=("nDCG@10", "R@10"),
    measures=(Measure("accuracy"), LIKELIHOOD),
    ask=ask_choice,
    judge=judge_choice,
    template=choice_template,
)

CHAT = Evaluation(  # MSC; template A.4
    name="chat",
    describes="Conversations: perplexity of the true reply given the earlier turns found. Where annotators linked "
    "messages, also how many of the linked ones were found.",
    headline=("perplexity", "nDCG@10"),
    rankings=("R@1", "R@5", "nDCG@10"),
    measures=(PERPLEXITY,),
    ask=score_answer,
    judge=weigh_tokens,
    arrange=in_time,
    whole_passages=True,
    has_history=True,
)


def in_document_order(passages: Sequence[Passage]) -> list[str]:
    """The texts in the order of the document; neighbours that share a chunk become one text, which has it once."""
    texts: list[str] = []
    last: Passage | None = None
    for passage in sorted(passages, key=lambda passage: passage.position or 0):
        neighbours = last is not None and (passage.position or 0) == (last.position or 0) + 1
        shared = overlap(texts[-1], passage.text) if neighbours else 0
        if shared >= LEAST_OVERLAP:
            texts[-1] += passage.text[shared:]
        else:
            texts.append(passage.text)
        last = passage
    return texts


def overlap(first: str, second: str) -> int:
    """Characters of the longest end of one text with which the other begins."""
    return next((n for n in range(min(len(first), len(second)), 0, -1) if first.endswith(second[:n])), 0)


LRLM = Evaluation(
    name="lrlm",
    describes="Long texts: perplexity of the next chunk given older chunks of the text with their continuations, in "
    "the order of the text, and the recent text.",
    headline=("perplexity",),
    rankings=(),
    measures=(PERPLEXITY,),
    ask=score_answer,
    judge=weigh_tokens,
    arrange=in_document_order,
    whole_passages=True,
    has_history=True,
)


def ask_icl(question: Question) -> Ask:
    """Score every option where there are some; else write an answer, and score the desired one."""
    if question.options:
        return Ask(question.query, question.options)
    return Ask(question.query, [question.answers[0]], ICL_TOKENS)


def judge_icl(question: Question, reply: Reply) -> dict[str, Value]:
    """Accuracy of the likeliest option; or ROUGE-L and exact match of what was written. And the log-likelihood."""
    if not question.options:
        values: dict[str, Value] = {LIKELIHOOD.name: (reply.likelihoods[0], 1.0)}
        if reply.text is None:
            return values
        rouge, exact = rouge_l(reply.text, question.answers), exact_match(reply.text, question.answers)
        return values | {"ROUGE-L": (rouge, 1.0), "exact match": (exact, 1.0)}
    right = question.options.index(question.answers[0])
    return {
        "accuracy": (float(question.options[_likeliest(reply)] in question.answers), 1.0),
        LIKELIHOOD.name: (reply.likelihoods[right], 1.0),
    }


ICL = Evaluation(  # template A.5
    name="icl",
    describes="Tasks that the LLM does after the worked examples found, the best one last. For rankings an example "
    "with the query's own answer counts as relevant.",
    headline=("accuracy", "ROUGE-L", "nDCG@10"),
    rankings=("nDCG@10",),
    measures=(Measure("accuracy"), Measure("ROUGE-L"), Measure("exact match"), LIKELIHOOD),
    ask=ask_icl,
    judge=judge_icl,
    arrange=best_last,
    whole_passages=True,
    relevance="same_answer",
)


def _likeliest(reply: Reply) -> int:
    # `max` keeps the first of equal ones, so a tie goes to the option that stands first.
    return max(range(len(reply.likelihoods)), key=lambda i: reply.likelihoods[i])


TOOL = Evaluation(
    name="tool",
    describes="Requests: how high the descriptions of the right tools stand in the ranking.",
    headline=("nDCG@5",),
    rankings=("nDCG@5", "R@5"),
)
CONVSEARCH = Evaluation(
    name="convsearch",
    describes="Conversations: how high the passages that answer the last turn stand in the ranking.",
    headline=("nDCG@3",),
    rankings=("nDCG@3", "R@3"),
)

EVALUATIONS: Mapping[EvaluationName, Evaluation] = {
    evaluation.name: evaluation for evaluation in (QA, CHOICE, CHAT, LRLM, ICL, TOOL, CONVSEARCH)
}


def evaluation_of(
    task: str, dataset: str, rows: Sequence[Mapping[str, Any]], named: Mapping[str, EvaluationName]
) -> Evaluation:
    """The evaluation of a dataset: the one that the run file names for it or its task, else that of the task's name.

    Questions that all bring options are multiple choice. A task of another name has rankings alone.
    """
    for name in (dataset, task):
        if name in named:
            return EVALUATIONS[named[name]]
    if task == "qa" and rows and all(row["options"] for row in rows):
        return CHOICE
    return next((evaluation for name, evaluation in EVALUATIONS.items() if name == task), TOOL)


def measure_of(evaluation: Evaluation, name: str) -> Measure:
    """The measure of that name; ranking measures are means."""
    return next((measure for measure in evaluation.measures if measure.name == name), Measure(name))
