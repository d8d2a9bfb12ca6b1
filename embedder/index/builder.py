"""A collection built from committed vectors, block by block, with memory for its own vectors and payload alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from embedder.config.index import BuildSettings
from embedder.data.ledger import Ledger
from embedder.data.row_ids import RowIds
from embedder.errors import DataError
from embedder.index.collection import CollectionIdentity, CollectionInfo, sort_by_name, write_collection
from embedder.index.documents import PAYLOAD
from embedder.index.faiss_index import empty_vectors


@dataclass(frozen=True)
class CollectionPart:
    """The passages of one dataset that belong into a collection."""

    payload: pa.Table
    """documents.PAYLOAD."""
    keys: list[str]
    """Row ids of their vectors."""
    ledger: Ledger
    """Blocks of records.VECTOR that hold these among others."""


def build_collection(
    folder: Path,
    parts: Sequence[CollectionPart],
    identity: CollectionIdentity,
    settings: BuildSettings,
    *,
    on_gpu: bool = False,
) -> CollectionInfo:
    """Write the collection of some passages; the blocks are read one after another. `on_gpu`: cells are trained there.

    Raises:
        ConfigError: FAISS cannot build the factory string.
        DataError: a vector is missing or of another width, or two passages have the same id and dataset.
    """
    payload = pa.concat_tables([PAYLOAD.empty_table(), *(part.payload for part in parts)])
    order = sort_by_name(payload)
    row_of = np.empty(len(order), dtype=np.int64)
    row_of[order] = np.arange(len(order))
    # Blocks come in the order of mining and rows are sorted by name, so each vector goes straight into its row.
    flat, vectors = empty_vectors(len(order), identity.dimension)
    first = 0
    for part in parts:
        _fill(vectors, row_of[first : first + len(part.keys)], part)
        first += len(part.keys)
    return write_collection(folder, payload.take(pa.array(order)), flat, identity, settings, on_gpu=on_gpu)


def _fill(vectors: np.ndarray, rows: np.ndarray, part: CollectionPart) -> None:
    """Put the vectors of one part into its rows."""
    wanted = RowIds([part.keys])
    row_at = np.empty(len(wanted), dtype=np.int64)
    row_at[wanted.positions(part.keys)] = rows
    filled = 0
    for block in part.ledger.stream(wanted):
        flat = block["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        if len(flat) != block.num_rows * vectors.shape[1]:
            raise DataError(
                f"{part.ledger.folder}: vectors of another width than {vectors.shape[1]}; remove it and run "
                "`python -m ray_jobs.index` again"
            )
        vectors[row_at[wanted.positions(block["row_id"].to_pylist())]] = flat.reshape(-1, vectors.shape[1])
        filled += block.num_rows
    if filled < len(rows):
        raise DataError(
            f"{part.ledger.folder}: holds {filled} of {len(rows)} vectors; run `python -m ray_jobs.index` again"
        )
