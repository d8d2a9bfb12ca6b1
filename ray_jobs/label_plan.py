"""The labelling work ahead: candidate files, row group by row group, cut into the same blocks in every run.

However many rows there are, memory holds one row group (1,024 rows, as `mine` writes them) and 16 bytes an id.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import pyarrow as pa

from embedder.config import LabelConfig, RunConfig
from embedder.cost import tokens_of
from embedder.errors import DataError
from embedder.labelling.units import Unit, join_units, plan_units
from embedder.records import GROUP, group_id, open_parquet
from embedder.row_ids import RowIds
from embedder.storage import AnyPath
from ray_jobs.tables import candidate_files, llm_ledger

BLOCK = pa.schema([("file", pa.string()), ("row_group", pa.int32()), ("block", pa.int32()), ("rows", pa.int32())])
"""A block of groups by its place in `paths.candidates`; its content is read where it is labelled."""


@dataclass(frozen=True)
class GroupRows:
    """The groups of one row group of a candidate file."""

    groups: list[dict[str, Any]]
    unreadable: dict[int, str]
    """Why some of them are damaged; these stand among the groups with the damage made visible."""


@lru_cache(maxsize=2)
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
    try:
        return GroupRows(table.to_pylist(), {})
    except UnicodeDecodeError:
        return _read_damaged(table)


def _read_damaged(table: pa.Table) -> GroupRows:
    binary = {pa.string(): pa.binary(), pa.list_(pa.string()): pa.list_(pa.binary())}
    as_bytes = pa.schema([(one.name, binary.get(one.type, one.type)) for one in GROUP])
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


def plan_blocks(rows: GroupRows, label: LabelConfig, selected: RowIds | None) -> list[list[Unit]]:
    """The blocks of one row group: a pure function of its rows, the selection and the settings."""
    chosen = list(range(len(rows.groups)))
    if selected is not None:
        inside = selected.contains([group_id(group) for group in rows.groups])
        chosen = [position for position in chosen if inside[position]]
    units = plan_units([rows.groups[position] for position in chosen], label.unit_groups)
    return join_units([[chosen[i] for i in unit] for unit in units], label.block_rows)


@dataclass
class TaskWork:
    """What there is of one task."""

    groups: int = 0
    ahead: int = 0
    """Groups that no block holds yet."""
    pairs: int = 0
    """Query and candidate pairs ahead."""
    tokens: float = 0.0
    """Estimated tokens of these that the LLM must read."""


@dataclass(frozen=True)
class Survey:
    """All groups to be labelled, and those ahead."""

    expected: RowIds
    tasks: dict[str, TaskWork]
    plain: list[tuple[AnyPath, int]]
    """Row groups that have rows ahead of tasks without a reward: (path, number)."""
    blocks: pa.Table
    """Blocks ahead of the other tasks, rows of BLOCK."""


def row_groups(config: RunConfig) -> Iterator[tuple[AnyPath, int]]:
    """Every row group of every candidate file: (path, number).

    Raises:
        DataError: `mine` has not run, or a file is unreadable.
    """
    for path in candidate_files(config):
        try:
            with open_parquet(path) as file:
                count = file.num_row_groups
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{path}: not a readable Parquet file; run mine again") from error
        yield from ((path, number) for number in range(count))


def survey(config: RunConfig, selected: RowIds | None = None) -> Survey:
    """Read all candidates once and tell what no block holds yet; `selected` leaves all other groups out.

    Raises:
        DataError: a candidate file is unreadable, names an unknown task, or `mine` has not run.
    """
    done = llm_ledger(config).row_ids()
    found = Survey(RowIds([]), {}, [], BLOCK.empty_table())
    ids: list[list[str]] = []
    blocks: list[dict[str, Any]] = []
    for path, number in row_groups(config):
        rows = read_row_group(path, number)
        for index, units in enumerate(plan_blocks(rows, config.label, selected)):
            groups = [rows.groups[position] for unit in units for position in unit]
            ids.append([group_id(group) for group in groups])
            fresh = ~done.contains(ids[-1])
            for group, is_ahead in zip(groups, fresh.tolist(), strict=True):
                _count(config, found.tasks, group, is_ahead, path)
            if not fresh.any():
                continue
            if all(config.tasks[group["task"]].reward == "none" for group in groups):
                if (path, number) not in found.plain[-1:]:
                    found.plain.append((path, number))
            else:
                blocks.append({"file": path.name, "row_group": number, "block": index, "rows": int(fresh.sum())})
    return replace(found, expected=RowIds(ids), blocks=pa.Table.from_pylist(blocks, BLOCK))


def _count(config: RunConfig, tasks: dict[str, TaskWork], group: dict[str, Any], is_ahead: bool, path: AnyPath) -> None:
    name = group["task"]
    if name not in config.tasks:
        raise DataError(f"{path}: task {name!r} of query {group['query_id']!r}; known are {sorted(config.tasks)}")
    spec, work = config.tasks[name], tasks.setdefault(name, TaskWork())
    work.groups += 1
    if not is_ahead:
        return
    work.ahead += 1
    if spec.reward != "none":
        count = len(group["candidate_ids"])
        outputs = (config.label.num_samples if spec.reward == "rank" else 0) + 1
        work.pairs += count
        characters = sum(map(len, group["candidate_texts"])) + len(group["query"]) * (count + 1)
        work.tokens += tokens_of(characters) + (count + 2) * outputs * spec.max_output_tokens
