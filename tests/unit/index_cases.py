"""Small collections, versions and documents for the tests of the index."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from safetensors.numpy import save_file

from embedder.config.index import BuildSettings, SearchParameters
from embedder.data.metadata import metadata_json
from embedder.index.bundle import Manifest, TaskInstructions, shard_folder, shard_of
from embedder.index.catalog import Catalog
from embedder.index.collection import Collection, CollectionIdentity, CollectionInfo, sort_by_name, write_collection
from embedder.index.documents import PAYLOAD, Document
from embedder.index.faiss_index import empty_vectors
from embedder.index.living import MutableCollection
from embedder.index.manifest import hash_files
from embedder.index.open_shards import ShardFolders
from embedder.index.opened import OpenIndex
from embedder.index.task_log import TaskLog
from embedder.models.fingerprint import model_fingerprint
from embedder.storage.object_store import AnyPath

WIDTH = 8
IDENTITY = CollectionIdentity(task="qa", shard=0, num_shards=1, encoder_fingerprint="model", dimension=WIDTH)
NO_CHOICE = SearchParameters()


def unit(random: np.random.Generator, rows: int, width: int = WIDTH) -> np.ndarray:
    """Random unit vectors."""
    vectors = random.standard_normal((rows, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def payload_of(documents: list[Document]) -> pa.Table:
    """Documents as the payload of a collection."""
    rows = [
        {
            "id": one.id,
            "dataset": one.dataset,
            "text": one.whole_text,
            "title": one.title,
            "metadata": metadata_json(one.metadata),
        }
        for one in documents
    ]
    return pa.Table.from_pylist(rows, schema=PAYLOAD)


def documents_of(ids, dataset: str = "d", **metadata) -> list[Document]:
    """A document an id."""
    return [Document(id=name, text=f"text of {name}", dataset=dataset, metadata=metadata) for name in ids]


def write(
    folder: Path, documents: list[Document], vectors: np.ndarray, identity: CollectionIdentity = IDENTITY, **settings
) -> CollectionInfo:
    """Write a collection of documents in any order."""
    folder.mkdir(parents=True)
    payload = payload_of(documents)
    order = sort_by_name(payload)
    flat, view = empty_vectors(len(documents), vectors.shape[1])
    view[:] = vectors[order]
    identity = identity.model_copy(update={"dimension": vectors.shape[1]})
    return write_collection(folder, payload.take(pa.array(order)), flat, identity, BuildSettings(**settings))


def collection(folder: Path, documents: list[Document], vectors: np.ndarray, **settings) -> Collection:
    """The same, opened."""
    info = write(folder, documents, vectors, **settings)
    return Collection.load(folder, info.identity, check=True)


def mutable(
    folder: Path,
    documents: list[Document],
    vectors: np.ndarray,
    log: AnyPath | None = None,
    space: str = "s",
    **settings,
) -> MutableCollection:
    """The same, to be written to; opens what was written before, to this collection or to others of the same log."""
    if not (folder / "bundled").exists():
        write(folder / "bundled", documents, vectors, **settings)
    identity = IDENTITY.model_copy(update={"dimension": vectors.shape[1]})
    folders = {0: ShardFolders(folder / "bundled", folder / "state" / "generations")}
    return MutableCollection(TaskLog((log or folder / "state") / "writes", "qa"), folders, identity, space)


def write_version(
    folder: Path, documents: list[Document], vectors: np.ndarray, shards: int = 2, **settings
) -> Manifest:
    """A bundle of one task, whose model is a stand-in that no test loads."""
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text("{}", encoding="utf-8")
    save_file({"weight": np.zeros(2, dtype=np.float32)}, folder / "model" / "model.safetensors")
    fingerprint = model_fingerprint(folder / "model", {"pooling": "mean", "max_tokens": 32})
    for shard in range(shards):
        mine = [i for i, one in enumerate(documents) if shard_of(one.id, shards) == shard]
        belongs = {"shard": shard, "num_shards": shards, "encoder_fingerprint": fingerprint}
        identity = IDENTITY.model_copy(update=belongs)
        write(shard_folder(folder, shard) / "qa", [documents[i] for i in mine], vectors[mine], identity, **settings)
    manifest = Manifest(
        name="test",
        encoder_fingerprint=fingerprint,
        pooling="mean",
        max_tokens=32,
        dimension=vectors.shape[1],
        tasks={"qa": TaskInstructions(query="", passage="")},
        collections={"qa": len(documents)},
        num_shards=shards,
        files=hash_files(folder),
    )
    manifest.write(folder)
    return manifest


def ids(found) -> list[list[str]]:
    """Ids of the hits, by query."""
    return [[hit.id for hit in hits] for hits in found.hits()]


def add_version(catalog: Catalog, name: str, documents: list[Document], vectors: np.ndarray) -> None:
    """Publish a version of one task under a name."""
    with catalog.adding(name) as staged:
        write_version(staged, documents, vectors)


def live_catalog(folder: AnyPath, documents: list[Document], vectors: np.ndarray) -> Catalog:
    """A catalog with one version, `one`, that the alias `live` names."""
    catalog = Catalog(folder)
    add_version(catalog, "one", documents, vectors)
    catalog.point("live", "one")
    return catalog


def opened(catalog: Catalog, name: str = "live") -> OpenIndex:
    """The version of an alias, with all shards."""
    version = catalog.resolve(name)
    return OpenIndex.open(catalog.here(version), catalog.state(version, "live"))


def count(index: OpenIndex) -> int:
    """How many documents it has."""
    return index.stats()["qa"].documents
