"""Rankings of passages for queries, as parts of a corpus give them, and how they become one.

Q queries, P passages of a block, D width, K results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embedder.data.records import RANKING

Ranking = list[tuple[str, float]]
"""Passage ids with scores, best first, ties by id."""


@dataclass(frozen=True)
class Found:
    """The best passages of each query in a part of the corpus, best first, ties by id."""

    score_QK: NDArray[np.float32]
    row_QK: NDArray[np.int64]
    """Places in `ids`; -1 where a query has fewer results."""
    ids: pa.Array
    """Ascending."""

    def compact(self) -> Found:
        """The same without ids that no query found."""
        used, where = np.unique(self.row_QK, return_inverse=True)
        offset = int(len(used) > 0 and used[0] == -1)
        row_QK = where.reshape(self.row_QK.shape).astype(np.int64) - offset
        return Found(self.score_QK, row_QK, self.ids.take(pa.array(used[offset:])))

    def table(self, query_ids: pa.Array) -> pa.Table:
        """Rows of RANKING without named passages."""
        held = self.row_QK >= 0
        ends = np.concatenate([[0], np.cumsum(held.sum(axis=1))]).astype(np.int32)
        ids = pa.ListArray.from_arrays(pa.array(ends), self.ids.take(pa.array(self.row_QK[held])))
        scores = pa.ListArray.from_arrays(pa.array(ends), pa.array(self.score_QK[held]))
        nothing = [pa.nulls(len(query_ids), RANKING.field(name).type) for name in ("named_ids", "named_scores")]
        return pa.table([query_ids, ids, scores, *nothing], schema=RANKING)

    def rankings(self) -> list[Ranking]:
        """The ranking of each query."""
        names = self.ids.to_pylist()
        return [
            [(names[row], score) for row, score in zip(rows, scores, strict=True) if row >= 0]
            for rows, scores in zip(self.row_QK.tolist(), self.score_QK.tolist(), strict=True)
        ]


def merge_found(parts: Sequence[Found], depth: int) -> Found:
    """The `depth` best of what parts of a corpus gave for the same queries; what stands in several counts once."""
    chunks = [part.ids for part in parts]
    distinct = pa.concat_arrays(chunks).unique()
    # By bytes, which in UTF-8 is the order of Python's strings.
    ids = distinct.take(pc.sort_indices(distinct))
    rows = []
    for part in parts:
        place = pc.index_in(part.ids, ids).to_numpy(zero_copy_only=False).astype(np.int64)
        # The last entry is for -1, which stays.
        rows.append(np.append(place, -1)[part.row_QK])
    row_QK, score_QK = np.concatenate(rows, axis=1), np.concatenate([part.score_QK for part in parts], axis=1)
    order = np.lexsort((-score_QK, row_QK))
    score_QK, row_QK = (np.take_along_axis(each, order, axis=1) for each in (score_QK, row_QK))
    repeated = np.zeros_like(row_QK, dtype=bool)
    repeated[:, 1:] = row_QK[:, 1:] == row_QK[:, :-1]
    score_QK[repeated | (row_QK < 0)] = -np.inf
    row_QK[repeated] = -1
    order = np.lexsort((row_QK, -score_QK))[:, :depth]
    return Found(np.take_along_axis(score_QK, order, axis=1), np.take_along_axis(row_QK, order, axis=1), ids).compact()


def best(scored: Ranking, depth: int) -> Ranking:
    """Sort by score, highest first, ties by id, and keep `depth`."""
    return sorted(scored, key=lambda entry: (-entry[1], entry[0]))[:depth]
