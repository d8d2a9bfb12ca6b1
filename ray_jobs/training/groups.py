"""Which runs a training learns from: the run itself, and earlier ones that are replayed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from embedder.config.paths import Paths
from embedder.config.run import RunConfig
from embedder.config.train import ReplayedRun
from embedder.data.records import parquet_files
from embedder.errors import ConfigError, DataError
from embedder.storage.object_store import AnyPath
from embedder.training.group_survey import Taken
from ray_jobs.cluster.tables import candidate_files, labelled_ledger, llm_ledger, reranked_ledger


@dataclass(frozen=True)
class LabelledRun:
    """A run whose labelled groups are learned from."""

    name: str
    """Stands before the names of its datasets; empty for the run itself. Ids are names within one run: the same one may
    be another query or passage in the next."""
    candidates: list[AnyPath]
    blocks: list[AnyPath]
    """Files of its labels."""
    queries: list[AnyPath]
    """Files of its training queries."""
    place: str
    """Where the labels are, for messages."""


def sources(config: RunConfig) -> list[LabelledRun]:
    """The run itself, and then those it replays.

    Raises:
        ConfigError: a run is replayed that does not fit.
        DataError: `mine` or `label` has not run; here or in a replayed run.
    """
    found = [_source("", config.paths, labelled_ledger(config).folder)]
    for run in config.train.replay.runs if config.train and config.train.replay else ():
        paths = earlier_paths(config.paths, run)
        reranked = reranked_ledger(paths)
        ledger = reranked if parquet_files(reranked.folder) else llm_ledger(paths)
        found.append(_source(f"{run.work} round {run.round}: ", paths, ledger.folder))
    return found


def _source(name: str, paths: Paths, labels: AnyPath) -> LabelledRun:
    blocks = parquet_files(labels)
    if not blocks:
        raise DataError(f"{labels}: no labels; run `python -m ray_jobs.label` first")
    queries: list[AnyPath] = list(parquet_files(paths.queries / "train"))
    return LabelledRun(name, candidate_files(paths), blocks, queries, str(labels))


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


def replay_notes(taken: Taken, found: Sequence[LabelledRun]) -> list[str]:
    """A line on what is replayed, where something is."""
    if len(found) == 1:
        return []
    shown = ", ".join(f"{task} {count:,}" for task, count in sorted(taken.replayed.items())) or "none"
    runs = len(found) - 1
    return [f"replays {sum(taken.replayed.values()):,} of {taken.old:,} groups of {runs} earlier runs: {shown}"]


def refuse_unknown_tasks(config: RunConfig, taken: Taken) -> None:
    """Refuse groups of tasks that the run file lacks.

    Raises:
        ConfigError: with what to do.
    """
    unknown = sorted(set(taken.tasks) - set(config.tasks))
    if unknown:
        raise ConfigError(
            f"train: the labelled and the replayed groups are of tasks {unknown}, which this run file does not "
            "describe; copy them into `tasks` from the run file of these groups"
        )
