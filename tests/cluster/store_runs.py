"""Runs of the session's tasks whose work, sources and models lie in an object store."""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.object_store import ObjectStore, send


def write_run(path: Path, session: Path, work: str) -> Path:
    """The session's tasks qa and tool in another place."""
    run = yaml.safe_load(session.read_text(encoding="utf-8"))
    run["prepare"]["sources"] = [source for source in run["prepare"]["sources"] if source["task"] in {"qa", "tool"}]
    run["paths"] = {"work": work, "cache": str(path.parent / "cache")}
    run["train"] |= {"steps": 120, "save_every": 4, "num_workers": 1}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(run), encoding="utf-8")
    return path


def with_inputs_in(store: ObjectStore, run_file: Path) -> Path:
    """The same run with its sources and models in the store too."""
    run = yaml.safe_load(run_file.read_text(encoding="utf-8"))
    for section in (*run["prepare"]["sources"], run["encoder"], run["llm"]):
        key = "path" if "path" in section else "model"
        folder = Path(section[key])
        send(folder, store.path(f"inputs/{folder.name}"))
        section[key] = store.open_uri(f"inputs/{folder.name}")
    run_file.write_text(yaml.safe_dump(run), encoding="utf-8")
    return run_file
