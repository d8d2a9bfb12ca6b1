"""Vectors of passages and queries, made once per model and shared by mining, indexing and evaluating.

`vectors/ENCODER/DATASET.SIDE/*.parquet` holds committed blocks of records.VECTOR. A block is committed by
the actor that made it, so a restart encodes only what no block holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedder.config.cutting import PromptedText
from embedder.config.paths import Paths
from embedder.config.run import EncoderConfig, RunConfig
from embedder.config.tasks import Side, TaskSpec
from embedder.data.ledger import Ledger
from embedder.data.records import ID_TEXT, PASSAGE, SIDE_WORDS, VECTOR, Split, each_table, parquet_files
from embedder.data.row_ids import RowIds
from embedder.errors import NotFiniteError
from embedder.hashing import content_id
from embedder.models.fingerprint import vectors_name
from embedder.run.cost import tokens_of
from ray_jobs.cluster.blocks import Block, BlockActor, actor_pool, cut_blocks, run_blocks
from ray_jobs.cluster.tables import corpus_files, count_rows, datasets, query_table, vectors_folder

BLOCK_ROWS = 256
"""Texts of a block."""

BLOCK = pa.schema(
    [
        *((name, pa.string()) for name in ("task", "dataset", "side", "instruction")),
        ("keeps_end", pa.bool_()),
        *((name, pa.list_(pa.string())) for name in ("row_ids", "ids", "texts")),
        ("rows", pa.int64()),
        ("tokens", pa.float64()),
    ]
)
"""Texts of one dataset and side that are encoded and committed together, each behind the instruction."""


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
        spec = self.tasks[table["task"][0].as_py()]
        id_column, text_column = ID_TEXT[side]
        pairs = zip(table[id_column].to_pylist(), table[text_column].to_pylist(), strict=True)
        return [_key(row_id, spec.prompted(side, text)) for row_id, text in pairs]

    def read(self, dataset: str, side: Side, keys: list[str]) -> np.ndarray:
        """Vectors (len(keys), D) in the order of the keys, all of which `fill_store` has made."""
        table = self.ledger(dataset, side).read(keys)
        position = {row_id: i for i, row_id in enumerate(table["row_id"].to_pylist())}
        return vector_matrix(table)[[position[key] for key in keys]]

    def cut_lines(self, paths: Paths, splits: Sequence[Split]) -> list[str]:
        """A line for each dataset with passages, or queries of some splits, that were cut; after `fill_store`."""
        lines = []
        for dataset in datasets(paths):
            tables = tables_by_side(paths, dataset, splits)
            parts = [part for side, own in tables.items() if (part := self._count_cut(dataset, side, own))]
            task = next(each_table(corpus_files(paths, dataset)[:1], PASSAGE, ["task"]))["task"][0]
            lines += [f"{dataset} ({task}): too long for the encoder and cut: {', '.join(parts)}"] if parts else []
        return lines

    def _count_cut(self, dataset: str, side: Side, tables: Iterable[pa.Table]) -> str:
        """So many of so many; empty where none was cut, or whoever made the vectors did not tell."""
        wanted = RowIds(self.keys(table, side) for table in tables)
        files = parquet_files(self.ledger(dataset, side).folder)
        is_cut = np.zeros(len(wanted), dtype=bool)
        for table in each_table(files, VECTOR, ["row_id", "is_cut"]):
            positions = wanted.positions(table["row_id"].to_pylist())
            if table["is_cut"].null_count:
                return ""
            # Of rows that are not wanted any more the position is -1; the text of a repeated one is as long as before.
            is_cut[positions[(positions >= 0) & table["is_cut"].to_numpy()]] = True
        return f"{is_cut.sum():,} of {len(wanted):,} {SIDE_WORDS[side]}" if is_cut.any() else ""


def open_store(config: RunConfig, encoder: EncoderConfig) -> VectorStore:
    """The store of one encoder; the run's base encoder may be one that knows no instructions."""
    tasks = config.base_tasks if encoder.model == config.encoder.model else config.tasks
    return VectorStore(vectors_folder(config.paths, vectors_name(encoder)), tasks)


def tables_by_side(paths: Paths, dataset: str, splits: Sequence[Split]) -> dict[Side, Iterable[pa.Table]]:
    """The texts of a dataset with their ids, its queries of some splits and all of its passages, a table at a time."""
    # Titles and metadata of a large corpus would be read for nothing.
    columns = ["task", "dataset", *ID_TEXT["passage"]]
    return {
        "query": (query_table(paths, split, dataset) for split in splits),
        "passage": each_table(corpus_files(paths, dataset), PASSAGE, columns),
    }


