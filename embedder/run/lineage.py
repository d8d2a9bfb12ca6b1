"""Where a trained encoder comes from: its labels, their LLM, the data, and the encoder it started from.

`lineage.json` lies in the model folder and travels with it, into a bundle too, whose manifest holds its hash.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from embedder import __version__
from embedder.config.run import RunConfig
from embedder.data.hub_dataset import source_copy
from embedder.models.locate import locate_model
from embedder.run.stages import Contents, effective
from embedder.storage.durable import discard_folder
from embedder.storage.fetched import whole_copy
from embedder.storage.folders import folder_made, put_json
from embedder.storage.json_file import write_json
from embedder.storage.object_store import AnyPath, reference_of

LINEAGE = "lineage.json"
PROVENANCE = "provenance.json"
"""Beside the labels: what they depend on."""


def install_model(
    exported: AnyPath,
    model: AnyPath,
    lineage: dict[str, Any],
    complete: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Put an exported model folder in place of `model`, completed, with a note of where it comes from."""
    with folder_made(model) as staged:
        shutil.copytree(whole_copy(exported), staged, dirs_exist_ok=True)
        complete(staged)
        write_json(lineage, staged / LINEAGE)
        if isinstance(model, Path):
            # A folder cannot be renamed over another one: for a moment there is no model, never half of one.
            if model.is_symlink():
                model.unlink()
            elif model.exists():
                discard_folder(model)


def write_lineage(config: RunConfig, contents: Contents) -> None:
    """Complete the lineage of the encoder that `train` has just written to `paths.model`; what it noted stays."""
    known = read_lineage(config.paths.model) or {}
    put_json({**known, **describe(config, contents)}, config.paths.model, LINEAGE)


def read_lineage(model: AnyPath) -> dict[str, Any] | None:
    """The lineage of a model folder; None where there is none."""
    path = model / LINEAGE
    if not path.is_file():
        return None
    lineage: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return lineage


def describe(config: RunConfig, contents: Contents) -> dict[str, Any]:
    """Everything the encoder of this round depends on, by content hash."""
    settings = config.model_dump(mode="json")
    base = locate_model(config.encoder.model)
    provenance = config.paths.labelled / PROVENANCE
    return {
        "version": __version__,
        "round": config.paths.round,
        "model": contents.of_model(reference_of(config.paths.model)),
        "settings": {
            name: effective(settings[name])
            for name in ("encoder", "questions", "words", "mine", "label", "train", "tasks")
        },
        "encoder": {
            "model": config.encoder.model,
            "fingerprint": contents.of_model(config.encoder.model),
            "lineage": read_lineage(base),
        },
        "labels": {
            "content": contents.of(config.paths.labelled),
            "provenance": json.loads(provenance.read_text(encoding="utf-8")) if provenance.is_file() else None,
            "teacher": config.label.teacher,
            "llm": config.llm and {"model": config.llm.model, "fingerprint": contents.of_model(config.llm.weights)},
        },
        "candidates": contents.of(config.paths.candidates),
        "prepared": {"corpus": contents.of(config.paths.corpus), "queries": contents.of(config.paths.queries)},
        "sources": [
            {
                "task": source.task,
                "dataset": source.dataset,
                "path": str(source.path),
                "content": contents.of(source_copy(source.path)),
            }
            for source in (config.prepare.sources if config.prepare else [])
        ],
    }
