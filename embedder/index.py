"""One collection of a shard: a FAISS index over unit vectors and the payload of its rows. Needs no torch.

Q queries, P passages, D width.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedder.errors import BundleError, ConfigError

PAYLOAD = pa.schema([("id", pa.string()), ("text", pa.string()), ("title", pa.string()), ("dataset", pa.string())])
"""What a hit shows; row i belongs to vector i of the FAISS index."""


@dataclass(frozen=True)
class Hit:
    """One found passage."""

    id: str
    score: float
    text: str
    title: str | None
    dataset: str

    def order(self) -> tuple[float, str, str]:
        """Sort key: best first, ties by id."""
        return (-self.score, self.id, self.dataset)


class Collection:
    """The passages of one task in one shard."""

    def __init__(self, index: faiss.Index, payload: pa.Table) -> None:
        if index.ntotal != payload.num_rows:
            raise BundleError(
                f"index holds {index.ntotal} vectors, payload {payload.num_rows} rows; build the bundle again"
            )
        self.index, self.payload = index, payload

    @classmethod
    def build(cls, vector_PD: np.ndarray, payload: pa.Table, factory: str) -> Collection:
        """Train (where the factory needs it) and fill an index for the inner product, in the order of id and dataset.

        Raises:
            ConfigError: FAISS does not know the factory string, or has too few vectors to train it.
        """
        if len(vector_PD) != payload.num_rows:
            raise BundleError(f"{len(vector_PD)} vectors, payload {payload.num_rows} rows; they must match row by row")
        order = pc.sort_indices(payload, sort_keys=[("id", "ascending"), ("dataset", "ascending")])
        vector_PD, payload = np.ascontiguousarray(vector_PD[order.to_numpy()]), payload.take(order)
        try:
            index = faiss.index_factory(vector_PD.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
            if not index.is_trained:
                index.train(vector_PD)
            index.add(vector_PD)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[-200:]
            raise ConfigError(f"index.factory {factory!r} with {len(vector_PD)} vectors: {reason}") from error
        return cls(index, payload.cast(PAYLOAD))

    def save(self, stem: Path) -> None:
        """Write `STEM.faiss` and `STEM.arrow`."""
        faiss.write_index(self.index, str(stem.with_suffix(".faiss")))
        with pa.OSFile(str(stem.with_suffix(".arrow")), "wb") as sink, pa.ipc.new_file(sink, PAYLOAD) as writer:
            writer.write_table(self.payload)

    @classmethod
    def load(cls, stem: Path) -> Collection:
        """Read what `save` wrote; the payload stays on disk. The caller has checked the files' hashes."""
        index = faiss.read_index(str(stem.with_suffix(".faiss")))
        payload = pa.ipc.open_file(pa.memory_map(str(stem.with_suffix(".arrow")))).read_all()
        return cls(index, payload)

    def search(self, query_QD: np.ndarray, k: int) -> list[list[Hit]]:
        """The k best passages of each query, best first, ties by id; fewer where there are fewer.

        Raises:
            ValueError: a query vector has the wrong width or holds a value that is not finite.
        """
        if query_QD.ndim != 2 or query_QD.shape[1] != self.index.d or not np.isfinite(query_QD).all():
            raise ValueError(f"query vectors of shape {query_QD.shape} do not fit an index of width {self.index.d}")
        score_QK, row_QK = self.index.search(
            np.ascontiguousarray(query_QD, dtype=np.float32), min(k, self.index.ntotal)
        )
        found = []
        for scores, rows in zip(score_QK.tolist(), row_QK.tolist(), strict=True):
            pairs = [(score, row) for score, row in zip(scores, rows, strict=True) if row >= 0]
            payload = self.payload.take(pa.array([row for _, row in pairs], pa.int64())).to_pylist()
            hits = [Hit(score=score, **fields) for (score, _), fields in zip(pairs, payload, strict=True)]
            found.append(sorted(hits, key=Hit.order))
        return found


def merge_hits(parts: list[list[Hit]], k: int) -> list[Hit]:
    """The k best hits of several shards."""
    return sorted((hit for part in parts for hit in part), key=Hit.order)[:k]


def hit_record(hit: Hit) -> dict[str, object]:
    """A hit as plain data."""
    return asdict(hit)
