"""All evaluations by name, and which one a dataset gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from embedder.config.evaluate import EvaluationName
from embedder.evaluation.base import Evaluation, Measure
from embedder.evaluation.chat import CHAT
from embedder.evaluation.choice import CHOICE
from embedder.evaluation.icl import ICL
from embedder.evaluation.lrlm import LRLM
from embedder.evaluation.qa import QA

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
    one.name: one for one in (QA, CHOICE, CHAT, LRLM, ICL, TOOL, CONVSEARCH)
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
    return next((EVALUATIONS[name] for name in get_args(EvaluationName) if name == task), TOOL)


def measure_of(evaluation: Evaluation, name: str) -> Measure:
    """The measure of that name; ranking measures are means."""
    return next((one for one in evaluation.measures if one.name == name), Measure(name))
