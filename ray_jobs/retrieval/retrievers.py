"""Rankings by each retriever of an evaluation, over the cluster."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any

from embedder.config.evaluate import BuiltinRetriever, EndpointRetriever, FolderRetriever
from embedder.config.run import RunConfig
from embedder.console import console, progress
from embedder.evaluation.endpoint import EmbeddingEndpoint
from embedder.evaluation.evaluations import evaluation_of
from embedder.evaluation.measurements import DatasetValues
from embedder.evaluation.retrieval import own_examples, random_rankings, recency_rankings, without_itself
from embedder.hashing import content_id
from embedder.mining.ranking import Ranking
from embedder.models.fingerprint import vectors_name
from embedder.models.st_folder import FolderFacts, with_prompts
from ray_jobs.cluster.blocks import Block
from ray_jobs.cluster.metrics import track_progress
from ray_jobs.cluster.tables import datasets, passage_texts, queries, vectors_folder
from ray_jobs.retrieval.encoders import retriever_encoder
from ray_jobs.retrieval.measuring import measure_files
from ray_jobs.retrieval.ranking_files import RankingFiles, Search, remove_stale
from ray_jobs.retrieval.vector_rankings import rank_by_vectors
from ray_jobs.retrieval.vectors import VectorStore, fill_store, missing_blocks, vector_table
from ray_jobs.retrieval.word_rankings import rank_by_words

Rankings = dict[str, dict[str, RankingFiles | dict[str, Ranking]]]
"""Retriever -> dataset -> the rankings of its queries: in files, or in memory where nothing was searched."""


def all_rankings(config: RunConfig) -> tuple[Rankings, list[str]]:
    """The rankings of every retriever; none of `none`, and of recency where there is a history.

    Those in files are `evaluate.depth` long and so much longer as a query may find itself. Also a line for each encoder
    and dataset that tells how many texts were too long.
    """
    settings, names = config.evaluate, datasets(config.paths)
    rows = {name: queries(config.paths, settings.split, name) for name in names}
    own = (len(ids) for of_dataset in rows.values() for ids in own_examples(of_dataset).values())
    depth = settings.depth + max(own, default=0)
    searches = [Search(settings.split, name, depth) for name in names]
    rankings: Rankings = {}
    lines: list[str] = []
    files: list[RankingFiles] = []
    for retriever in settings.retrievers:
        if isinstance(retriever, BuiltinRetriever) and retriever.kind in {"none", "random", "recency"}:
            rankings[retriever.name] = _without_search(config, retriever, rows, depth)
            continue
        with track_progress(f"rank: {retriever.name}", sum(map(len, rows.values()))) as progress:
            if isinstance(retriever, BuiltinRetriever) and retriever.kind == "bm25":
                found = [rank_by_words(config.paths, config.words, search, progress) for search in searches]
            else:
                store = _filled_store(config, retriever)
                found = [rank_by_vectors(config, store, search, progress) for search in searches]
                lines += [f"{retriever.name}: {line}" for line in store.cut_lines(config.paths, [settings.split])]
        files += found
        rankings[retriever.name] = dict(zip(names, found, strict=True))
    remove_stale(config.paths, settings.split, files)
    return rankings, lines


def enter_rankings(config: RunConfig, values: DatasetValues, rankings: Rankings) -> None:
    """Measure the rankings of one dataset by all retrievers that rank it."""
    own = own_examples(values.rows)
    for retriever, by_dataset in rankings.items():
        found = by_dataset.get(values.name)
        if isinstance(found, RankingFiles):
            measure_files(values, retriever, found, config.evaluate)
        elif found is not None:
            ranked = without_itself(found, config.evaluate.depth, own)
            values.enter_rankings({retriever: ranked}, config.evaluate.cutoffs)


def _without_search(
    config: RunConfig, retriever: BuiltinRetriever, rows: dict[str, list[dict[str, Any]]], depth: int
) -> dict[str, RankingFiles | dict[str, Ranking]]:
    settings = config.evaluate
    rankings: dict[str, RankingFiles | dict[str, Ranking]] = {}
    for name, asked in rows.items():
        match retriever.kind:
            case "random":
                rankings[name] = random_rankings(asked, list(passage_texts(config.paths, name)), depth, settings.seed)
            case "recency" if asked:
                if evaluation_of(asked[0]["task"], name, asked, settings.evaluations).has_history:
                    rankings[name] = recency_rankings(asked, settings.depth)
            case _:
                pass
    return rankings


def _filled_store(config: RunConfig, retriever: BuiltinRetriever | FolderRetriever | EndpointRetriever) -> VectorStore:
    """The vectors of an encoder, made where they are missing."""
    if isinstance(retriever, EndpointRetriever):
        return _endpoint_store(config, retriever)
    encoder, tasks = retriever_encoder(config, retriever)
    store = VectorStore(vectors_folder(config.paths, vectors_name(encoder)), tasks)
    fill_store(config, store, encoder, [config.evaluate.split])
    return store


def _endpoint_store(config: RunConfig, retriever: EndpointRetriever) -> VectorStore:
    """The driver asks the server, several requests at a time, and commits each answer."""
    asked = [retriever.url, retriever.model, retriever.dimensions, retriever.extra_query, retriever.extra_passage]
    tasks = with_prompts(config.tasks, retriever, FolderFacts())
    store = VectorStore(vectors_folder(config.paths, content_id(*asked)), tasks)
    tables = missing_blocks(config.paths, store, [config.evaluate.split], retriever.batch_texts)
    blocks = [block for table in tables for block in table.to_pylist()]
    if not blocks:
        return store
    with (
        closing(EmbeddingEndpoint(retriever)) as endpoint,
        ThreadPoolExecutor(retriever.max_requests) as pool,
        progress(f"encode: {retriever.name}", sum(block["rows"] for block in blocks), console()) as counter,
    ):
        # `map` cancels the requests that wait once an answer is an error; what was answered before is committed.
        for rows in pool.map(partial(_commit_answer, endpoint, store), blocks):
            counter.advance(rows)
    return store


def _commit_answer(endpoint: EmbeddingEndpoint, store: VectorStore, block: Block) -> int:
    """Let the server encode a block, and commit the vectors; returns how many."""
    texts = [block["instruction"] + text for text in block["texts"]]
    vectors = endpoint.encode(texts, block["task"], block["side"])
    # A server does not tell whether it read the whole of a text.
    unknown = [None] * len(texts)
    store.ledger(block["dataset"], block["side"]).commit(vector_table(block, vectors, unknown))
    return len(vectors)
