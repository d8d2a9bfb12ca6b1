"""Write the description of the HTTP interface that is committed.

    python -m serve.openapi

Writes docs/openapi.json, which a test compares with what is served.
"""

from __future__ import annotations

import json
from pathlib import Path

from serve.api import describe

FILE = Path(__file__).parents[1] / "docs" / "openapi.json"


def described() -> str:
    """The description as it is committed."""
    return json.dumps(describe().openapi(), indent=1, ensure_ascii=False, sort_keys=True) + "\n"


if __name__ == "__main__":
    FILE.write_text(described(), encoding="utf-8")
