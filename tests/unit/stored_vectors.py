"""Datasets of made-up texts and vectors, as `prepare` and the encoder would have left them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from embedder.config.tasks import Side
from embedder.data.records import ID_TEXT, PASSAGE, QUERY, VECTOR
from ray_jobs.retrieval.vectors import VectorStore

DATASET = {"task": "qa", "dataset": "nq"}


def passage(name: str, text: str) -> dict[str, Any]:
    """A row of PASSAGE."""
    return dict.fromkeys(PASSAGE.names) | DATASET | {"id": name, "text": text}


def query(name: str, text: str, **columns: Any) -> dict[str, Any]:
    """A row of QUERY without a right passage."""
    return dict.fromkeys(QUERY.names) | DATASET | {"query_id": name, "query": text, "positive_ids": []} | columns


def commit(store: VectorStore, side: Side, rows: Sequence[dict[str, Any]], vectors: np.ndarray) -> None:
    """One block of vectors, under the keys of the rows' texts."""
    table = pa.Table.from_pylist(list(rows), QUERY if side == "query" else PASSAGE)
    ids = table[ID_TEXT[side][0]].to_pylist()
    made = [
        {"dataset": "nq", "row_id": key, "id": name, "is_cut": False, "vector": vector}
        for key, name, vector in zip(store.keys(table, side), ids, vectors.tolist(), strict=True)
    ]
    store.ledger("nq", side).commit(pa.Table.from_pylist(made, VECTOR))
