"""Where the real data of the benchmarks is, and its rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def find_data(given: Path | None) -> Path | None:
    """The folder with qa/nq and lrlm/books: the given one, or shared/data in or beside the repository."""
    root = Path(__file__).parents[1]
    places = [given] if given is not None else [root / "shared" / "data", root.parent / "shared" / "data"]
    return next((place for place in places if (place / "qa" / "nq").is_dir()), None)


def find_data_or_say(given: Path | None) -> Path | None:
    """The same; where it is absent a line says so."""
    if (data := find_data(given)) is None:
        print("no data: shared/data/qa/nq is neither in nor beside the repository; name the data's folder by --data")
    return data


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON Lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
