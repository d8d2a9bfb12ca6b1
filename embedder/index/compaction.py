"""Collection and memtable made one: the new collection is built beside the old one, which is searched meanwhile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from embedder.index.collection import CollectionInfo, History, sort_by_name, write_collection
from embedder.index.faiss_index import ROWS_AT_ONCE, empty_vectors
from embedder.index.memtable import MemtableView


def write_compacted(view: MemtableView, history: History, folder: Path) -> CollectionInfo:
    """Write all live documents of a view as a collection of the same identity and settings.

    The writes of `history` are all there were so far.

    Raises:
        ConfigError: FAISS cannot build the index.
    """
    base = view.base
    stored = np.arange(base.info.rows) if view.stored is None else np.flatnonzero(view.stored)
    written = np.flatnonzero(view.live)
    payload = pa.concat_tables([base.payload.take(pa.array(stored)), view.take(pa.array(written))])
    order = sort_by_name(payload)
    flat, vectors = empty_vectors(len(order), base.info.identity.dimension)
    # Block by block: taking all rows of the mapped file at once would hold the collection in memory twice.
    for first in range(0, len(order), ROWS_AT_ONCE):
        chosen = order[first : first + ROWS_AT_ONCE]
        is_stored = chosen < len(stored)
        block = vectors[first : first + ROWS_AT_ONCE]
        block[is_stored] = base.vectors[stored[chosen[is_stored]]]
        block[~is_stored] = view.vectors[written[chosen[~is_stored] - len(stored)]]
    ordered = payload.take(pa.array(order))
    return write_collection(folder, ordered, flat, base.info.identity, base.info.settings, history)
