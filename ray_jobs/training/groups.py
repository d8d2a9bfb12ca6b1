"""Which labelled groups a training takes: this run's, and of earlier runs those that are replayed."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from embedder.config.paths import Paths
from embedder.config.run import RunConfig
from embedder.config.train import ReplayConfig, ReplayedRun
from embedder.data.ledger import Ledger
from embedder.data.records import group_id, parquet_files
from embedder.errors import ConfigError, DataError
from embedder.hashing import content_id, row_seed
from ray_jobs.cluster.tables import (
    candidate_groups,
    example_ids,
    labelled_ledger,
    llm_ledger,
    positive_ids,
    reranked_ledger,
)

Group = dict[str, Any]


@dataclass(frozen=True)
class TrainingGroups:
    """All that a training learns from."""

    groups: list[Group]
    """Rows of records.LABELLED."""
    positives: dict[tuple[str, str], list[str]]
    """Ids of the known positives of each query, by (dataset, query_id)."""
    examples: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    """Ids of the passages that a query itself is as a worked example, in the same way."""
    notes: list[str] = field(default_factory=list)
    """Lines on them for the user."""

    @property
    def identity(self) -> str:
        """Hash of the groups, their labels, and which candidates are known to be right."""
        labels = [[group["row_id"], group["label_fingerprint"]] for group in self.groups]
        known = [self.positives.get((group["dataset"], group["query_id"]), []) for group in self.groups]
        own = [self.examples.get((group["dataset"], group["query_id"]), []) for group in self.groups]
        return content_id(labels, known, own)


def training_groups(config: RunConfig) -> TrainingGroups:
    """The groups of this run and the replayed ones.

    Raises:
        ConfigError: a run is replayed that does not fit.
        DataError: `label` has not run, or not for all candidates; here or in a replayed run.
    """
    new = labelled_groups(config.paths, labelled_ledger(config))
    replay = config.train.replay if config.train else None
    if replay is None:
        return TrainingGroups(new, positive_ids(config.paths), example_ids(config.paths))
    own = {group["row_id"] for group in new}
    old: dict[str, Group] = {}
    positives, examples = positive_ids(config.paths), example_ids(config.paths)
    for run in replay.runs:
        paths = earlier_paths(config.paths, run)
        reranked = reranked_ledger(paths)
        ledger = reranked if parquet_files(reranked.folder) else llm_ledger(paths)
        # Ids are names within one run: the same one may be another query or passage here, so each run has its own.
        name = f"{run.work} round {run.round}: "
        for group in labelled_groups(paths, ledger):
            if group["row_id"] not in own:
                old.setdefault(group["row_id"], {**group, "dataset": name + group["dataset"]})
        positives |= {(name + dataset, query): ids for (dataset, query), ids in positive_ids(paths).items()}
        examples |= {(name + dataset, query): ids for (dataset, query), ids in example_ids(paths).items()}
    _refuse_unknown_tasks(config, list(old.values()))
    chosen = replayed(list(old.values()), len(new), replay, config.train.seed if config.train else 0)
    counts = Counter(group["task"] for group in chosen)
    shown = ", ".join(f"{task} {count:,}" for task, count in sorted(counts.items())) or "none"
    note = f"replays {len(chosen):,} of {len(old):,} groups of {len(replay.runs)} earlier runs: {shown}"
    return TrainingGroups(new + chosen, positives, examples, [note])


def labelled_groups(paths: Paths, ledger: Ledger) -> list[Group]:
    """The labels that a ledger holds of a run's current candidates.

    Raises:
        DataError: `label` has not run, or not for all of these candidates.
    """
    if not parquet_files(ledger.folder):
        raise DataError(f"{ledger.folder}: no labels; run `python -m ray_jobs.label` first")
    wanted = [group_id(group) for group in candidate_groups(paths).to_pylist()]
    rows: list[Group] = ledger.read(wanted).to_pylist()
    return rows


def replayed(old: list[Group], new: int, replay: ReplayConfig, seed: int) -> list[Group]:
    """So many old groups that they are `replay.share` of all, those with the least seeded hash; all if they are fewer.

    A task keeps its share of the old groups as nearly as whole groups allow.
    """
    count = min(len(old), math.ceil(new * replay.share / (1 - replay.share)))
    ranked: dict[str, list[Group]] = {}
    for group in sorted(old, key=lambda group: (row_seed(seed, "replay", group["row_id"]), group["row_id"])):
        ranked.setdefault(group["task"], []).append(group)
    # Groups of all tasks in the order of the share of their own task that stands before them: however many are taken
    # from the front, each task gives the same share of its groups.
    order = [((i + 0.5) / len(groups), task, i) for task, groups in ranked.items() for i in range(len(groups))]
    return [ranked[task][i] for _, task, i in sorted(order)[:count]]


def earlier_paths(own: Paths, run: ReplayedRun) -> Paths:
    """Where the tables of an earlier run are.

    Raises:
        ConfigError: it is this run itself, or its folder holds no candidates.
    """
    paths = own.model_copy(update={"work": run.work, "round": run.round})
    if paths.of_round == own.of_round:
        raise ConfigError(f"train.replay.runs names this run itself, {run.work} round {run.round}; name an earlier one")
    if not parquet_files(paths.candidates):
        raise ConfigError(f"train.replay.runs: {paths.candidates} holds no candidates; correct `work` and `round`")
    return paths


def _refuse_unknown_tasks(config: RunConfig, groups: list[Group]) -> None:
    unknown = sorted({group["task"] for group in groups} - set(config.tasks))
    if unknown:
        raise ConfigError(
            f"train.replay: the replayed groups are of tasks {unknown}, which this run file does not describe; copy "
            "them from the earlier run file into `tasks`"
        )
