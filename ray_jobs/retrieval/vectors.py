"""Vectors of passages and queries, made once per model and shared by mining, indexing and evaluating.

`vectors/ENCODER_FINGERPRINT/DATASET.SIDE/*.parquet` holds committed blocks of records.VECTOR. A block is committed by
the actor that made it, so a restart encodes only what no block holds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from embedder.config.run import EncoderConfig, RunConfig
from embedder.config.tasks import Side, TaskSpec
from embedder.data.ledger import Ledger
from embedder.data.records import PASSAGE, VECTOR, Split, each_table
from embedder.hashing import content_id
from embedder.models.encode import encode_prompted
from embedder.models.encoder import TextEncoder
from embedder.models.fingerprint import encoder_fingerprint
from embedder.models.onnx import load_inference_encoder
from ray_jobs.cluster.metrics import track_progress
from ray_jobs.cluster.session import actor_pool
from ray_jobs.cluster.tables import corpus_files, count_rows, datasets, query_table

logger = logging.getLogger(__name__)

BLOCK_ROWS = 256
"""Texts that are encoded and committed together."""
CHUNK_ROWS = 20_000
"""Most texts of one Ray Data block."""
CHUNKS_AN_ACTOR = 4
"""Least number of them, so that no actor is idle for long while another one has the last."""

ID_TEXT: dict[Side, tuple[str, str]] = {"query": ("query_id", "query"), "passage": ("id", "text")}
"""Columns of the id and the text, by side."""

TO_ENCODE = pa.schema([(name, pa.string()) for name in ("dataset", "side", "row_id", "id", "text")])


@dataclass(frozen=True)
class VectorStore:
    """The vectors of one encoder, and the tasks with the instructions it is given."""

    folder: Path
    tasks: dict[str, TaskSpec]

    def ledger(self, dataset: str, side: Side) -> Ledger:
        """The committed vectors of one dataset and side."""
        return vector_ledger(self.folder, dataset, side)

    def keys(self, table: pa.Table, side: Side) -> list[str]:
        """Identity of each text of a table of queries or passages: a vector stays valid while these stay."""
        if not table.num_rows:
            return []
        instruction = self.tasks[table["task"][0].as_py()].instruction(side)
        id_column, text_column = ID_TEXT[side]
        pairs = zip(table[id_column].to_pylist(), table[text_column].to_pylist(), strict=True)
        return [content_id(row_id, instruction, text) for row_id, text in pairs]

    def read(self, dataset: str, side: Side, keys: list[str]) -> np.ndarray:
        """Vectors (len(keys), D) in the order of the keys, all of which `ensure_vectors` has made."""
        table = self.ledger(dataset, side).read(keys)
        position = {row_id: i for i, row_id in enumerate(table["row_id"].to_pylist())}
        return vector_matrix(table)[[position[key] for key in keys]]


def open_store(config: RunConfig, encoder: EncoderConfig) -> VectorStore:
    """The store of one encoder; the run's base encoder may be one that knows no instructions."""
    tasks = config.base_tasks if encoder.model == config.encoder.model else config.tasks
    return VectorStore(config.paths.vectors / encoder_fingerprint(encoder), tasks)


def vector_ledger(folder: Path, dataset: str, side: Side) -> Ledger:
    """The committed vectors of one dataset and side below an encoder's folder."""
    return Ledger(folder / f"{dataset}.{side}", VECTOR, "row_id")


class EncodeBlocks:
    """Ray Data actor: loads the encoder once, encodes blocks and commits them."""

    def __init__(self, config: EncoderConfig, folder: Path) -> None:
        self.encoder: TextEncoder = load_inference_encoder(config)
        self.folder = folder

    def __call__(self, batch: pa.Table) -> pa.Table:
        began = time.perf_counter()
        vectors = encode_prompted(self.encoder, batch["text"].to_pylist())
        commit_vectors(self.folder, batch, vectors)
        seconds = time.perf_counter() - began
        logger.info("committed vectors", extra={"rows": batch.num_rows, "seconds": round(seconds, 3)})
        return pa.table({"rows": [batch.num_rows]})


