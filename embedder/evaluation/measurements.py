"""Asks about datasets and measures them: a value for each measure, retriever and query."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedder.config.evaluate import EvaluateConfig
from embedder.data.ledger import Ledger
from embedder.evaluation.base import Evaluation, Question, Reply, Value
from embedder.evaluation.questions import Asked, Row, ask_all, chosen_queries
from embedder.evaluation.replies import Fingerprint
from embedder.evaluation.retrieval import measure, measure_names, relevant_passages
from embedder.mining.ranking import Ranking

VALUES = pa.schema(
    [
        *(
            (name, pa.string())
            for name in ("task", "dataset", "evaluation", "measure", "retriever", "query_id", "origin")
        ),
        ("value", pa.float64()),
        ("weight", pa.float64()),
    ]
)
"""One value of one query; a mean weighs values by `weight`, a perplexity is the exponential of such a mean."""


@dataclass
class DatasetValues:
    """One dataset with its evaluation, its queries, their rankings and all values measured."""

    name: str
    task: str
    evaluation: Evaluation
    rows: list[Row]
    """The queries, rows of records.QUERY."""
    rankings: dict[str, Mapping[str, Ranking]] = field(default_factory=dict)
    """Retriever -> query id -> ranking; a retriever without rankings is asked about without passages."""
    relevant: dict[str, dict[str, int]] = field(default_factory=dict)
    """Relevant passages with their grades, by query id."""
    values: dict[str, dict[str, dict[str, Value]]] = field(default_factory=dict)
    """Measure -> retriever -> query id -> value."""
    replies: dict[tuple[str, str], Reply] = field(default_factory=dict)
    """The LLM's replies by (retriever, query id)."""
    errors: dict[str, str] = field(default_factory=dict)
    """The reasons why some queries could not be asked, by query id."""

    @property
    def origins(self) -> dict[str, str]:
        """The document or conversation of each query, which is drawn as a whole; else the query itself."""
        return {row["query_id"]: row["origin"] or row["query_id"] for row in self.rows}

    def units(self, queries: Sequence[str]) -> NDArray[np.int64]:
        """The unit of each of some queries, those of one document or conversation together, counted from 0."""
        origin_of = self.origins
        numbers = {origin: i for i, origin in enumerate(sorted({origin_of[query] for query in queries}))}
        return np.array([numbers[origin_of[query]] for query in queries])

    @property
    def headline(self) -> str | None:
        """The measure that stands for the dataset; None if nothing was measured."""
        return next((name for name in self.evaluation.headline if self.values.get(name)), next(iter(self.values), None))

    @property
    def family(self) -> str:
        """The task under which it is averaged; multiple choice stands apart."""
        return self.evaluation.name if self.evaluation.name == "choice" else self.task

    def enter_rankings(
        self, rankings: Mapping[str, Mapping[str, Ranking]], answers: Mapping[str, str | None], cutoffs: Sequence[int]
    ) -> None:
        """Keep and measure rankings (retriever -> query id -> ranking).

        `answers` are those of worked examples by passage id.
        """
        self.rankings |= rankings
        self.relevant = relevant_passages(self.evaluation, self.rows, answers)
        if not self.relevant:
            return
        names = measure_names(self.evaluation, cutoffs)
        for retriever, ranked in rankings.items():
            for name, by_query in measure(ranked, self.relevant, names).items():
                for query_id, value in by_query.items():
                    self._enter(name, retriever, query_id, (value, 1.0))

    def enter_replies(self, asked: Asked, replies: Mapping[str, Row]) -> None:
        """Judge the LLM's replies to this dataset's questions: rows of replies.JUDGED by id."""
        for (dataset, retriever, query_id), row_id in asked.ids.items():
            if dataset != self.name:
                continue
            reply = Reply.of(replies[row_id])
            if reply is None:
                self.errors[query_id] = str(replies[row_id]["error"])
                continue
            self.replies[retriever, query_id] = reply
            for name, value in self.evaluation.judge(Question.of(asked.rows[row_id]), reply).items():
                self._enter(name, retriever, query_id, value)

    def _enter(self, measure_name: str, retriever: str, query_id: str, value: Value) -> None:
        self.values.setdefault(measure_name, {}).setdefault(retriever, {})[query_id] = value


def ask_about(
    datasets: Sequence[DatasetValues],
    texts_of: Callable[[str], Mapping[str, str]],
    settings: EvaluateConfig,
    fingerprint: Fingerprint,
) -> Asked:
    """The questions about all datasets; `texts_of` gives the passages of a dataset by id."""
    asked = Asked()
    for dataset in datasets:
        chosen = chosen_queries(dataset.evaluation, dataset.rows, settings)
        # The texts of one dataset at a time, and only where they are needed: a corpus may fill the memory.
        if chosen:
            limits = (settings.passages.get(dataset.evaluation.name, 1), fingerprint)
            ask_all(asked, dataset.evaluation, chosen, (dataset.rankings, texts_of(dataset.name)), limits)
    return asked


def enter_all_replies(datasets: Sequence[DatasetValues], asked: Asked, ledger: Ledger) -> None:
    """Read the replies to all questions, and judge those of each dataset."""
    replies = {row["row_id"]: row for row in ledger.read(list(asked.rows)).to_pylist()}
    for dataset in datasets:
        dataset.enter_replies(asked, replies)


def value_rows(datasets: Sequence[DatasetValues]) -> pa.Table:
    """All values as rows of VALUES."""
    origins = {dataset.name: dataset.origins for dataset in datasets}
    rows = [
        {
            "task": dataset.task,
            "dataset": dataset.name,
            "evaluation": dataset.evaluation.name,
            "measure": measure,
            "retriever": retriever,
            "query_id": query_id,
            "origin": origins[dataset.name][query_id],
            "value": value,
            "weight": weight,
        }
        for dataset in datasets
        for measure, retrievers in dataset.values.items()
        for retriever, by_query in retrievers.items()
        for query_id, (value, weight) in sorted(by_query.items())
    ]
    return pa.Table.from_pylist(rows, schema=VALUES)
