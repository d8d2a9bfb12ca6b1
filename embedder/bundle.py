"""The bundle: model, index shards and payload with a manifest of hashes; the only unit that is deployed.

    bundle/manifest.json                  this file last: a folder without it is no bundle
    bundle/model/                         a Hugging Face folder
    bundle/shards/00000/TASK.faiss        vectors of the task's passages in this shard
    bundle/shards/00000/TASK.arrow        their ids, texts, titles and datasets

Nothing in it is pickled: safetensors, FAISS, Arrow, JSON.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, ValidationError

from embedder.config import EncoderConfig
from embedder.errors import BundleError
from embedder.index import Collection
from embedder.locate import file_sha256, model_fingerprint
from embedder.records import content_id
from embedder.tasks import Side, TaskSpec

MANIFEST = "manifest.json"
MODEL = "model"


class TaskInstructions(BaseModel):
    """The instructions the vectors of one task were made with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    query: str
    key: str

    def instruction(self, side: Side) -> str:
        """The prefix of one side."""
        return self.query if side == "query" else self.key


class Manifest(BaseModel):
    """What a bundle holds and what its files must hash to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    name: str
    """The served model's name."""
    encoder_fingerprint: str
    """Content hash of the model the vectors were made with."""
    pooling: Literal["cls", "mean", "last"]
    max_tokens: int
    dimension: int
    metric: Literal["inner_product"] = "inner_product"
    tasks: dict[str, TaskInstructions]
    collections: dict[str, int]
    """Passages by task, over all shards."""
    num_shards: int
    files: dict[str, str]
    """SHA-256 of every file, by path within the bundle."""

    digest: str = ""
    """Hash of all the other fields: the instructions change every query vector and stand in no other file."""

    def computed_digest(self) -> str:
        """What `digest` must be."""
        return content_id(self.model_dump(mode="json", exclude={"digest"}))

    @property
    def index_version(self) -> str:
        """Changes with any file and any field."""
        return self.computed_digest()[:16]


def shard_folder(bundle: Path, shard: int) -> Path:
    """Where a shard's collections are."""
    return bundle / "shards" / f"{shard:05d}"


def instructions(tasks: dict[str, TaskSpec]) -> dict[str, TaskInstructions]:
    """The tasks' instructions as the manifest keeps them."""
    return {
        name: TaskInstructions(query=spec.query_instruction, key=spec.key_instruction) for name, spec in tasks.items()
    }


def hash_files(bundle: Path) -> dict[str, str]:
    """SHA-256 of every file below a bundle but its manifest."""
    files = sorted(path for path in bundle.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(bundle).as_posix(): file_sha256(path) for path in files}


def publish(staged: Path, manifest: Manifest, bundle: Path) -> None:
    """Write the manifest into a staged folder and put the folder in the bundle's place."""
    sealed = manifest.model_copy(update={"digest": manifest.computed_digest()})
    (staged / MANIFEST).write_text(sealed.model_dump_json(indent=2) + "\n", encoding="utf-8")
    replaced = bundle.with_name(f".{bundle.name}.{uuid4().hex}")
    bundle.parent.mkdir(parents=True, exist_ok=True)
    if bundle.exists():
        os.replace(bundle, replaced)
    os.replace(staged, bundle)
    shutil.rmtree(replaced, ignore_errors=True)


def read_manifest(bundle: Path) -> Manifest:
    """The manifest of a bundle.

    Raises:
        BundleError: there is none, or it is not one this version reads.
    """
    path = bundle / MANIFEST
    if not path.is_file():
        raise BundleError(f"{bundle}: no bundle (no {MANIFEST}); build one with `python -m ray_jobs.index`")
    try:
        manifest = Manifest.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (ValidationError, json.JSONDecodeError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise BundleError(f"{path}: not a manifest of format 1 ({reason}); build the bundle again") from error
    if manifest.digest != manifest.computed_digest():
        raise BundleError(f"{path}: its digest does not fit its content; restore the bundle or build it again")
    return manifest


def verify(bundle: Path, only: str = "") -> Manifest:
    """Check the files below `only` (all by default) against the manifest, and the model against the vectors.

    Raises:
        BundleError: a file is missing, altered or not listed, or the model is not the one the vectors were made with.
    """
    manifest = read_manifest(bundle)
    listed = {name for name in manifest.files if name.startswith(only)}
    found = {
        path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file() and path.name != MANIFEST
    }
    for name in sorted(listed - found):
        raise BundleError(f"{bundle / name}: missing; restore the bundle or build it again")
    for name in sorted(found - manifest.files.keys()):
        raise BundleError(f"{bundle / name}: not in the manifest; remove it or build the bundle again")
    for name in sorted(listed):
        if file_sha256(bundle / name) != manifest.files[name]:
            raise BundleError(
                f"{bundle / name}: SHA-256 differs from the manifest; restore the bundle or build it again"
            )
    if not only:
        _check_model(bundle, manifest)
    return manifest


def _check_model(bundle: Path, manifest: Manifest) -> None:
    """A query vector must never meet the index of another model."""
    loaded = model_fingerprint(bundle / MODEL, pooling=manifest.pooling, max_tokens=manifest.max_tokens)
    if loaded != manifest.encoder_fingerprint:
        raise BundleError(
            f"{bundle}: the vectors were made with model {manifest.encoder_fingerprint}, but model/ is {loaded}; "
            "build the index again with `python -m ray_jobs.index`"
        )


def bundle_encoder(bundle: Path, manifest: Manifest) -> EncoderConfig:
    """How to load the bundle's model."""
    return EncoderConfig(model=str(bundle / MODEL), pooling=manifest.pooling, max_tokens=manifest.max_tokens)


def load_shard(bundle: Path, shard: int) -> dict[str, Collection]:
    """The collections of one shard by task; the caller has verified the bundle."""
    folder = shard_folder(bundle, shard)
    return {path.stem: Collection.load(path.with_suffix("")) for path in sorted(folder.glob("*.faiss"))}
