"""Plans which groups are labelled together: a pure function of the rows, so that a restart does the same work again."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from embedder.data.records import group_id

Unit = list[int]
"""Positions of the groups that are sampled and scored together."""


def plan_units(groups: Sequence[dict[str, Any]], unit_groups: int) -> list[Unit]:
    """Units of at most `unit_groups` groups of one task and dataset, those with common candidates side by side.

    Groups are sorted by the least hash of their candidates (a min-hash): it is equal with the probability of their
    Jaccard overlap, so the LLM mostly reads a passage once for all queries of a unit that share it.
    """
    kinds: dict[tuple[str, str], list[tuple[int, str, int]]] = {}
    for position, group in enumerate(groups):
        # CRC-32 and not `hash`, which differs from process to process.
        least = min((zlib.crc32(text.encode()) for text in group["candidate_texts"]), default=0)
        kinds.setdefault((group["task"], group["dataset"]), []).append((least, group_id(group), position))
    units = []
    for kind in sorted(kinds):
        # The id breaks ties, so that units do not depend on the order of the rows.
        order = [position for _, _, position in sorted(kinds[kind])]
        units += [order[i : i + unit_groups] for i in range(0, len(order), unit_groups)]
    return units


def join_units(units: Mapping[int, Unit], block_rows: int) -> list[list[int]]:
    """Blocks of whole units, by number, with at least `block_rows` groups, the last one with what is left."""
    blocks: list[list[int]] = []
    rows = 0
    for number, unit in units.items():
        if not blocks or rows >= block_rows:
            blocks.append([])
            rows = 0
        blocks[-1].append(number)
        rows += len(unit)
    return blocks
