"""JSON files that appear as a whole."""

from __future__ import annotations

import json

from embedder.storage.object_store import AnyPath, replacing


def write_json(value: object, path: AnyPath) -> None:
    """Write JSON as one file, which appears as a whole."""
    with replacing(path) as file:
        file.write((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())
