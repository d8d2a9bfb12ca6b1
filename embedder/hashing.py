"""Hashes: ids that depend on content alone, seeds made from them, and the SHA-256 of a file."""

from __future__ import annotations

import hashlib
import json
from typing import IO, Literal, Protocol


class Readable(Protocol):
    """A file here or an object of a store: `Path` and `ObjectPath` are both."""

    def open(self, mode: Literal["rb"]) -> IO[bytes]:
        """Its bytes, to read."""


def content_id(*parts: object) -> str:
    """32 hexadecimal digits that depend on the parts alone: the same row has the same id in every run."""
    # A half of a pair of surrogates may stand in a model's files.
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def row_seed(seed: int, *parts: object) -> int:
    """A 63-bit seed for one row, the same whatever block or worker the row falls into."""
    return int(content_id(seed, *parts)[:16], 16) >> 1


def file_sha256(path: Readable) -> str:
    """SHA-256 of a file, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()
