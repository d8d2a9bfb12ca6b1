"""An evaluation of three datasets by hand, for the tests of results, report and picture."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from embedder.config.evaluate import EvaluateConfig
from embedder.evaluation.asked import Asked
from embedder.evaluation.comparison import summarise
from embedder.evaluation.evaluations import EVALUATIONS
from embedder.evaluation.examples import won_and_lost
from embedder.evaluation.measurements import DatasetValues, ask_about

SETTINGS = EvaluateConfig.model_validate(
    {"retrievers": ["none", "bm25", "base", "trained"], "llm_queries": 9, "resamples": 200, "examples": 2}
)
EVIL = "<script>alert('x')</script> & \x00 $x$"
TEXTS = {f"p{i}": f"passage {i} {EVIL if i == 1 else ''}" for i in range(6)}


def row(task: str, number: int, **fields: Any) -> dict[str, Any]:
    """A query of four whose positive is the passage of its number."""
    empty = {"options": None, "category": None, "origin": None, "pool_ids": None, "positive_grades": None}
    known = {"task": task, "dataset": f"{task}-set", "query_id": f"q{number}", "query": f"{EVIL} {task} {number}"}
    return {**empty, **known, "answers": [f"answer {number}"], "positive_ids": [f"p{number}"], **fields}


def ranked(ranks: dict[int, int]) -> dict[str, list[tuple[str, float]]]:
    """Rankings in which the positive of each query stands at a rank, counted from 0."""
    found = {}
    for number, rank in ranks.items():
        others = [f"p{i}" for i in range(6) if i != number]
        ids = [*others[:rank], f"p{number}", *others[rank:]]
        found[f"q{number}"] = [(passage_id, float(-i)) for i, passage_id in enumerate(ids)]
    return found


RANKINGS = {
    "bm25": ranked({0: 5, 1: 5, 2: 5, 3: 5}),
    "base": ranked({0: 1, 1: 1, 2: 0, 3: 1}),
    "trained": ranked({0: 0, 1: 0, 2: 2, 3: 1}),
}
NATS = {"none": 2.0, "bm25": 1.5, "base": 1.0, "trained": 0.5}
"""What a token of chat costs after what each retriever found."""


def tool() -> DatasetValues:
    """Rankings alone: trained is better on two queries, worse on one."""
    one = DatasetValues("tool-set", "tool", EVALUATIONS["tool"], [row("tool", i) for i in range(4)])
    one.enter_rankings(RANKINGS, [5])
    return one


def _called(retriever: str, _task: str, _dataset: str) -> str:
    return retriever


def asked(one: DatasetValues, replies: Any) -> DatasetValues:
    """The same with the LLM's replies: a function of retriever and query number."""
    questions, rows = Asked(), {}
    one.rankings = {"none": {}, **RANKINGS}
    for retriever, rankings in one.rankings.items():
        # Every retriever gets questions of its own, so that its replies can differ whatever it found.
        alone = replace(one, rankings={retriever: rankings})
        part = ask_about([alone], lambda *_: TEXTS, SETTINGS, partial(_called, retriever))
        questions.rows |= part.rows
        questions.ids |= part.ids
        for (_, _, query_id), row_id in part.ids.items():
            rows[row_id] = {"error": None, "text": None, **replies(retriever, int(query_id[1:]))}
    one.enter_replies(questions, rows)
    return one


def chat() -> DatasetValues:
    """Two conversations of two queries; the second query of trained cannot be asked."""
    rows = [row("chat", i, origin=f"c{i // 2}", positive_ids=[]) for i in range(4)]

    def reply(retriever: str, number: int) -> dict[str, Any]:
        if retriever == "trained" and number == 1:
            return {"likelihoods": None, "tokens": None, "error": "too long"}
        return {"likelihoods": [-NATS[retriever] - number / 10], "tokens": [10 * (number + 1)]}

    return asked(DatasetValues("chat-set", "chat", EVALUATIONS["chat"], rows), reply)


def qa() -> DatasetValues:
    """The LLM is right after what trained found, and else about every second time."""
    rows = [row("qa", i) for i in range(4)]

    def reply(retriever: str, number: int) -> dict[str, Any]:
        right = retriever == "trained" or (retriever == "base" and number % 2)
        text = f"the answer {number}" if right else EVIL
        return {"likelihoods": [-NATS[retriever]], "tokens": [2], "text": text}

    one = asked(DatasetValues("qa-set", "qa", EVALUATIONS["qa"], rows), reply)
    one.enter_rankings(RANKINGS, [5])
    return one


def results(*datasets: DatasetValues) -> dict[str, Any]:
    """The results with the examples."""
    found = summarise(datasets, SETTINGS)
    for one in datasets:
        found["datasets"][one.name]["examples"] = won_and_lost(one, lambda _: TEXTS, SETTINGS)
    return found
