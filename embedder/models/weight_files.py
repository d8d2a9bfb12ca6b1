"""The safetensors files of a model folder, judged by their headers: no weight is read. Needs no torch.

Format: 8 bytes with the length of a JSON header, the header (name -> dtype, shape, byte range), then the bytes.
https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from embedder.errors import ModelError

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
"""Names the shards of weights that are in several files."""
POINTER = b"version https://git-lfs.github.com/spec/"
"""What Git leaves in place of a large file that was not fetched."""
MOST_HEADER_BYTES = 100_000_000
"""The largest header that the format allows."""
TYPE_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"), 1),
}
"""Bytes of one number of each type; types that are not here share bytes, or are new."""


class StoredTensor(NamedTuple):
    """A tensor as a header describes it; the byte range counts from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def refuse_pointer(path: Path) -> None:
    """Refuse a Git LFS pointer in place of a file.

    Raises:
        ModelError: it is one.
    """
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise ModelError(f"{path}: is a Git LFS pointer, not the file itself; run `git lfs pull` in its repository")


def read_json(path: Path) -> Any:  # noqa: ANN401
    """The JSON of a small file.

    Raises:
        ModelError: it is a Git LFS pointer, or no JSON.
    """
    refuse_pointer(path)
    return _parsed(path, path.read_bytes())


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a small file.

    Raises:
        ModelError: it is a Git LFS pointer, or holds no JSON object.
    """
    refuse_pointer(path)
    return _object(path, path.read_bytes())


def _parsed(path: Path, content: bytes, unique: bool = False) -> Any:  # noqa: ANN401
    try:
        return json.loads(content, object_pairs_hook=_without_repeats if unique else None)
    # UnicodeDecodeError and JSONDecodeError are kinds of ValueError; deep nesting exhausts the stack.
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not JSON ({error}); copy the file again") from error


def _object(path: Path, content: bytes, unique: bool = False) -> dict[str, Any]:
    value = _parsed(path, content, unique)
    if not isinstance(value, dict):
        raise ModelError(f"{path}: holds a JSON {type(value).__name__}, not an object; copy the file again")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Of two equal names readers take one or the other, so two programs could read two models from one file.
    if len(made := dict(pairs)) < len(pairs):
        raise ValueError("a name stands twice in one object")
    return made


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers reads the weights from: one, or the shards that an index names.

    Raises:
        ModelError: there are none, or a shard is missing or lies outside of the folder.
    """
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    index = folder / INDEX
    if not index.is_file():
        others = sorted(path.name for path in folder.glob("*.safetensors"))
        have = f"; {others[0]} is none of the names that are read ({WHOLE}, {INDEX})" if others else ""
        raise ModelError(
            f"model folder {folder}: no *.safetensors file with the weights{have}; a model needs its weights in "
            "safetensors form, so save it with save_pretrained"
        )
    shards = read_object(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise ModelError(f"{index}: no weight_map from tensors to files; copy the file again")
    names = sorted(set(shards.values()))
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise ModelError(f"{index}: names {outside[0]!r}, which is no file of this folder; copy the whole folder")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"model folder {folder}: {len(missing)} of {len(names)} shards of the weights are missing, such as "
            f"{missing[0]}; copy the whole Hugging Face folder"
        )
    return [folder / name for name in names]


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name.

    Raises:
        ModelError: it is a Git LFS pointer, cut off, or no safetensors file.
    """
    refuse_pointer(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        # Before the header is read, because garbage here would ask for any amount of memory.
        if length > min(size - 8, MOST_HEADER_BYTES):
            raise ModelError(
                f"{path}: is cut off or no safetensors file: its header would take {length:,} of {size:,} bytes; "
                "copy it again"
            )
        header = _object(path, file.read(length), unique=True)
    header.pop("__metadata__", None)
    tensors = {name: _tensor(path, name, entry) for name, entry in header.items()}
    needed = 8 + length
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        # The format allows neither gaps nor common bytes, and no reader of weights takes them.
        if 8 + length + tensor.begin != needed:
            raise ModelError(f"{path}: the bytes of {name!r} do not follow those of the tensor before; copy it again")
        needed = 8 + length + tensor.end
    if needed != size:
        problem = "is cut off" if needed > size else "holds more than its tensors"
        raise ModelError(f"{path}: {problem}: {size:,} bytes where its header describes {needed:,}; copy it again")
    return tensors


def _tensor(path: Path, name: str, entry: object) -> StoredTensor:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end]} if all(
            type(number) is int and number >= 0 for number in (*shape, begin, end)
        ):
            # Before anything of this shape is made, because garbage here would ask for any amount of memory.
            if begin <= end and prod(shape) * TYPE_BYTES.get(dtype, 0) in (0, end - begin):
                return StoredTensor(dtype, tuple(shape), begin, end)
    raise ModelError(f"{path}: tensor {name!r} has no valid entry in its header; copy the file again")


def stored_shapes(folder: Path) -> Mapping[str, StoredTensor]:
    """Every tensor of a folder's weights by name."""
    return {name: tensor for path in weight_files(folder) for name, tensor in read_header(path).items()}


def count_weights(folder: Path) -> int:
    """Number of weights of a folder in safetensors form."""
    return sum(prod(tensor.shape) for tensor in stored_shapes(folder).values())
