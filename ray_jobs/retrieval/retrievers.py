"""Rankings by each retriever of an evaluation, over the cluster."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial

import ray

from embedder.config.evaluate import WITH_ENCODER, BuiltinRetriever, EndpointRetriever, FolderRetriever
from embedder.config.run import RunConfig
from embedder.console import console, progress
from embedder.evaluation.endpoint import EmbeddingEndpoint
from embedder.evaluation.evaluations import evaluation_of
from embedder.evaluation.retrieval import own_examples, random_rankings, recency_rankings, without_itself
from embedder.hashing import content_id
from embedder.mining.ranking import Ranking
from embedder.models.fingerprint import vectors_name
from embedder.models.st_folder import FolderFacts, with_prompts
from ray_jobs.cluster.blocks import Block
from ray_jobs.cluster.tables import datasets, passage_texts, queries, vectors_folder
from ray_jobs.retrieval.encoders import retriever_encoder
from ray_jobs.retrieval.rankings import dense_rankings, lexical_rankings
from ray_jobs.retrieval.vectors import VectorStore, fill_store, missing_blocks, vector_table

Rankings = dict[str, dict[str, dict[str, Ranking]]]
"""Retriever -> dataset -> query id -> ranking."""


def all_rankings(config: RunConfig) -> tuple[Rankings, list[str]]:
    """The rankings of every retriever, `evaluate.depth` long; none of `none`, and of recency where there is a history.

    No query finds itself. Also a line for each encoder and dataset that tells how many texts were too long.
    """
    settings, names = config.evaluate, datasets(config.paths)
    own = {name: own_examples(queries(config.paths, settings.split, name)) for name in names}
    # So many more, because a query that is a passage too is taken out below.
    depth = settings.depth + max((len(ids) for of_dataset in own.values() for ids in of_dataset.values()), default=0)
    lexical: dict[str, ray.ObjectRef] = {}
    if any(retriever.name == "bm25" for retriever in settings.retrievers):
        # Started first, so that these tasks run beside the encoders.
        lexical = {
            name: lexical_rankings.remote(config.paths, config.words, settings.split, name, depth) for name in names
        }
    rankings: Rankings = {}
    lines: list[str] = []
    for retriever in settings.retrievers:
        if isinstance(retriever, BuiltinRetriever) and retriever.kind not in WITH_ENCODER:
            rankings[retriever.name] = _without_encoder(config, retriever, lexical, depth)
        else:
            store = _filled_store(config, retriever)
            rankings[retriever.name] = dense_rankings(config, store, settings.split, depth)
            lines += [f"{retriever.name}: {line}" for line in store.cut_lines(config.paths, [settings.split])]
    found = {
        retriever: {
            name: without_itself(of_dataset, settings.depth, own[name]) for name, of_dataset in of_retriever.items()
        }
        for retriever, of_retriever in rankings.items()
    }
    return found, lines


def by_dataset(rankings: Rankings, name: str) -> dict[str, dict[str, Ranking]]:
    """The rankings of one dataset by retriever, of those that rank it."""
    return {retriever: ranked[name] for retriever, ranked in rankings.items() if name in ranked}


def _without_encoder(
    config: RunConfig, retriever: BuiltinRetriever, lexical: dict[str, ray.ObjectRef], depth: int
) -> dict[str, dict[str, Ranking]]:
    settings = config.evaluate
    rankings: dict[str, dict[str, Ranking]] = {}
    for name in datasets(config.paths):
        rows = queries(config.paths, settings.split, name)
        match retriever.kind:
            case "bm25":
                rankings[name] = ray.get(lexical[name])
            case "random":
                rankings[name] = random_rankings(rows, list(passage_texts(config.paths, name)), depth, settings.seed)
            case "recency" if rows:
                if evaluation_of(rows[0]["task"], name, rows, settings.evaluations).has_history:
                    rankings[name] = recency_rankings(rows, settings.depth)
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
