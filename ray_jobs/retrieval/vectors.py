"""Vectors of passages and queries, made once per model and shared by mining, indexing and evaluating.

`vectors/ENCODER/DATASET.SIDE/*.parquet` holds committed blocks of records.VECTOR. A block is committed by
the actor that made it, so a restart encodes only what no block holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from embedder.config.cutting import PromptedText
from embedder.config.paths import Paths
from embedder.config.run import EncoderConfig, RunConfig
from embedder.config.tasks import Side, TaskSpec
from embedder.data.ledger import Ledger
from embedder.data.records import ID_TEXT, PASSAGE, SIDE_WORDS, VECTOR, Split, count_rows, each_table, parquet_files
from embedder.data.row_ids import RowIds
from embedder.errors import NotFiniteError
from embedder.hashing import content_id
from embedder.models.fingerprint import vectors_name
from embedder.run.cost import tokens_of
from embedder.storage.object_store import AnyPath
from ray_jobs.cluster.blocks import Block, BlockActor, actor_pool, cut_blocks, run_blocks
from ray_jobs.cluster.machines import memory_request
from ray_jobs.cluster.tables import corpus_files, datasets, query_table, vectors_folder

if TYPE_CHECKING:
    from embedder.models.memory import BatchLimit

BLOCK_ROWS = 256
"""Texts of a block on a CPU: some seconds of work, which is what a killed actor loses."""
MERGED_ROWS = 16_384
"""Vectors of a file once all are made: 25 MB at 384 dimensions."""
MERGE_BYTES = 500e6
"""Memory of a task that merges files."""
GPU_BLOCK_ROWS = 4096
"""Texts of a block on a GPU, which is to have long work, and one fetch of many vectors."""
CALLS_AT_ONCE = 4
"""Blocks that an actor with a GPU has in hand: one is tokenised, one is ready, one is computed, one is committed."""
COMPILE_FROM = 200_000
"""Texts of an actor from which compiling its model pays. It takes seconds, and a GPU encodes thousands of texts in one.
"""

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

    folder: AnyPath
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
    """Encodes blocks of texts; on a GPU several at once, so that it need not wait for the tokenizer or for the disk."""

    def __init__(self, config: EncoderConfig, store: VectorStore, gpus: float, compiled: bool = False) -> None:
        # Here, because torch comes with them: what only reads vectors, such as a search or the building of a shard,
        # does without.
        from embedder.models.device import resolve_device
        from embedder.models.onnx import load_inference_encoder

        self.encoder = load_inference_encoder(config, resolve_device(gpus), compiled)
        self.store = store
        self._tokenizing, self._computing = Lock(), Lock()

    def ledger_of(self, block: Block) -> Ledger:
        return self.store.ledger(block["dataset"], block["side"])

    def limits(self) -> Sequence[BatchLimit]:
        return [self.encoder.memory]

    def row_ids(self, block: Block) -> list[str]:
        return list(block["row_ids"])

    def compute(self, block: Block) -> pa.Table:
        from embedder.models.encoder import encode_batches  # not above, as in `__init__`

        prompted = [PromptedText(block["instruction"], text, block["keeps_end"]) for text in block["texts"]]
        # A tokenizer keeps in itself how it cuts, which a second call at the same time would change.
        with self._tokenizing:
            rows, is_cut = self.encoder.tokenize_and_tell(prompted)
            batches = list(self.encoder.batches(rows))
        # Two at a time would take the memory of two and be no faster.
        with self._computing:
            vectors = encode_batches(self.encoder, batches)
        return vector_table(block, vectors, is_cut)


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
    ends = np.arange(block["rows"] + 1, dtype=np.int32) * vectors.shape[1]
    flat = np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1)
    column = pa.ListArray.from_arrays(pa.array(ends), pa.array(flat))
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
    paths, actors, gpus = config.paths, config.encoder.num_actors, config.encoder.gpus_per_actor
    block_rows = GPU_BLOCK_ROWS if gpus else BLOCK_ROWS
    # Counts the passages there are, because the texts ahead are known only when the last file has been read.
    texts = sum(count_rows(corpus_files(paths, dataset)) for dataset in datasets(paths))
    parts = (
        part
        for table in missing_blocks(paths, store, splits, block_rows)
        for part in cut_blocks(table, actors, texts // block_rows)
    )
    pool = actor_pool(actors, gpus, calls=CALLS_AT_ONCE if gpus else 1)
    compiled = bool(gpus) and texts >= COMPILE_FROM * actors
    encoded = run_blocks(parts, EncodeBlocks, (encoder, store, gpus, compiled), pool, "encode").rows
    if encoded:
        sides: list[Side] = ["query", "passage"]
        _merge([store.ledger(dataset, side) for dataset in datasets(paths) for side in sides])
    return encoded


def _merge(ledgers: Sequence[Ledger]) -> None:
    """Join the small blocks of each, in tasks."""
    merge = ray.remote(num_cpus=1, memory=memory_request(MERGE_BYTES, "merging vectors"))(Ledger.merge)
    ray.get([merge.remote(ledger, MERGED_ROWS) for ledger in ledgers])


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
