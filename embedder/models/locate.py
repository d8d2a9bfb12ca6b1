"""Finds model folders, checks them before anything is loaded, and identifies them by content. Needs no torch."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from math import prod
from pathlib import Path

from safetensors import safe_open

from embedder.errors import ModelError
from embedder.hashing import file_sha256
from embedder.storage.fetched import local_copy
from embedder.storage.object_store import ObjectPath

PACKAGE_SCHEME = "package:"
IDENTIFYING_FILES = {
    *("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model"),
}
"""Files that change a model's output beside its weights."""


def locate_model(reference: str) -> Path | str:
    """The folder a model reference means, or the reference itself where it is the name of a hub model.

    `package:NAME/FOLDER` is a folder inside an installed Python package; `s3://x` and `gs://x` are fetched; `./x`,
    `/x`, `~/x` and existing folders are local; anything else of the form `owner/name` is left to the hub.

    Raises:
        DataError: nothing is there in the object store, or it does not answer or refuses.
        ModelError: the package or folder is missing, or holds no weights this project loads.
    """
    if "://" in reference:
        folder = local_copy(ObjectPath.parse(reference))
    elif reference.startswith(PACKAGE_SCHEME):
        folder = _package_folder(reference)
    else:
        folder = Path(reference).expanduser()
        looks_like_hub_name = reference.count("/") == 1 and not reference.startswith((".", "/", "~"))
        if not folder.exists() and looks_like_hub_name:
            return reference
    check_model_folder(folder)
    return folder.absolute()


def _package_folder(reference: str) -> Path:
    name, _, inside = reference.removeprefix(PACKAGE_SCHEME).partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or spec.origin is None:
        raise ModelError(
            f"model {reference!r}: no installed Python package {name!r}; install it or name a model folder"
        )
    root = Path(spec.origin).parent
    folder = (root / inside).resolve()
    if not folder.is_relative_to(root.resolve()):
        raise ModelError(f"model {reference!r}: leads out of the package")
    return folder


def check_model_folder(folder: Path) -> None:
    """Refuse a folder without a model in safetensors or GGUF form; pickled weights are never loaded.

    Raises:
        ModelError: it is missing, or has no weights.
    """
    if not folder.is_dir():
        raise ModelError(f"model folder {folder}: no such folder; correct the path in the run file")
    if gguf_file(folder) is not None:
        return
    if not list(folder.glob("*.safetensors")):
        raise ModelError(f"model folder {folder}: no *.safetensors file; a model needs its weights in safetensors form")
    for name in ("config.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            raise ModelError(f"model folder {folder}: no {name}; copy the whole Hugging Face folder")


def gguf_file(folder: Path) -> Path | None:
    """The folder's GGUF file if that is the only form its weights have."""
    files = sorted(folder.glob("*.gguf"))
    return files[0] if len(files) == 1 and not list(folder.glob("*.safetensors")) else None


def count_parameters(folder: Path | str) -> int:
    """Number of weights, read from the safetensors headers; a GGUF file counts its bytes at 4.5 bits a weight.

    0 for the name of a hub model, whose size is known only after the download.
    """
    if isinstance(folder, str):
        return 0
    packed = gguf_file(folder)
    if packed is not None:
        return int(packed.stat().st_size * 8 / 4.5)
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="numpy") as weights:
            total += sum(prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    return total


def model_fingerprint(model: Path | str, settings: Mapping[str, object] | None = None) -> str:
    """Content hash of a model folder's weights, config and tokenizer, and of the settings that change its output.

    A hub name is hashed as a name, since its content is known only after the download.
    """
    digest = hashlib.sha256(json.dumps(dict(settings or {}), sort_keys=True).encode())
    if isinstance(model, str):
        digest.update(model.encode())
        return digest.hexdigest()[:16]
    for path in sorted(model.iterdir()):
        if path.suffix in {".safetensors", ".gguf"} or path.name in IDENTIFYING_FILES:
            digest.update(path.name.encode())
            digest.update(bytes.fromhex(file_sha256(path)))
    return digest.hexdigest()[:16]