class EncodeBlocks(BlockActor):
    """Encodes blocks of texts."""

    def __init__(self, config: EncoderConfig, store: VectorStore, gpus: float) -> None:
        # Here, because torch comes with them: what only reads vectors, such as a search, does without.
        from embedder.models.device import resolve_device
        from embedder.models.onnx import load_inference_encoder

        self.encoder = load_inference_encoder(config, resolve_device(gpus))
        self.store = store

    def ledger_of(self, block: Block) -> Ledger:
        return self.store.ledger(block["dataset"], block["side"])

    def row_ids(self, block: Block) -> list[str]:
        return list(block["row_ids"])

    def compute(self, block: Block) -> pa.Table:
        from embedder.models.encoder import encode_tokens  # not above, as in `__init__`

        prompted = [PromptedText(block["instruction"], text, block["keeps_end"]) for text in block["texts"]]
        rows, is_cut = self.encoder.tokenize_and_tell(prompted)
        return vector_table(block, encode_tokens(self.encoder, rows), is_cut)


def vector_table(block: Block, vectors: np.ndarray, is_cut: Sequence[bool | None]) -> pa.Table:
    """Rows of VECTOR, from the vectors (rows, D) of a block.

    Raises:
        NotFiniteError: a vector is NaN or infinite; it would be found by every query, or by none.
    """
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        kind, first = SIDE_WORDS[block["side"]], block["ids"][bad[0]]
        raise NotFiniteError(
            f"{block['dataset']}: the vectors of {len(bad)} of {block['rows']} {kind} of a block are not finite, first "
            f"that of {first!r}; the model's weights are damaged, or its numbers too large for this text: take another "
            "encoder, or leave the text out"
        )
    column = pa.array(list(vectors), pa.list_(pa.float32()))
    owner = [block["dataset"]] * block["rows"]
    return pa.table([owner, block["row_ids"], block["ids"], pa.array(is_cut, pa.bool_()), column], schema=VECTOR)


def missing_blocks(
    paths: Paths, store: VectorStore, splits: list[Split], block_rows: int = BLOCK_ROWS
) -> Iterator[pa.Table]:
    """Passages and queries whose vectors the store lacks, rows of BLOCK of at most `block_rows` texts.

    A table for each file, the shortest texts first; one file at a time is in memory.
    """
    for dataset in datasets(paths):
        for side, tables in tables_by_side(paths, dataset, splits).items():
            done = store.ledger(dataset, side).row_ids()
            for table in tables:
                keys = store.keys(table, side)
                rows = np.flatnonzero(~done.contains(keys))
                if len(rows):
                    yield pa.Table.from_pylist(list(_blocks(store, side, table, keys, rows, block_rows)), BLOCK)


def fill_store(config: RunConfig, store: VectorStore, encoder: EncoderConfig, splits: list[Split]) -> int:
    """Encode what the store lacks, all passages and the queries of `splits`; returns how many texts that were.

    The actors are those of the run's own encoder.
    """
    paths, actors = config.paths, config.encoder.num_actors
    # Counts the passages there are, because the texts ahead are known only when the last file has been read.
    blocks = sum(count_rows(corpus_files(paths, dataset)) for dataset in datasets(paths)) // BLOCK_ROWS
    parts = (part for table in missing_blocks(paths, store, splits) for part in cut_blocks(table, actors, blocks))
    gpus = config.encoder.gpus_per_actor
    return run_blocks(parts, EncodeBlocks, (encoder, store, gpus), actor_pool(actors, gpus), "encode").rows


def _blocks(
    store: VectorStore, side: Side, table: pa.Table, keys: list[str], rows: np.ndarray, block_rows: int
) -> Iterator[Block]:
    """Some rows of a table of queries or passages as rows of BLOCK."""
    id_column, text_column = ID_TEXT[side]
    names = {"task": table["task"][0].as_py(), "dataset": table["dataset"][0].as_py(), "side": side}
    spec = store.tasks[names["task"]]
    # Blocks of similar length waste no padding.
    lengths = pc.utf8_length(table[text_column]).to_numpy()[rows]
    rows = rows[np.argsort(lengths, kind="stable")]
    for first in range(0, len(rows), block_rows):
        own = rows[first : first + block_rows]
        chosen = table.take(pa.array(own))
        prompted = [spec.prompted(side, text) for text in chosen[text_column].to_pylist()]
        ids = {"row_ids": [keys[row] for row in own], "ids": chosen[id_column].to_pylist()}
        texts = {"texts": [text.text for text in prompted], "rows": len(prompted)}
        tokens = tokens_of(sum(len(text.text) for text in prompted))
        shared = {"instruction": spec.instruction(side), "keeps_end": prompted[0].keeps_end, "tokens": tokens}
        yield {**names, **ids, **texts, **shared}


def _key(row_id: str, prompted: PromptedText) -> str:
    # The id too, because two passages of equal text are two rows of the ledger.
    kept = ["keeps_end"] if prompted.keeps_end else []
    return content_id(row_id, prompted.instruction, prompted.text, *kept)


def vector_matrix(table: pa.Table) -> np.ndarray:
    """The vectors of a table as one float32 matrix (rows, D)."""
    flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.ascontiguousarray(flat.reshape(table.num_rows, -1), dtype=np.float32)
