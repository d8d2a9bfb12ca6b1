"""Checkpoints of a training: each is there as a whole or not at all, and says itself whether it is whole.

    checkpoints/step-00000040/weights.safetensors      the trained weights
                              optimizer.safetensors    AdamW's moments of each
                              best.safetensors         the weights that did best in validation, if there were any
                              state.json               the next step, self-paced losses, validation
                              manifest.json            SHA-256 of all of these

A folder is written under another name and renamed when all of it is on the disk; in an object store its hashes tell
whether all of it was sent. Knows neither DeepSpeed nor Ray, and is not tied to a number of workers.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from embedder.errors import DataError, UnfinishedError
from embedder.hashing import file_sha256
from embedder.storage.durable import discard_folder, remove_unfinished
from embedder.storage.fetched import whole_copy
from embedder.storage.folders import folder_made, remove_folder
from embedder.storage.json_file import write_json
from embedder.storage.object_store import AnyPath, ObjectPath
from embedder.training.job import CHECKPOINT, FORMAT

KEPT = 2
"""Newest checkpoints that stay: should the last be damaged, the one before is taken."""
STATE, MANIFEST = "state.json", "manifest.json"
TENSORS = {"weights": "weights.safetensors", "moments": "optimizer.safetensors", "best": "best.safetensors"}

log = logging.getLogger(__name__)


@dataclass
class Checkpoint:
    """All that a training needs to go on as if it had not been stopped; without values, one that has not begun."""

    next_step: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)
    moments: dict[str, Tensor] = field(default_factory=dict)
    best: dict[str, Tensor] = field(default_factory=dict)
    self_paced: dict[str, Any] = field(default_factory=dict)
    validation: dict[str, Any] = field(default_factory=dict)


def write_checkpoint(folder: AnyPath, checkpoint: Checkpoint) -> None:
    """Write a checkpoint into the folder of checkpoints, and remove those no longer needed."""
    state = {name: getattr(checkpoint, name) for name in ("next_step", "self_paced", "validation")} | {"format": FORMAT}
    # What stands there already is the same: a killed run's last worker may have written it a moment before.
    with folder_made(folder / f"{CHECKPOINT}{checkpoint.next_step:08d}") as staged:
        for name, file in TENSORS.items():
            save_file(getattr(checkpoint, name), staged / file)
        write_json(state, staged / STATE)
        # Last, because it holds the hashes of all other files: whatever is cut or changed later is told from it.
        write_json({path.name: file_sha256(path) for path in sorted(staged.iterdir())}, staged / MANIFEST)
    # Old ones go only when the new one is on the disk, so that a kill at any moment leaves a whole one.
    for path in _newest_first(folder)[KEPT:]:
        _discard(path)


def last_step(folder: AnyPath) -> int | None:
    """The `next_step` of the newest whole checkpoint; damaged ones are discarded, and so is what was never finished."""
    if isinstance(folder, Path):
        remove_unfinished(folder)
    for path in _newest_first(folder):
        problem = damage(path)
        if problem is None:
            return int(path.name.removeprefix(CHECKPOINT))
        log.warning("%s: %s; going back to the checkpoint before", path, problem)
        _discard(path)
    return None


def damage(path: AnyPath) -> str | None:
    """Say what is wrong with a checkpoint; null for a whole one."""
    # By itself, because an error of this machine's disk says nothing of a checkpoint in a store.
    try:
        here = whole_copy(path)
    except UnfinishedError as error:
        return f"not a whole checkpoint ({error})"
    try:
        manifest: dict[str, str] = json.loads((here / MANIFEST).read_text(encoding="utf-8"))
        for name in (*TENSORS.values(), STATE):
            if file_sha256(here / name) != manifest[name]:
                return f"{name} has changed since it was written"
    except (OSError, ValueError, KeyError) as error:
        return f"not a whole checkpoint ({type(error).__name__}: {error})"
    return None


def read_checkpoint(folder: AnyPath, next_step: int) -> Checkpoint:
    """Read the checkpoint that `last_step` found.

    Raises:
        DataError: another version wrote it, whose steps train other batches.
    """
    path = whole_copy(folder / f"{CHECKPOINT}{next_step:08d}")
    state = json.loads((path / STATE).read_text(encoding="utf-8"))
    if state.get("format") != FORMAT:
        raise DataError(
            f"{path}: is of format {state.get('format')}, this version of LLM-Embedder goes on with format {FORMAT} "
            f"alone; remove {folder} to train from the beginning"
        )
    weights, moments, best = (load_file(path / file) for file in TENSORS.values())
    return Checkpoint(state["next_step"], weights, moments, best, state["self_paced"], state["validation"])


def _newest_first(folder: AnyPath) -> list[AnyPath]:
    return sorted(folder.glob(f"{CHECKPOINT}*"), key=lambda path: path.name, reverse=True)


def _discard(path: AnyPath) -> None:
    if isinstance(path, ObjectPath):
        remove_folder(path)
    else:
        discard_folder(path)