def commit_vectors(folder: Path, batch: pa.Table, vectors: np.ndarray) -> None:
    """Commit the vectors (rows, D) of a batch of TO_ENCODE, a block for each dataset and side in it."""
    stores = list(zip(batch["dataset"].to_pylist(), batch["side"].to_pylist(), strict=True))
    for dataset, side in sorted(set(stores)):
        mine = np.array([store == (dataset, side) for store in stores])
        rows = batch.filter(pa.array(mine))
        column = pa.array(list(vectors[mine]), pa.list_(pa.float32()))
        block = pa.table([rows["dataset"], rows["row_id"], rows["id"], column], schema=VECTOR)
        vector_ledger(folder, dataset, side).commit(block)


def ensure_vectors(config: RunConfig, encoder: EncoderConfig, splits: list[Split]) -> tuple[VectorStore, int]:
    """Encode what is missing: all passages, and the queries of `splits`.

    Returns the encoder's vectors and how many texts were encoded now.
    """
    store = open_store(config, encoder)
    return store, fill_store(config, store, encoder, splits)


def missing_texts(config: RunConfig, store: VectorStore, splits: list[Split]) -> Iterator[pa.Table]:
    """Passages and queries whose vectors the store lacks, rows of TO_ENCODE with their instruction.

    A table for each file, the shortest texts first; one file at a time is in memory.
    """
    for dataset in datasets(config):
        asked = (query_table(config, split, dataset) for split in splits)
        passages = each_table(corpus_files(config, dataset), PASSAGE)
        yield from _missing(store, dataset, "query", asked)
        yield from _missing(store, dataset, "passage", passages)


def fill_store(config: RunConfig, store: VectorStore, encoder: EncoderConfig, splits: list[Split]) -> int:
    """Encode what the store lacks, with an actor pool; returns how many texts that were.

    Until they are encoded the texts are in Ray's object store, which moves to the disk what does not fit.
    """
    total, chunks = 0, []
    known = sum(count_rows(corpus_files(config, dataset)) for dataset in datasets(config))
    for table in missing_texts(config, store, splits):
        total += table.num_rows
        chunks += [ray.put(chunk) for chunk in shared_out(table, known, config.encoder.num_actors)]
    if not total:
        return 0
    encoded = ray.data.from_arrow_refs(chunks).map_batches(
        EncodeBlocks,
        fn_constructor_args=(encoder, store.folder),
        batch_size=BLOCK_ROWS,
        batch_format="pyarrow",
        **actor_pool(config.encoder.num_actors, config.encoder.gpus_per_actor),
    )
    with track_progress("encode", total) as counter:
        for batch in encoded.iter_batches(batch_size=None, batch_format="pyarrow"):
            counter.advance(sum(batch["rows"].to_pylist()))
    return total


def shared_out(table: pa.Table, total: int, num_actors: int) -> list[pa.Table]:
    """A table, one of several with so many rows in all, in chunks of whole blocks; every actor gets several of all."""
    blocks = max(1, total // (CHUNKS_AN_ACTOR * num_actors * BLOCK_ROWS))
    rows = min(CHUNK_ROWS, blocks * BLOCK_ROWS)
    return [table.slice(first, rows) for first in range(0, table.num_rows, rows)]


def _missing(store: VectorStore, dataset: str, side: Side, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The texts that no committed block holds, a table of TO_ENCODE for each table that has any."""
    done = store.ledger(dataset, side).row_ids()
    id_column, text_column = ID_TEXT[side]
    for table in tables:
        keys = store.keys(table, side)
        rows = np.flatnonzero(~done.contains(keys))
        if not len(rows):
            continue
        # Blocks of similar length waste no padding.
        lengths = pc.utf8_length(table[text_column]).to_numpy()[rows]
        rows = rows[np.argsort(lengths, kind="stable")]
        instruction = store.tasks[table["task"][0].as_py()].instruction(side)
        chosen = table.take(pa.array(rows))
        texts = [instruction + text for text in chosen[text_column].to_pylist()]
        columns = [[dataset] * len(rows), [side] * len(rows), [keys[row] for row in rows], chosen[id_column], texts]
        yield pa.table(columns, schema=TO_ENCODE)


def vector_matrix(table: pa.Table) -> np.ndarray:
    """The vectors of a table as one float32 matrix (rows, D)."""
    flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.ascontiguousarray(flat.reshape(table.num_rows, -1), dtype=np.float32)
