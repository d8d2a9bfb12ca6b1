"""The passages that questions are written for: spread over a corpus, and apart from those that are evaluated with."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from embedder.config.paths import Paths
from embedder.config.questions import KindName, QuestionsConfig
from embedder.config.run import RunConfig
from embedder.data.records import PASSAGE, QUERY, Split, count_rows, each_table, read_tables
from embedder.data.row_ids import RowIds
from embedder.errors import ConfigError, DataError
from embedder.hashing import content_id, row_seed
from embedder.run.written import prepared_files
from embedder.words import COUNTED_WORD
from embedder.writing.question_kinds import KINDS, kinds_of, why_not_written
from ray_jobs.cluster.tables import corpus_files, datasets

if TYPE_CHECKING:  # so that a check of the run file does not import Ray
    from ray_jobs.retrieval.vectors import VectorStore

POOL = 8
"""Passages, as a multiple of those that are asked about, among which these are chosen."""
SIDES = 2**32


@dataclass(frozen=True)
class AskedDataset:
    """A dataset without training queries, for which questions are written."""

    name: str
    task: str
    kinds: tuple[KindName, ...]
    passages: int
    """Passages that it has."""
    has_test: bool
    """Some of the questions become test queries, because it has none to be measured by."""

    def asked(self, settings: QuestionsConfig) -> int:
        """Passages that are asked about, of each kind."""
        return min(settings.passages, self.passages)


def asked_datasets(config: RunConfig) -> list[AskedDataset]:
    """The datasets for which questions are written.

    Raises:
        DataError: `prepare` has not run, or every dataset has training queries.
        ConfigError: no questions can be written for the task of one.
    """
    settings, found = config.needed_questions, []
    for name in datasets(config.paths):
        if _prepared_rows(config.paths, "train", name):
            continue
        files = corpus_files(config.paths, name)
        task = next(each_table(files[:1], PASSAGE, ["task"]))["task"][0].as_py()
        if reason := why_not_written(task, config.tasks[task]):
            raise ConfigError(
                f"dataset {name}: no questions can be written for task {task!r}, since {reason}; give it training rows"
            )
        measured = any(_prepared_rows(config.paths, split, name) for split in ("dev", "test"))
        found.append(AskedDataset(name, task, kinds_of(task, settings), count_rows(files), not measured))
    if not found:
        raise DataError(
            f"{config.paths.queries}: every dataset has training queries; leave the section `questions` out"
        )
    return found


def _prepared_rows(paths: Paths, split: str, dataset: str) -> int:
    return count_rows([path for path in prepared_files(paths) if (path.parent.name, path.stem) == (split, dataset)])


def is_kept_for_test(passage_id: str, dataset: AskedDataset, settings: QuestionsConfig) -> bool:
    """True for a seeded share of the passages of a dataset that has no queries to be measured by."""
    share = row_seed(settings.seed, "test passage", dataset.name, passage_id) % SIDES / SIDES
    return dataset.has_test and share < settings.test_share


def passages_with_kinds(
    config: RunConfig, store: VectorStore, dataset: AskedDataset
) -> tuple[list[dict[str, Any]], int]:
    """What the LLM is asked: rows with `row_id`, task, dataset, kind, and the ids and texts of the passages.

    Also the number of passages with which no second one goes, so that they are not asked about for two.

    Raises:
        DataError: no passage is long enough.
    """
    settings = config.needed_questions
    pool = _pool(config, dataset)
    if not pool:
        raise DataError(
            f"dataset {dataset.name}: no passage has questions.least_words {settings.least_words} words and is free of "
            "dev and test queries; lower it, or leave the dataset out"
        )
    vector_PD = _vectors(config, store, dataset, pool)
    # Here, because FAISS comes with it, which a check of the run file need not wait for.
    from embedder.writing.spread import nearest_partner, spread_over_clusters

    rows, alone = [], 0
    is_test_P = np.array([is_kept_for_test(row["id"], dataset, settings) for row in pool])
    for position in spread_over_clusters(vector_PD, settings.passages, settings.seed):
        for kind in dataset.kinds:
            chosen = [pool[position]]
            if len(KINDS[kind].passages) > 1:
                # From the same side, because a passage of test questions is no passage of training questions.
                partner = nearest_partner(vector_PD, position, is_test_P == is_test_P[position])
                if partner is None:
                    alone += 1
                    continue
                chosen.append(pool[partner])
            ids, texts = [row["id"] for row in chosen], [row["text"] for row in chosen]
            named = {"task": dataset.task, "dataset": dataset.name, "kind": kind}
            row_id = content_id(*named.values(), ids, texts)
            rows.append({"row_id": row_id, **named, "passage_ids": ids, "texts": texts})
    return rows, alone


def _pool(config: RunConfig, dataset: AskedDataset) -> list[dict[str, Any]]:
    """Passages that may be asked about, in a seeded order; no more than that are in memory."""
    settings = config.needed_questions
    measured = _measured_passages(config.paths, dataset.name)
    kept: list[tuple[int, str, str]] = []
    for table in each_table(corpus_files(config.paths, dataset.name), PASSAGE, ["id", "text"]):
        for row in table.to_pylist():
            words = sum(1 for _ in COUNTED_WORD.finditer(row["text"]))
            if words < settings.least_words or row["id"] in measured:
                continue
            entry = (-row_seed(settings.seed, "passage", row["id"]), row["id"], row["text"])
            if len(kept) < POOL * settings.passages:
                heapq.heappush(kept, entry)
            else:
                heapq.heappushpop(kept, entry)
    return [{"id": passage_id, "text": text} for _, passage_id, text in sorted(kept, reverse=True)]


def _measured_passages(paths: Paths, dataset: str) -> set[str]:
    """Passages that answer queries of the dataset that are measured with."""
    splits: tuple[Split, ...] = ("dev", "test")
    files = [path for path in prepared_files(paths) if path.parent.name in splits and path.stem == dataset]
    rows = read_tables(files, QUERY, ["positive_ids"])["positive_ids"].to_pylist()
    return {passage_id for ids in rows for passage_id in ids or []}


def _vectors(config: RunConfig, store: VectorStore, dataset: AskedDataset, pool: list[dict[str, Any]]) -> np.ndarray:
    """The vectors of the pool (P, D), one block in memory at a time."""
    from ray_jobs.retrieval.vectors import vector_matrix  # not above, as Ray comes with it

    position = {row["id"]: i for i, row in enumerate(pool)}
    wanted = []
    for table in each_table(corpus_files(config.paths, dataset.name), PASSAGE, ["task", "id", "text"]):
        own = [i for i, passage_id in enumerate(table["id"].to_pylist()) if passage_id in position]
        if own:
            wanted.append(store.keys(table.take(own), "passage"))
    vectors: np.ndarray | None = None
    for block in store.ledger(dataset.name, "passage").stream(RowIds(wanted)):
        if block.num_rows:
            matrix = vector_matrix(block)
            vectors = np.zeros((len(pool), matrix.shape[1]), dtype=np.float32) if vectors is None else vectors
            vectors[[position[passage_id] for passage_id in block["id"].to_pylist()]] = matrix
    assert vectors is not None
    return vectors
