"""Groups to train on for the benchmark: real queries and passages of mixed length, with rewards made up by a seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.real_data import read_rows
from embedder.config.run import EncoderConfig
from embedder.config.tasks import BUILTIN_TASKS, TaskSpec
from embedder.config.train import TrainConfig
from embedder.storage.fetched import local_copy
from embedder.training.batch_plan import BatchPlan
from embedder.training.job import TrainingJob
from embedder.training.row_files import write_training_rows
from embedder.training.training_rows import Batch, TrainingRows

CANDIDATES = 8
TEMPERATURE = 0.05
SOURCES = {"qa": ("qa/nq", "kl"), "tool": ("tool/metatool", "contrastive")}
"""By task: the folder of its data, and its loss: the two of which sentence-transformers has the like."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Workbench:
    """What all ways of training share."""

    encoder: EncoderConfig
    data: Path
    folder: Path
    """Where the trainings keep their files."""
    seed: int = 0

    def job(self, task: str, batch_size: int, steps: int, **settings: Any) -> TrainingJob:  # noqa: ANN401
        """A training of one task, its rows written."""
        config = TrainConfig.model_validate(
            {"steps": steps, "batch_size": batch_size, "temperature": TEMPERATURE, "num_workers": 1, **settings}
        )
        made = len(list(self.folder.iterdir())) if self.folder.is_dir() else 0
        job = TrainingJob(self.encoder, benchmark_tasks(), config, self.folder / f"{made:02d}-{task}-{batch_size}")
        groups = read_groups(self.data, task, batch_size * steps, self.seed)
        write_training_rows(groups, job.tasks, job.rows, {})
        return job


def benchmark_tasks() -> dict[str, TaskSpec]:
    """The built-in tasks with the losses of the benchmark."""
    return {
        task: BUILTIN_TASKS[task].model_copy(update={"loss": loss, "reward_temperature": 1.0})
        for task, (_, loss) in SOURCES.items()
    }


def read_groups(data: Path, task: str, count: int, seed: int) -> list[Row]:
    """Training queries, each with one known positive first and seeded passages of the corpus after it.

    More than there are begin again. The rewards are random: they cost what real ones cost.
    """
    folder = data / SOURCES[task][0]
    corpus, queries = (read_rows(folder / name) for name in ("corpus.jsonl", "train.jsonl"))
    texts = {line["id"]: line["text"] for line in corpus}
    ids = list(texts)
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(queries))
    groups = []
    for number in range(count):
        query = queries[order[number % len(queries)]]
        known = set(query["pos_ids"])
        others = [ids[i] for i in draw.permutation(len(ids))[: CANDIDATES + len(known)] if ids[i] not in known]
        chosen = [query["pos_ids"][0], *others[: CANDIDATES - 1]]
        groups.append(
            {
                "task": task,
                "dataset": folder.name,
                "query_id": query["query_id"],
                "query": query["query"],
                "candidate_ids": chosen,
                "candidate_texts": [texts[passage_id] for passage_id in chosen],
                "relevance": [1] + [0] * (len(chosen) - 1),
                "rewards": draw.normal(size=len(chosen)).tolist(),
                "error": None,
            }
        )
    return groups


def batches_of(job: TrainingJob) -> list[Batch]:
    """The batch of every step, as the trainer takes them."""
    rows = TrainingRows(local_copy(job.rows))
    plan = BatchPlan(rows.sizes, job.config)
    return [rows.batch(plan.batch(step)) for step in range(job.config.steps)]
