"""The rows of a training, built by tasks from the labels: neither the driver nor a task holds more than a chunk.

    training_rows/KEY/rows/, held_out/    embedder.training.row_files; the validation split is held out
                      control/            the same with shuffled rewards, with train.control
                      data.json           a DataSummary; the folder appears as a whole, in a store with this file

KEY is made of the files that the rows depend on, by size and time of change, and of the settings: while they stay, a
training starts and resumes without reading a label.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedder.config.run import RunConfig
from embedder.config.tasks import TaskSpec
from embedder.data.records import GROUP, LABELLED, QUERY, ROW_GROUP_ROWS, count_rows, each_table, open_parquet
from embedder.data.row_ids import RowIds, pack_ids
from embedder.errors import LabelError
from embedder.hashing import content_id
from embedder.storage.durable import appearing, discard_folder, remove_unfinished
from embedder.storage.folders import remove_folder
from embedder.storage.json_file import write_json
from embedder.storage.object_store import AnyPath, ObjectPath, stamp_of
from embedder.training.control import shuffle_rewards
from embedder.training.group_rows import own_positives, training_row
from embedder.training.group_survey import (
    GroupSurvey,
    HashPairs,
    ListedIds,
    Seeds,
    Selection,
    Taken,
    listed_key,
    pairs_of,
    select,
    survey_groups,
)
from embedder.training.row_files import Part, PartWriter, RowFiles, describe, finish_rows, part_name
from embedder.training.split import query_key
from ray_jobs.labelling.block_plan import read_row_group
from ray_jobs.training.calls import Calls, InDriver
from ray_jobs.training.groups import LabelledRun, refuse_unknown_tasks, replay_notes

DATA_FORMAT = 1
CHUNK_ROWS = 8192
"""Groups that a task surveys, and writes as one file."""
PIECE_ROWS = 256
"""Groups that are Python objects at the same time."""
CHECKED_GROUPS = 20_000
"""Groups that `check` looks at where the rows are not built; of more it tells what these say."""
TASK_BYTES = 500e6
"""Memory of a task that works on a chunk."""
GROUP_BYTES = 400.0
"""Memory, a group, of the tasks that bring the chunks together."""
COLUMNS = [*GROUP.names, "row_id", "rewards", "label_fingerprint", "error"]


@dataclass(frozen=True)
class DataSummary:
    """The numbers that a job is told of the rows of its training."""

    identity: str
    """Of the groups, as `Taken` has it."""
    sizes: dict[str, int]
    """Rows to train on, by task."""
    left_out: dict[str, int]
    """Groups without a row, by task and reason."""
    apart: int
    """Groups that are kept out of the training."""
    group_size: int
    tokens: float
    """Of a row, as estimated."""
    notes: list[str] = field(default_factory=list)
    """Lines for the user."""


@dataclass(frozen=True)
class LabelChunk:
    """Files of one source's labels that a task reads."""

    number: int
    source: int
    prefix: str
    files: list[AnyPath]

    def pieces(self) -> Iterator[list[dict[str, Any]]]:
        """Its groups, a piece at a time."""
        for table in each_table(self.files, LABELLED, COLUMNS):
            for batch in table.to_batches(max_chunksize=PIECE_ROWS):
                groups = batch.to_pylist()
                yield [{**group, "dataset": self.prefix + group["dataset"]} for group in groups]


@dataclass(frozen=True)
class Writing:
    """How chunks become rows."""

    tasks: dict[str, TaskSpec]
    most_tokens: int
    """Of a text, for the estimate."""
    folder: AnyPath | None
    """None: the rows are only counted."""
    split_seed: int
    shuffles: list[int | None]
    """A training each, with the seed by which its rewards are shuffled; None: rewards as they are."""

    def folders(self, folder: AnyPath) -> list[AnyPath]:
        """Where the rows are put, for each training those to train on and those held out."""
        places = [folder if seed is None else folder / "control" for seed in self.shuffles]
        return [place / name for place in places for name in ("rows", "held_out")]


