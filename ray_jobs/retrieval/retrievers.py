"""Rankings by each retriever of an evaluation, over the cluster."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

import pyarrow as pa
import ray

from embedder.config.evaluate import BuiltinRetriever, EndpointRetriever, FolderRetriever
from embedder.config.run import EncoderConfig, RunConfig
from embedder.config.tasks import Side
from embedder.console import console, progress
from embedder.data.records import PASSAGE, read_tables
from embedder.errors import ConfigError
from embedder.evaluation.endpoint import EmbeddingEndpoint
from embedder.evaluation.evaluations import evaluation_of
from embedder.evaluation.retrieval import random_rankings, recency_rankings, without_itself
from embedder.hashing import content_id
from embedder.mining.ranking import Ranking
from embedder.models.fingerprint import encoder_fingerprint
from embedder.models.locate import locate_model
from embedder.models.st_folder import FolderFacts, folder_encoder, with_prompts
from ray_jobs.cluster.tables import corpus_files, datasets, passage_texts, queries
from ray_jobs.retrieval.rankings import dense_rankings, lexical_rankings
from ray_jobs.retrieval.vectors import VectorStore, commit_vectors, fill_store, missing_texts, open_store

Rankings = dict[str, dict[str, dict[str, Ranking]]]
"""Retriever -> dataset -> query id -> ranking."""


def dataset_task(config: RunConfig, dataset: str) -> str:
    """The task of a prepared dataset."""
    return str(read_tables(corpus_files(config, dataset)[:1], PASSAGE, ["task"])["task"][0].as_py())


def trained_encoder(config: RunConfig) -> EncoderConfig:
    """The encoder that `train` wrote."""
    return config.encoder.model_copy(update={"model": str(config.paths.model)})


def check_retrievers(config: RunConfig) -> list[str]:
    """A line for each retriever; all models are there.

    Raises:
        ModelError, ConfigError: a folder is missing or cannot be loaded, or a key is.
    """
    lines = []
    for retriever in config.evaluate.retrievers:
        where = ""
        if isinstance(retriever, FolderRetriever):
            encoder, _ = folder_encoder(retriever, config.encoder, config.tasks)
            where = f" ({locate_model(encoder.model)})"
        elif isinstance(retriever, EndpointRetriever):
            with EmbeddingEndpoint(retriever):
                pass
            where = f" ({retriever.url}, {retriever.model})"
        elif retriever.kind in {"base", "trained"}:
            if retriever.kind == "trained" and not config.paths.model.is_dir():
                raise ConfigError(
                    f"{config.paths.model}: no trained encoder; run train, or leave it out of evaluate.retrievers"
                )
            encoder = config.encoder if retriever.kind == "base" else trained_encoder(config)
            where = f" ({locate_model(encoder.model)})"
        lines.append(f"retriever {retriever.name}{where}")
    return lines


def all_rankings(config: RunConfig) -> Rankings:
    """The rankings of every retriever, `evaluate.depth` long; none of `none`, and of recency where there is a history.

    No query finds itself.
    """
    settings, names = config.evaluate, datasets(config)
    depth = settings.depth + 1
    lexical: dict[str, ray.ObjectRef] = {}
    if any(retriever.name == "bm25" for retriever in settings.retrievers):
        lexical = {name: lexical_rankings(config, settings.split, name, depth) for name in names}
    found: Rankings = {}
    for retriever in settings.retrievers:
        if isinstance(retriever, BuiltinRetriever) and retriever.kind not in {"base", "trained"}:
            found[retriever.name] = _without_encoder(config, retriever, lexical)
        else:
            store = _filled_store(config, retriever)
            found[retriever.name] = dense_rankings(config, store, settings.split, depth)
    return {
        retriever: {name: without_itself(rankings, settings.depth) for name, rankings in by_dataset.items()}
        for retriever, by_dataset in found.items()
    }


def _without_encoder(
    config: RunConfig, retriever: BuiltinRetriever, lexical: dict[str, ray.ObjectRef]
) -> dict[str, dict[str, Ranking]]:
    settings = config.evaluate
    found: dict[str, dict[str, Ranking]] = {}
    for name in datasets(config):
        rows = queries(config, settings.split, name)
        match retriever.kind:
            case "bm25":
                found[name] = ray.get(lexical[name])
            case "random":
                found[name] = random_rankings(
                    rows, list(passage_texts(config, name)), settings.depth + 1, settings.seed
                )
            case "recency" if rows:
                if evaluation_of(rows[0]["task"], name, rows, settings.evaluations).has_history:
                    found[name] = recency_rankings(rows, settings.depth)
            case _:
                pass
    return found


def _filled_store(config: RunConfig, retriever: BuiltinRetriever | FolderRetriever | EndpointRetriever) -> VectorStore:
    """The vectors of an encoder, made where they are missing."""
    if isinstance(retriever, EndpointRetriever):
        return _endpoint_store(config, retriever)
    if isinstance(retriever, FolderRetriever):
        encoder, tasks = folder_encoder(retriever, config.encoder, config.tasks)
        store = VectorStore(config.paths.vectors / encoder_fingerprint(encoder), tasks)
    else:
        encoder = config.encoder if retriever.kind == "base" else trained_encoder(config)
        store = open_store(config, encoder)
    fill_store(config, store, encoder, [config.evaluate.split])
    return store


def _endpoint_store(config: RunConfig, retriever: EndpointRetriever) -> VectorStore:
    """The driver asks the server, several requests at a time, and commits each answer."""
    asked = [retriever.url, retriever.model, retriever.dimensions, retriever.extra_query, retriever.extra_passage]
    tasks = with_prompts(config.tasks, FolderFacts(""), retriever.query_prompt, retriever.passage_prompt)
    store = VectorStore(config.paths.vectors / content_id(*asked)[:16], tasks)
    batches = [
        chunk.slice(i, retriever.batch_texts)
        for chunk in missing_texts(config, store, [config.evaluate.split])
        for i in range(0, chunk.num_rows, retriever.batch_texts)
    ]
    total = sum(batch.num_rows for batch in batches)
    if not total:
        return store
    task_of = {name: dataset_task(config, name) for name in datasets(config)}
    with (
        EmbeddingEndpoint(retriever) as endpoint,
        ThreadPoolExecutor(retriever.max_requests) as pool,
        progress(f"encode: {retriever.name}", total, console()) as counter,
    ):
        waiting = iter(batches)
        while batch := list(islice(waiting, retriever.max_requests)):
            names = [task_of[one["dataset"][0].as_py()] for one in batch]
            for rows in pool.map(partial(_commit_answer, endpoint, store.folder), names, batch):
                counter.advance(rows)
    return store


def _commit_answer(endpoint: EmbeddingEndpoint, folder: Path, task: str, batch: pa.Table) -> int:
    side: Side = "query" if batch["side"][0].as_py() == "query" else "passage"
    commit_vectors(folder, batch, endpoint.encode(batch["text"].to_pylist(), task, side))
    return int(batch.num_rows)
