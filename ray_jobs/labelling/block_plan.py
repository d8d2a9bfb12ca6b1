"""The labelling work ahead: candidate files, row group by row group, cut into the same units in every run.

However many rows there are, memory holds one row group (1,024 rows, as `mine` writes them) and 16 bytes an id.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from embedder.config.paths import Paths
from embedder.config.run import RunConfig
from embedder.config.tasks import TaskSpec
from embedder.data.ledger import Ledger
from embedder.data.records import GROUP, group_id, open_parquet, unrewarded
from embedder.data.row_ids import RowIds
from embedder.errors import DataError
from embedder.hashing import row_seed
from embedder.labelling.units import Unit, join_units, missing_of, plan_units, unit_tokens, written_tokens
from embedder.storage.object_store import AnyPath
from ray_jobs.cluster.tables import candidate_files

BLOCK = pa.schema(
    [
        ("file", pa.string()),
        ("row_group", pa.int32()),
        ("units", pa.list_(pa.list_(pa.int32()))),
        ("rows", pa.int32()),
        ("tokens", pa.float64()),
    ]
)
"""Groups of one row group of a file in `paths.candidates` that are committed together: unit by unit, the positions of
those that no block holds; `rows` is their number and `tokens` what the LLM must read of them, as estimated. The content
is read where it is labelled, so that driver and object store hold no text."""


@dataclass
class GroupRows:
    """The groups of one row group of a candidate file."""

    groups: list[dict[str, Any]]
    unreadable: dict[int, str]
    """Reason by position for the groups that are damaged; they stand among the others with the damage made visible."""

    @cached_property
    def ids(self) -> list[str]:
        """Ids of the groups, by position."""
        return [group_id(group) for group in self.groups]

    def ids_of(self, units: Iterable[Unit]) -> list[str]:
        """The ids of the groups of units, in the order in which they are committed."""
        return [self.ids[position] for unit in units for position in unit]

    def task_of(self, unit: Unit) -> str:
        """The task of a unit, which all of its groups have."""
        return str(self.groups[unit[0]]["task"])

    def without_rewards(self, position: int, tasks: Mapping[str, TaskSpec], fingerprint: str) -> dict[str, Any]:
        """A group as a labelled row without rewards, which says why if it is damaged."""
        group = self.groups[position]
        row = unrewarded(group, tasks[group["task"]].reward, fingerprint)
        return {**row, "error": self.unreadable.get(position)}


def read_row_group(path: AnyPath, number: int) -> GroupRows:
    """Read one row group; text that is no valid UTF-8 spoils its own row only.

    Raises:
        DataError: the file is unreadable or its columns are not those of a group.
    """
    try:
        with open_parquet(path) as file:
            table = file.read_row_group(number, columns=GROUP.names)
        if table.column_names != GROUP.names:
            raise DataError(f"{path}: columns {table.column_names}, expected {GROUP.names}; run mine again")
        table = table.cast(GROUP)
    except (OSError, pa.ArrowInvalid) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: not a readable Parquet file of groups ({reason}); run mine again") from error
    # Parquet holds text as bytes, which nobody checks until they become Python text.
    try:
        return GroupRows(table.to_pylist(), {})
    except UnicodeDecodeError:
        return _read_damaged(table)


def _read_damaged(table: pa.Table) -> GroupRows:
    binary = {pa.string(): pa.binary(), pa.list_(pa.string()): pa.list_(pa.binary())}
    as_bytes = pa.schema([(column.name, binary.get(column.type, column.type)) for column in GROUP])
    groups, unreadable = [], {}
    for position, row in enumerate(table.cast(as_bytes).to_pylist()):
        group = {name: _decoded(value, "replace") for name, value in row.items()}
        groups.append(group)
        try:
            _decoded(list(row.values()), "strict")
        except UnicodeDecodeError as error:
            unreadable[position] = f"text is not valid UTF-8 ({error.reason} at byte {error.start})"
    return GroupRows(groups, unreadable)


def _decoded(value: Any, errors: str) -> Any:  # noqa: ANN401
    if isinstance(value, bytes):
        return value.decode("utf-8", errors)
    return [_decoded(item, errors) for item in value] if isinstance(value, list) else value


def plan_row_group(path: AnyPath, rows: GroupRows, config: RunConfig, selected: RowIds | None) -> list[Unit]:
    """The units of one row group: a pure function of the rows, the selection and `label.unit_groups`.

    Groups of tasks with a reward that are not `selected` are in none; None selects all.

    Raises:
        DataError: a group is of an unknown task.
    """
    tasks = config.tasks
    for group in rows.groups:
        if group["task"] not in tasks:
            where = f"task {group['task']!r} of query {group['query_id']!r}"
            raise DataError(f"{path}: {where} is unknown; known are {sorted(tasks)}")
    chosen = list(range(len(rows.groups)))
    if selected is not None:
        inside = selected.contains(rows.ids)
        chosen = [i for i in chosen if inside[i] or tasks[rows.groups[i]["task"]].reward == "none"]
    units = plan_units([rows.groups[position] for position in chosen], config.label.groups_per_unit)
    return [[chosen[i] for i in unit] for unit in units]


def select_llm_groups(groups: Iterable[dict[str, Any]], count: int, seed: int) -> RowIds:
    """The ids of at most `count` groups a dataset, for the LLM to label; no more than these are held in memory.

    They are those with the least seeded hash, so that the choice depends on neither the order of the rows nor the
    other datasets, and a greater count keeps what a smaller one chose.
    """
    chosen: dict[str, list[tuple[int, str]]] = {}
    for group in groups:
        row_id = group_id(group)
        kept = chosen.setdefault(group["dataset"], [])
        entry = (-row_seed(seed, "llm group", row_id), row_id)  # negated, because the heap drops the least
        if len(kept) < count:
            heapq.heappush(kept, entry)
        else:
            heapq.heappushpop(kept, entry)
    return RowIds([[row_id for _, row_id in kept] for kept in chosen.values()])


@dataclass
class TaskWork:
    """The groups of one task, and what is ahead of them."""

    groups: int = 0
    ahead: int = 0
    """Groups that no block holds yet."""
    pairs: int = 0
    """Query and candidate pairs ahead."""
    tokens: float = 0.0
    """Estimated tokens of these that the LLM must read."""
    written: float = 0.0
    """Estimated tokens that a server must write for them."""


@dataclass(frozen=True)
class Survey:
    """All groups to be labelled, and those ahead."""

    expected: RowIds
    before: int
    """How many of these a block holds."""
    tasks: dict[str, TaskWork]
    plain: list[tuple[AnyPath, int]]
    """Row groups that have rows ahead of tasks without a reward: (path, number)."""
    blocks: pa.Table
    """Blocks ahead of the other tasks, rows of BLOCK."""


def row_groups(paths: Paths) -> Iterator[tuple[AnyPath, int]]:
    """Every row group of every candidate file: (path, number).

    Raises:
        DataError: `mine` has not run, or a file is unreadable.
    """
    for path in candidate_files(paths):
        try:
            with open_parquet(path) as file:
                count = file.num_row_groups
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{path}: not a readable Parquet file; run mine again") from error
        yield from ((path, number) for number in range(count))


def survey(config: RunConfig, ledger: Ledger, block_rows: int, selected: RowIds | None = None) -> Survey:
    """Read all candidates once and tell what no block of a ledger holds yet, in blocks of about `block_rows` groups.

    With `selected`, groups of tasks with a reward are left out unless they are among these.

    Raises:
        DataError: a candidate file is unreadable, names an unknown task, or `mine` has not run.
    """
    done = ledger.row_ids()
    tasks: dict[str, TaskWork] = {}
    plain: list[tuple[AnyPath, int]] = []
    first: dict[str, pa.Table] = {}
    others = [BLOCK.empty_table()]

    def read() -> Iterator[list[str]]:
        for path, number in row_groups(config.paths):
            rows = read_row_group(path, number)
            units = plan_row_group(path, rows, config, selected)
            for unit in units:
                tasks.setdefault(rows.task_of(unit), TaskWork()).groups += len(unit)
            rewarded = []
            for unit in missing_of(units, (~done.contains(rows.ids)).tolist()):
                tasks[rows.task_of(unit)].ahead += len(unit)
                if config.tasks[rows.task_of(unit)].reward != "none":
                    rewarded.append(unit)
                elif (path, number) not in plain[-1:]:
                    plain.append((path, number))
            own = [
                {
                    "file": path.name,
                    "row_group": number,
                    "units": joined,
                    "rows": sum(map(len, joined)),
                    "tokens": sum(_count(config, rows, unit, tasks) for unit in joined),
                }
                for joined in join_units(rewarded, block_rows)
            ]
            if own and path.name not in first:
                first[path.name] = pa.Table.from_pylist(own[:1], BLOCK)
                own = own[1:]
            others.append(pa.Table.from_pylist(own, BLOCK))
            yield rows.ids_of(units)

    expected = RowIds(read())
    before = len(expected) - expected.missing_from(done)[0]
    # One block of each dataset first: what these cost tells what the rest will, and a dataset at fault fails early.
    blocks = pa.concat_tables([*first.values(), *others]).combine_chunks()
    return Survey(expected, before, tasks, plain, blocks)


def _count(config: RunConfig, rows: GroupRows, unit: Unit, tasks: Mapping[str, TaskWork]) -> float:
    """Count the pairs and estimated tokens of what is ahead of a unit; returns the tokens."""
    task, groups = rows.task_of(unit), [rows.groups[position] for position in unit]
    tokens = unit_tokens(groups, config.tasks[task], config.label.num_rivals, config.llm)
    tasks[task].pairs += sum(len(group["candidate_ids"]) for group in groups)
    tasks[task].tokens += tokens
    tasks[task].written += written_tokens(groups, config.tasks[task], config.label.num_rivals, config.llm)
    return tokens


def commit_missing(ledger: Ledger, rows: list[dict[str, Any]], done: RowIds) -> None:
    """Commit the rows of records.LABELLED that are not among those done."""
    is_done = done.contains([row["row_id"] for row in rows])
    fresh = [row for row, known in zip(rows, is_done, strict=True) if not known]
    if fresh:
        ledger.commit(fresh)
