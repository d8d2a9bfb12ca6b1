"""Reads datasets, asks about them and measures them: a value for each measure, retriever and query."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedder.config.evaluate import QUERIES_REMEDY, EvaluateConfig
from embedder.config.run import RunConfig
from embedder.data.ledger import Ledger
from embedder.data.records import QUERY, Split, parquet_files, passage_column, read_tables
from embedder.errors import DataError
from embedder.evaluation.asked import Asked, Row, chosen_queries
from embedder.evaluation.base import Evaluation, Passage, Question, Reply, Value
from embedder.evaluation.evaluations import evaluation_of
from embedder.evaluation.replies import Fingerprint
from embedder.evaluation.retrieval import PerQuery, measure, measure_names, relevant_passages
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
    answers: Mapping[str, str | None] = field(default_factory=dict)
    """Answers of worked examples by passage id, where they decide what is relevant."""
    rankings: dict[str, Mapping[str, Ranking]] = field(default_factory=dict)
    """Retriever -> query id -> ranking; a retriever without rankings is asked about without passages."""
    values: dict[str, dict[str, dict[str, Value]]] = field(default_factory=dict)
    """Measure -> retriever -> query id -> value."""
    replies: dict[tuple[str, str], Reply] = field(default_factory=dict)
    """The LLM's replies by (retriever, query id)."""
    errors: dict[str, str] = field(default_factory=dict)
    """The reasons why some queries could not be asked, by query id."""

    @cached_property
    def relevant(self) -> dict[str, dict[str, int]]:
        """Relevant passages with their grades, by query id."""
        return relevant_passages(self.evaluation, self.rows, self.answers)

    @property
    def origins(self) -> dict[str, str]:
        """The document or conversation of each query, which is drawn as a whole; else the query itself."""
        named = {row["origin"] for row in self.rows}
        # A conversation and a query of one name are two things.
        alone = {row["query_id"]: f"query {row['query_id']}" for row in self.rows if row["query_id"] in named}
        return {row["query_id"]: str(row["origin"] or alone.get(row["query_id"], row["query_id"])) for row in self.rows}

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

    def enter_rankings(self, rankings: Mapping[str, Mapping[str, Ranking]], cutoffs: Sequence[int]) -> None:
        """Keep and measure rankings (retriever -> query id -> ranking)."""
        names = measure_names(self.evaluation, cutoffs)
        for retriever, ranked in rankings.items():
            self.enter_measured(retriever, ranked, measure(ranked, self.relevant, names) if self.relevant else {})

    def enter_measured(self, retriever: str, rankings: Mapping[str, Ranking], measured: PerQuery) -> None:
        """Keep rankings, or the heads of them that are shown, and what they are worth."""
        self.rankings[retriever] = rankings
        for name, by_query in measured.items():
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


def read_datasets(config: RunConfig, split: Split) -> list[DatasetValues]:
    """The prepared datasets that have queries in a split, nothing measured yet.

    Raises:
        DataError: none has; `prepare` has not run, or its sources have no such split.
    """
    datasets = []
    for path in parquet_files(config.paths.queries / split):
        if rows := read_tables([path], QUERY).to_pylist():
            name, task = path.stem, rows[0]["task"]
            evaluation = evaluation_of(task, name, rows, config.evaluate.evaluations)
            by_answer = evaluation.relevance == "same_answer"
            answers = passage_column(config.paths.corpus / name, "answer") if by_answer else {}
            datasets.append(DatasetValues(name, task, evaluation, rows, answers))
    if not datasets:
        raise DataError(f"{config.paths.queries / split}: no {split} queries; {QUERIES_REMEDY}, and run prepare")
    return datasets


def ask_about(
    datasets: Sequence[DatasetValues],
    texts_of: Callable[[str, set[str]], Mapping[str, str]],
    settings: EvaluateConfig,
    fingerprint: Fingerprint,
) -> Asked:
    """The questions about the chosen queries of all datasets with the passages of each retriever, equal ones once.

    `texts_of` gives at least those passages of a dataset, by id, whose ids it is told.
    """
    asked = Asked()
    for dataset in datasets:
        chosen = chosen_queries(dataset.evaluation, dataset.rows, settings)
        count = settings.passages.get(dataset.evaluation.name, 1)
        found = (rankings.get(row["query_id"], [])[:count] for row in chosen for rankings in dataset.rankings.values())
        # Of one dataset at a time, and none that no prompt shows: a corpus may fill the memory.
        texts = texts_of(dataset.name, {passage_id for ranking in found for passage_id, _ in ranking})
        for row in chosen:
            query = {name: row[name] for name in ("query_id", "query", "answers", "options", "category")}
            positions = {passage_id: position for position, passage_id in enumerate(row["pool_ids"] or [])}
            for retriever, rankings in dataset.rankings.items():
                best = rankings.get(row["query_id"], [])[:count]
                passages = [Passage(each, texts[each], positions.get(each)) for each, _ in best]
                question = Question(dataset.evaluation.name, dataset.task, dataset.name, **query, passages=passages)
                entry = question.row(fingerprint(dataset.task, dataset.name))
                asked.rows[entry["row_id"]] = entry
                asked.ids[dataset.name, retriever, row["query_id"]] = entry["row_id"]
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
