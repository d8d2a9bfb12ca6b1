"""Write the description of the HTTP interface that is committed.

    python -m serve.openapi

Writes docs/openapi.json, which a test compares with what is served.
"""

from __future__ import annotations

import json
from pathlib import Path

from fastapi import FastAPI

from embedder import __version__
from serve.api import TITLE, describe

FILE = Path(__file__).parents[1] / "docs" / "openapi.json"


def described() -> str:
    """The description as it is committed."""
    api = describe(FastAPI(title=TITLE, version=__version__))
    return json.dumps(api.openapi(), indent=1, ensure_ascii=False, sort_keys=True) + "\n"


if __name__ == "__main__":
    FILE.write_text(described(), encoding="utf-8")
