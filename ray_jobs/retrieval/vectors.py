"""Vectors of passages and queries, made once per model and shared by mining, indexing and evaluating.

`vectors/ENCODER_FINGERPRINT/DATASET.SIDE/*.parquet` holds committed blocks of records.VECTOR. A block is committed by
the actor that made it, so a restart encodes only what no block holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedder.config.paths import Paths
from embedder.config.run import EncoderConfig, RunConfig
from embedder.config.tasks import Side, TaskSpec
from embedder.data.ledger import Ledger
from embedder.data.records import PASSAGE, VECTOR, Split, each_table
from embedder.hashing import content_id
from embedder.models.encoder import TextEncoder, encode_prompted
from embedder.models.fingerprint import encoder_fingerprint
from embedder.models.onnx import load_inference_encoder
from ray_jobs.cluster.blocks import Block, BlockActor, actor_pool, cut_blocks, run_blocks
from ray_jobs.cluster.tables import corpus_files, count_rows, datasets, query_table

BLOCK_ROWS = 256
"""Texts of a block."""
ID_TEXT: dict[Side, tuple[str, str]] = {"query": ("query_id", "query"), "passage": ("id", "text")}
"""Columns of the id and the text, by side."""

TO_ENCODE = pa.schema([(name, pa.string()) for name in ("dataset", "side", "row_id", "id", "text")])
BLOCK = pa.schema(
    [
        *((name, pa.string()) for name in ("dataset", "side")),
        *((name, pa.list_(pa.string())) for name in ("row_ids", "ids", "texts")),
        ("rows", pa.int64()),
    ]
)
"""Texts of one dataset and side that are encoded and committed together."""


@dataclass(frozen=True)
class VectorStore:
    """The vectors of one encoder, and the tasks with the instructions it is given."""

    folder: Path
    tasks: dict[str, TaskSpec]

    def ledger(self, dataset: str, side: Side) -> Ledger:
        """The committed vectors of one dataset and side."""
        return Ledger(self.folder / f"{dataset}.{side}", VECTOR, "row_id")

    def keys(self, table: pa.Table, side: Side) -> list[str]:
        """Identity of each text of a table of queries or passages: a vector stays valid while these stay."""
        if not table.num_rows:
            return []
        instruction = self.tasks[table["task"][0].as_py()].instruction(side)
        id_column, text_column = ID_TEXT[side]
        # The id too, because two passages of equal text are two rows of the ledger.
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


class EncodeBlocks(BlockActor):
    """Encodes blocks of texts."""

    result = "vectors"

    def __init__(self, config: EncoderConfig, store: VectorStore) -> None:
        self.encoder: TextEncoder = load_inference_encoder(config)
        self.store = store

    def ledger_of(self, block: Block) -> Ledger:
        return self.store.ledger(block["dataset"], block["side"])

    def row_ids(self, block: Block) -> list[str]:
        return list(block["row_ids"])

    def compute(self, block: Block) -> pa.Table:
        vectors = encode_prompted(self.encoder, block["texts"])
        return vector_table(block["dataset"], block["row_ids"], block["ids"], vectors)


def vector_table(dataset: str, row_ids: Sequence[str], ids: Sequence[str], vectors: np.ndarray) -> pa.Table:
    """Rows of VECTOR of one dataset and side, from vectors (rows, D)."""
    column = pa.array(list(vectors), pa.list_(pa.float32()))
    return pa.table([[dataset] * len(ids), row_ids, ids, column], schema=VECTOR)


def ensure_vectors(config: RunConfig, encoder: EncoderConfig, splits: list[Split]) -> tuple[VectorStore, int]:
    """Encode what is missing: all passages, and the queries of `splits`.

    Returns the encoder's vectors and how many texts were encoded now.
    """
    store = open_store(config, encoder)
    return store, fill_store(config, store, encoder, splits)


def missing_texts(paths: Paths, store: VectorStore, splits: list[Split]) -> Iterator[pa.Table]:
    """Passages and queries whose vectors the store lacks, rows of TO_ENCODE with their instruction.

    A table for each file, the shortest texts first; one file at a time is in memory.
    """
    for dataset in datasets(paths):
        asked = (query_table(paths, split, dataset) for split in splits)
        passages = each_table(corpus_files(paths, dataset), PASSAGE)
        yield from _missing(store, dataset, "query", asked)
        yield from _missing(store, dataset, "passage", passages)


def fill_store(config: RunConfig, store: VectorStore, encoder: EncoderConfig, splits: list[Split]) -> int:
    """Encode what the store lacks, with the actors of the run's own encoder; returns how many texts that were."""
    paths, actors = config.paths, config.encoder.num_actors
    # Counts the passages there are, because the texts ahead are known only when the last file has been read.
    blocks = sum(count_rows(corpus_files(paths, dataset)) for dataset in datasets(paths)) // BLOCK_ROWS
    parts = (
        part for table in missing_texts(paths, store, splits) for part in cut_blocks(text_blocks(table), actors, blocks)
    )
    pool = actor_pool(actors, config.encoder.gpus_per_actor)
    return run_blocks(parts, EncodeBlocks, (encoder, store), pool, "encode").rows


def text_blocks(table: pa.Table) -> pa.Table:
    """Rows of TO_ENCODE of one dataset and side as rows of BLOCK, each of BLOCK_ROWS texts."""
    firsts = range(0, table.num_rows, BLOCK_ROWS)
    offsets = pa.array([*firsts, table.num_rows], pa.int32())
    lists = [pa.ListArray.from_arrays(offsets, table[name].combine_chunks()) for name in ("row_id", "id", "text")]
    names = [table[name][: len(firsts)] for name in ("dataset", "side")]
    rows = [min(BLOCK_ROWS, table.num_rows - first) for first in firsts]
    return pa.table([*names, *lists, rows], schema=BLOCK)


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
