"""JSON files that appear as a whole."""

from __future__ import annotations

import json

from embedder.credentials import masked_texts
from embedder.errors import NotFiniteError
from embedder.storage.object_store import AnyPath, replacing


def write_json(value: object, path: AnyPath) -> None:
    """Write JSON as one file, which appears as a whole; what looks like a credential is masked in it.

    Raises:
        NotFiniteError: a number of it is NaN or infinite, which JSON cannot hold.
    """
    try:
        # Python would write a bare NaN, which other readers refuse; this one names the file in place of that.
        text = json.dumps(masked_texts(value), indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise NotFiniteError(f"{path}: not written, a number of it is NaN or infinite ({error})") from error
    with replacing(path) as file:
        file.write((text + "\n").encode())
