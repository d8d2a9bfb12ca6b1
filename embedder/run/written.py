"""Which files of a run's queries the job `questions` wrote, and which `prepare` did."""

from __future__ import annotations

import json
from pathlib import Path

from embedder.config.paths import Paths
from embedder.storage.json_file import write_json

WRITTEN = "written.json"


def written_files(paths: Paths) -> list[Path]:
    """The files of queries that `questions` wrote, those that are there."""
    return [path for path in _noted(paths) if path.is_file()]


def prepared_files(paths: Paths) -> list[Path]:
    """The files of queries that `prepare` wrote."""
    folder, written = paths.mounted / "prepared" / "queries", set(_noted(paths))
    return sorted(path for path in folder.glob("*/*.parquet") if path not in written and not path.name.startswith("."))


def note_written(paths: Paths, files: list[Path]) -> None:
    """Note which files `questions` writes, before it does."""
    folder = paths.mounted / "prepared" / "queries"
    write_json({"files": sorted(path.relative_to(folder).as_posix() for path in files)}, paths.questions / WRITTEN)


def forget_written(paths: Paths) -> None:
    """Remove the questions that were written into the queries; `prepare` begins with it, and their drafts stay."""
    for path in written_files(paths):
        path.unlink()
    (paths.questions / WRITTEN).unlink(missing_ok=True)


def _noted(paths: Paths) -> list[Path]:
    note = paths.questions / WRITTEN
    if not note.is_file():
        return []
    folder = paths.mounted / "prepared" / "queries"
    return [folder / name for name in json.loads(note.read_text(encoding="utf-8"))["files"]]
