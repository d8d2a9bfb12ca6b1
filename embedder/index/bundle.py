"""The bundle: model, index shards and payload with a manifest of hashes; the only unit that is deployed.

    manifest.json                  written last: a folder without it is no bundle
    model/                         a Hugging Face folder
    reranker/                      the cross-encoder, as such a folder, if the run trained one
    probe.json                     some texts with their vectors (embedder.index.probe)
    shards/00000/TASK/             the collection of one task in one shard (embedder.index.collection)

A bundle never changes; what is written to its index is kept beside it (embedder.index.living). Nothing in it is
pickled: safetensors, FAISS, Arrow, NumPy, JSON.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from embedder.config.cutting import PromptedText, QueryCut, prompted_text
from embedder.config.paths import EncodingDtype
from embedder.config.run import EncoderConfig
from embedder.config.tasks import Side, TaskSpec
from embedder.errors import BundleError
from embedder.hashing import content_id, row_seed
from embedder.index.collection import CollectionIdentity
from embedder.index.manifest import HashedManifest
from embedder.models.fingerprint import located_fingerprint
from embedder.storage.object_store import AnyPath

MODEL = "model"
RERANKER = "reranker"


class TaskInstructions(BaseModel):
    """How the texts of one task were put to the encoder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    query: str
    passage: str
    query_cut: QueryCut = "end"

    def prompted(self, side: Side, text: str) -> PromptedText:
        """A text as the encoder reads it."""
        if side == "passage":
            return prompted_text(self.passage, text)
        return prompted_text(self.query, text, self.query_cut)


class Manifest(HashedManifest):
    """What a bundle holds and what its files must hash to.

    The digest covers the instructions too, which change every query vector and stand in no other file.
    """

    FILE: ClassVar[str] = "manifest.json"

    format: Literal[6] = 6
    name: str
    """The served model's name."""
    encoder_fingerprint: str
    """Content hash of the model the vectors were made with."""
    pooling: Literal["cls", "mean", "last"]
    max_tokens: int
    dtype: EncodingDtype = "float32"
    """Number format in which the vectors were made; the fingerprint is of the model in any."""
    dimension: int
    metric: Literal["inner_product"] = "inner_product"
    tasks: dict[str, TaskInstructions]
    collections: dict[str, int]
    """Passages by task, over all shards."""
    num_shards: int

    @property
    def model_version(self) -> str:
        """Changes with anything that changes a vector but the instructions."""
        return self.encoder_fingerprint

    @property
    def index_version(self) -> str:
        """Changes with any file and any field."""
        return self.computed_digest()[:16]

    @property
    def has_reranker(self) -> bool:
        return any(name.startswith(f"{RERANKER}/") for name in self.files)

    def vector_space(self, task: str) -> str:
        """What the vectors of a task's documents depend on: vectors of one space may be compared."""
        return content_id(self.encoder_fingerprint, self.tasks[task].passage)[:16]

    def collection_identity(self, task: str, shard: int) -> CollectionIdentity:
        """What the collection of a task in a shard must say that it belongs to."""
        return CollectionIdentity(
            task=task,
            shard=shard,
            num_shards=self.num_shards,
            encoder_fingerprint=self.encoder_fingerprint,
            dimension=self.dimension,
        )


def shard_of(document_id: str, num_shards: int) -> int:
    """The shard of a document, by hash of its id."""
    return row_seed(0, document_id) % num_shards


def shard_folder(bundle: Path, shard: int) -> Path:
    """Where a shard's collections are, in a bundle and in its state."""
    return bundle / "shards" / f"{shard:05d}"


def instructions(tasks: dict[str, TaskSpec]) -> dict[str, TaskInstructions]:
    """The tasks' instructions as the manifest keeps them."""
    return {
        name: TaskInstructions(query=spec.query_instruction, passage=spec.passage_instruction, query_cut=spec.query_cut)
        for name, spec in tasks.items()
    }


def bundle_sizes(bundle: Path) -> dict[str, int]:
    """Bytes of each file of a bundle, by its name in it."""
    return {path.relative_to(bundle).as_posix(): path.stat().st_size for path in bundle.rglob("*") if path.is_file()}


def read_manifest(bundle: AnyPath) -> Manifest:
    """The manifest of a bundle.

    Raises:
        BundleError: there is none, or it is not one this version reads.
    """
    if not (bundle / Manifest.FILE).is_file():
        raise BundleError(f"{bundle}: no bundle (no {Manifest.FILE}); build one with `python -m ray_jobs.index`")
    return Manifest.read(bundle)


def verify(bundle: Path, only: str = "") -> Manifest:
    """Check the files below `only` (all by default) against the manifest, and the model against the vectors.

    Raises:
        BundleError: a file is missing, altered or not listed, or the model is not the one the vectors were made with.
    """
    manifest = read_manifest(bundle)
    manifest.check_files(bundle, only)
    # Only with all files: the fingerprint reads the whole model, which a replica of index shards never loads.
    if not only:
        _check_model(bundle, manifest)
    return manifest


def verify_model(bundle: Path) -> None:
    """Check the files of the model, and that it is the one the vectors were made with.

    Raises:
        BundleError: it is not so.
    """
    _check_model(bundle, verify(bundle, f"{MODEL}/"))


def _check_model(bundle: Path, manifest: Manifest) -> None:
    """A query vector must never meet the index of another model."""
    loaded = located_fingerprint(bundle / MODEL, bundle_encoder(bundle, manifest))
    if loaded != manifest.encoder_fingerprint:
        raise BundleError(
            f"{bundle}: the vectors were made with model {manifest.encoder_fingerprint}, but model/ is {loaded}; "
            "build the index again with `python -m ray_jobs.index`"
        )


def bundle_encoder(bundle: Path, manifest: Manifest, dtype: EncodingDtype | None = None) -> EncoderConfig:
    """How to load the bundle's model, by default in the number format of its vectors."""
    return EncoderConfig(
        model=str(bundle / MODEL),
        pooling=manifest.pooling,
        max_tokens=manifest.max_tokens,
        dtype=dtype or manifest.dtype,
    )
