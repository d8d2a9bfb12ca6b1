"""Which files of a run's queries the job `questions` wrote, and which `prepare` did."""

from __future__ import annotations

import json

from embedder.config.paths import Paths
from embedder.storage.json_file import write_json
from embedder.storage.object_store import AnyPath

WRITTEN = "written.json"


def written_files(paths: Paths) -> list[AnyPath]:
    """The files of queries that `questions` wrote, those that are there."""
    return [path for path in _noted(paths) if path.is_file()]


def prepared_files(paths: Paths) -> list[AnyPath]:
    """The files of queries that `prepare` wrote."""
    written = set(_noted(paths))
    files = (path for path in paths.queries.glob("*/*.parquet") if path not in written)
    return sorted((path for path in files if not path.name.startswith(".")), key=str)


def note_written(paths: Paths, files: list[AnyPath]) -> None:
    """Note which files `questions` writes, before it does."""
    names = sorted(f"{path.parent.name}/{path.name}" for path in files)
    write_json({"files": names}, paths.questions / WRITTEN)


def forget_written(paths: Paths) -> None:
    """Remove the questions that were written into the queries; `prepare` begins with it, and their drafts stay."""
    for path in written_files(paths):
        path.unlink()
    (paths.questions / WRITTEN).unlink(missing_ok=True)


def _noted(paths: Paths) -> list[AnyPath]:
    note = paths.questions / WRITTEN
    if not note.is_file():
        return []
    return [paths.queries / name for name in json.loads(note.read_text(encoding="utf-8"))["files"]]