def data_folder(config: RunConfig, found: Sequence[LabelledRun]) -> AnyPath:
    """Where the rows of these sources are, or will be."""
    files = [path for source in found for path in (*source.candidates, *source.blocks, *source.queries)]
    stamps = [[str(path), *stamp_of(path)] for path in files]
    train = config.needed_train
    chosen: list[Any] = [train.validation and train.validation.model_dump(include={"share", "queries", "seed"})]
    chosen += [train.replay and train.replay.model_dump(mode="json"), train.seed, train.control]
    tasks = {name: spec.model_dump() for name, spec in config.tasks.items()}
    key = content_id(DATA_FORMAT, stamps, chosen, tasks, config.encoder.max_tokens)
    return config.paths.training.with_name("training_rows") / key[:16]


def built_data(folder: AnyPath) -> DataSummary | None:
    """The summary of rows that were built before, if they were."""
    told = folder / "data.json"
    return DataSummary(**json.loads(told.read_text(encoding="utf-8"))) if told.is_file() else None


def look_at(config: RunConfig, found: Sequence[LabelledRun]) -> DataSummary:
    """What the rows would come to, without writing them; of very many groups, as the first ones say.

    Raises:
        ConfigError, DataError: as `build_data`.
    """
    groups = count_rows([path for source in found for path in source.candidates])
    labels = count_rows([path for source in found for path in source.blocks])
    chunks = label_chunks(found, PIECE_ROWS)
    if groups <= CHECKED_GROUPS:
        return _counted(config, found, chunks, InDriver())
    if labels < groups:
        raise LabelError(f"{found[0].place}: {groups - labels:,} of {groups:,} groups have no label; run `label` again")
    first, rows = list[LabelChunk](), 0
    for source in range(len(found)):
        own = [chunk for chunk in chunks if chunk.source == source]
        for chunk in own:
            if rows >= CHECKED_GROUPS * (source + 1) // len(found):
                break
            first.append(LabelChunk(len(first), source, chunk.prefix, chunk.files))
            rows += count_rows(chunk.files)
    train = config.needed_train
    fixed = train.validation.queries if train.validation else None
    if fixed:
        # So many queries may be more than are looked at.
        config = config.model_copy(update={"train": train.model_copy(update={"validation": None})})
    seen, share = _counted(config, found, first, InDriver(), all_wanted=True), rows / labels
    told = f"counted on {rows:,} of {labels:,} groups; the rows are built before the training starts"
    return DataSummary(
        seen.identity,
        {task: max(1, round(count / share) - (fixed or 0)) for task, count in seen.sizes.items()},
        {reason: round(count / share) for reason, count in seen.left_out.items()},
        fixed * len(seen.sizes) if fixed else round(seen.apart / share),
        seen.group_size,
        seen.tokens,
        [*seen.notes, told],
    )


def build_data(config: RunConfig, found: Sequence[LabelledRun], folder: AnyPath, calls: Calls) -> DataSummary:
    """Write the rows, and drop those of other inputs.

    Raises:
        ConfigError: a group is of an unknown task, or the split leaves nothing to train on.
        DataError: a file is unreadable, or a group has no label.
    """
    if isinstance(folder, ObjectPath):
        remove_folder(folder.parent)
        summary = _counted(config, found, label_chunks(found, CHUNK_ROWS), calls, folder)
        # Last: the rows count as built from here on.
        write_json(asdict(summary), folder / "data.json")
        return summary
    if folder.parent.is_dir():
        remove_unfinished(folder.parent)
        for other in folder.parent.iterdir():
            discard_folder(other)
    with appearing(folder) as staged:
        summary = _counted(config, found, label_chunks(found, CHUNK_ROWS), calls, staged)
        write_json(asdict(summary), staged / "data.json")
    return summary


