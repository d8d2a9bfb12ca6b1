"""Encoding on the card: from a corpus in Parquet to committed vectors in Parquet, beside sentence-transformers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

from benchmarks.gpu_bench import Bench, profiled, random_bert
from benchmarks.gpu_inputs import read_passages
from embedder.config.paths import Paths
from embedder.config.run import EncoderConfig
from embedder.config.tasks import BUILTIN_TASKS
from embedder.data.records import PASSAGE, write_table
from embedder.storage.folders import remove_folder
from ray_jobs.retrieval.vectors import (
    CALLS_AT_ONCE,
    GPU_BLOCK_ROWS,
    EncodeBlocks,
    VectorStore,
    missing_blocks,
    vector_matrix,
)

DATASET = "nq"
BATCH_TOKENS = 131_072
"""As docs/tuning.md recommends."""
FILE_ROWS = 20_000
"""Passages of a file, as `prepare` writes them."""
LEAST_COSINE = 0.98
"""Of vectors in bfloat16 to those in float32, by random weights."""
RIVAL_BATCHES = (64, 256)
"""Texts of a batch of sentence-transformers; the fastest is the one to beat."""


def encoding(bench: Bench) -> None:
    """Texts a second of the actor that encodes, in both formats, and of sentence-transformers at its best."""
    texts = read_passages(bench.inputs, bench.size(32_768, 24))
    few, many = written_corpus(bench, "few", texts[: bench.size(2048, 12)]), written_corpus(bench, "many", texts)
    config = random_bert(bench).model_copy(update={"batch_tokens": bench.size(BATCH_TOKENS, 2048)})
    exact, _ = ours(bench, config, few)
    quick = config.model_copy(update={"dtype": "bfloat16"})
    ours(bench, quick, many)
    store, speed = ours(bench, quick, many, compiled=True)
    cosine = least_cosine(exact, store)
    told = f"least cosine to float32 {cosine:.5f}"
    bench.figures.check("bfloat16", is_right=cosine >= LEAST_COSINE, told=told)
    bench.figures.row(f"peak memory {bench.gigabytes():.1f} GB", encode_texts_s=speed)
    rival = max(rival_speed(bench, config, texts[: bench.size(4096, 24)], batch) for batch in RIVAL_BATCHES)
    bench.figures.row(
        f"ours to sentence-transformers, both in bfloat16: {speed / rival:.2f}",
        encode_vs_sentence_transformers=speed / rival,
    )


def written_corpus(bench: Bench, name: str, texts: list[str]) -> Paths:
    """A run of which `prepare` has written the passages."""
    paths = Paths(work=bench.scratch / name, cache=bench.scratch / "cache")
    rows = [{"task": "qa", "dataset": DATASET, "id": f"{i:06d}", "text": text} for i, text in enumerate(texts)]
    for first in range(0, len(rows), FILE_ROWS):
        name = f"{first // FILE_ROWS:05d}.parquet"
        write_table(rows[first : first + FILE_ROWS], PASSAGE, paths.corpus / DATASET / name)
    return paths


def ours(bench: Bench, config: EncoderConfig, paths: Paths, *, compiled: bool = False) -> tuple[VectorStore, float]:
    """What the actor has committed, and how many texts a second it took from Parquet to there."""
    name = f"{config.dtype}{'-compiled' if compiled else ''}"
    store = VectorStore(paths.work / f"vectors-{name}", {"qa": BUILTIN_TASKS["qa"]})
    actor = EncodeBlocks(config, store, float(bench.device.type == "cuda"), compiled)
    encode_all(actor, paths, store)
    remove_folder(store.folder)  # that was to warm up
    took = bench.seconds(partial(encode_all, actor, paths, store))
    speed = len(store.ledger(DATASET, "passage").row_ids()) / took
    line = f"{name}, Parquet to committed Parquet: {speed:,.0f} texts/s"
    bench.figures.row(line, **{f"{name}_texts_s": speed})
    if compiled:
        remove_folder(store.folder)
        profiled(bench, "encoding", partial(encode_all, actor, paths, store))
    return store, speed


def least_cosine(exact: VectorStore, store: VectorStore) -> float:
    """Of the vectors that both stores hold, of the same texts."""
    expected = exact.ledger(DATASET, "passage").read()
    found = store.ledger(DATASET, "passage").read(expected["row_id"].to_pylist())
    return float((vector_matrix(expected) * vector_matrix(found)).sum(1).min())


def encode_all(actor: EncodeBlocks, paths: Paths, store: VectorStore) -> None:
    """Give the actor every block that is missing, so many at once as Ray Data does on a GPU."""
    blocks = (
        table.slice(row, 1)
        for table in missing_blocks(paths, store, [], GPU_BLOCK_ROWS)
        for row in range(table.num_rows)
    )
    with ThreadPoolExecutor(CALLS_AT_ONCE) as calls:
        for told in calls.map(actor, blocks):
            if failure := told["failure"][0].as_py():
                raise SystemExit(failure)


def rival_speed(bench: Bench, config: EncoderConfig, texts: list[str], batch: int) -> float:
    """Texts a second of sentence-transformers with the same network in bfloat16, from texts to vectors in memory."""
    backbone = Transformer(config.model, max_seq_length=config.max_tokens, model_kwargs={"dtype": torch.bfloat16})
    modules = [backbone, Pooling(backbone.get_embedding_dimension(), config.pooling), Normalize()]
    model = SentenceTransformer(modules=modules, device=str(bench.device))
    encode = partial(model.encode, texts, batch_size=batch, show_progress_bar=False)
    encode()
    speed = len(texts) / bench.seconds(encode)
    bench.figures.row(
        f"sentence-transformers in bfloat16, batches of {batch}: {speed:,.0f} texts/s",
        **{f"sentence_transformers_{batch}_texts_s": speed},
    )
    return speed