def _counted(
    config: RunConfig,
    found: Sequence[LabelledRun],
    chunks: Sequence[LabelChunk],
    calls: Calls,
    folder: AnyPath | None = None,
    *,
    all_wanted: bool = False,
) -> DataSummary:
    """Survey, select, write: the three passes over chunks of labels."""
    train, tasks = config.needed_train, config.tasks
    seeds = Seeds(train.validation.seed if train.validation else 0, train.seed)
    size = TASK_BYTES + GROUP_BYTES * sum(count_rows(source.candidates) for source in found)
    # What the table of queries lists beside the candidates changes no count by much, and is as long as all groups.
    queries = [] if all_wanted else [(source.name, path) for source in found for path in source.queries]
    parts = [calls.start(listed_of, name, path, memory=TASK_BYTES) for name, path in queries]
    listed = calls.start(join_listed, *parts, memory=size)
    surveys = [calls.start(survey_chunk, chunk, listed, tasks, seeds, memory=TASK_BYTES) for chunk in chunks]
    wanted = [None if all_wanted else _wanted(source, calls, size) for source in found]
    calls.watch("train: groups surveyed, in chunks", surveys)
    places = [source.place for source in found]
    selection = calls.start(
        selected, len(found), places, train.validation, train.replay, *wanted, *surveys, memory=size
    )
    taken: Taken = calls.get(calls.start(taken_of, selection, memory=TASK_BYTES))
    refuse_unknown_tasks(config, taken)
    shuffles: list[int | None] = [None, train.seed] if train.control else [None]
    writing = Writing(tasks, config.encoder.max_tokens, folder, seeds.split, shuffles)
    written = [calls.start(write_chunk, chunk, selection, listed, writing, memory=TASK_BYTES) for chunk in chunks]
    calls.watch("train: rows written, in chunks", written)
    rows, left_out = calls.get(calls.start(finish, writing, *written, memory=size))
    total = sum(rows.sizes.values())
    tokens = rows.tokens / total if total else 0.0
    notes = replay_notes(taken, found)
    return DataSummary(taken.identity, rows.sizes, dict(left_out), taken.apart, rows.group_size, tokens, notes)


def label_chunks(found: Sequence[LabelledRun], rows: int) -> list[LabelChunk]:
    """The labels of all sources in chunks of whole files, of about so many groups."""
    chunks = list[LabelChunk]()
    for number, source in enumerate(found):
        files, count = list[AnyPath](), 0
        for path in source.blocks:
            files.append(path)
            count += count_rows([path])
            if count >= rows:
                chunks.append(LabelChunk(len(chunks), number, source.name, files))
                files, count = [], 0
        if files:
            chunks.append(LabelChunk(len(chunks), number, source.name, files))
    return chunks


def _wanted(source: LabelledRun, calls: Calls, size: float) -> Any:  # noqa: ANN401 - a reference
    parts = []
    for path in source.candidates:
        with open_parquet(path) as file:
            count = file.metadata.num_row_groups
        step = max(1, CHUNK_ROWS // ROW_GROUP_ROWS)
        parts += [
            calls.start(wanted_of, path, first, min(first + step, count), memory=TASK_BYTES)
            for first in range(0, count, step)
        ]
    return calls.start(join_wanted, *parts, memory=size)


def wanted_of(path: AnyPath, first: int, last: int) -> NDArray[np.bytes_]:
    """Task: packed ids of the groups of some row groups."""
    return np.concatenate([pack_ids(read_row_group(path, number).ids) for number in range(first, last)])


def join_wanted(*parts: NDArray[np.bytes_]) -> RowIds:
    """Task: all ids of a source."""
    return RowIds(parts)


def listed_of(prefix: str, path: AnyPath) -> list[tuple[NDArray[np.uint64], NDArray[np.int64]]]:
    """Task: what one file of queries lists, positives and own examples."""
    columns = ["positive_ids", "example_ids"]
    found: list[list[tuple[NDArray[np.uint64], NDArray[np.int64]]]] = [[], []]
    for table in each_table([path], QUERY, ["dataset", "query_id", *columns]):
        for batch in table.to_batches(max_chunksize=CHUNK_ROWS):
            rows = batch.to_pylist()
            for pairs, column in zip(found, columns, strict=True):
                pairs.append(pairs_of(rows, column, prefix))
    return [_joined(pairs) for pairs in found]


def join_listed(*parts: list[tuple[NDArray[np.uint64], NDArray[np.int64]]]) -> ListedIds:
    """Task: what all files of queries list."""
    positives, examples = (HashPairs(*_joined([part[kind] for part in parts])) for kind in (0, 1))
    return ListedIds(positives, examples)


def _joined(
    pairs: Sequence[tuple[NDArray[np.uint64], NDArray[np.int64]]],
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    keys = np.concatenate([np.empty(0, dtype=np.uint64), *(pair[0] for pair in pairs)])
    return keys, np.concatenate([np.empty(0, dtype=np.int64), *(pair[1] for pair in pairs)])


def survey_chunk(chunk: LabelChunk, listed: ListedIds, tasks: dict[str, TaskSpec], seeds: Seeds) -> GroupSurvey:
    """Task: survey a chunk."""
    return survey_groups(chunk.source, chunk.pieces(), listed, tasks, seeds)


def selected(count: int, places: Sequence[str], validation: Any, replay: Any, *parts: Any) -> Selection:  # noqa: ANN401
    """Task: `select` of `count` sets of wanted ids and then the surveys, which Ray hands on one by one."""
    return select(parts[:count], places, validation, replay, *parts[count:])


def taken_of(selection: Selection) -> Taken:
    """Task: the few numbers of a selection that the driver needs."""
    return selection.taken


def write_chunk(chunk: LabelChunk, selection: Selection, listed: ListedIds, writing: Writing) -> list[Part]:
    """Task: write the taken groups of a chunk as parts, one for each folder of `Writing.folders`."""
    name, ranks = part_name(chunk.number), selection.ranks[chunk.number].tolist()
    folders = writing.folders(writing.folder) if writing.folder else [None] * 2 * len(writing.shuffles)
    with ExitStack() as stack:
        writers = [
            stack.enter_context(PartWriter(folder, name, writing.tasks, writing.most_tokens)) for folder in folders
        ]
        first = 0
        for groups in chunk.pieces():
            places = zip(groups, ranks[first : first + len(groups)], strict=True)
            _add(writers, [(group, rank) for group, rank in places if rank >= 0], selection, listed, writing)
            first += len(groups)
    return [writer.part() for writer in writers]


def _add(
    writers: Sequence[PartWriter],
    taken: Sequence[tuple[dict[str, Any], int]],
    selection: Selection,
    listed: ListedIds,
    writing: Writing,
) -> None:
    """Give groups and their ranks to the writers of their split."""
    keys = [listed_key(group["dataset"], group["query_id"]) for group, _ in taken]
    query_keys = [query_key(writing.split_seed, group["task"], group["query"]) for group, _ in taken]
    found = zip(listed.positives.of(keys), listed.examples.of(keys), selection.known.of(query_keys), strict=True)
    for (group, rank), key, (positives, examples, others) in zip(taken, query_keys, found, strict=True):
        task, is_apart = group["task"], key <= selection.apart[group["task"]]
        known = frozenset(own_positives(group).union(positives, others))
        answers = selection.answers[is_apart].get(group["dataset"])
        for number, seed in enumerate(writing.shuffles):
            (seen,) = [group] if seed is None else shuffle_rewards([group], seed)
            row = training_row(seen, writing.tasks[task], known, examples, answers)
            writers[2 * number + is_apart].add(task, row, rank)


def finish(writing: Writing, *written: list[Part]) -> tuple[RowFiles, Counter[str]]:
    """Task: bring the parts together; returns the rows to train on and what was left out of them."""
    trained = [parts[0] for parts in written]
    left_out = sum((part.left_out for part in trained), Counter[str]())
    if writing.folder is None:
        return describe(trained)[0], left_out
    found = [
        finish_rows(folder, [parts[number] for parts in written])
        for number, folder in enumerate(writing.folders(writing.folder))
    ]
    return found[0], left_out
