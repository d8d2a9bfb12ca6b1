"""Where what was written to an index is kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from embedder.storage.object_store import AnyPath


@dataclass(frozen=True)
class StatePlaces:
    """The logs that count, and what a version makes of them."""

    log: AnyPath
    """Folder or object store of the logs, one a task, which all versions that an alias names share."""
    generations: Path
    """Folder of this machine for compacted collections; they can be removed, as they are made of bundle and log."""

    @classmethod
    def beside(cls, bundle: Path) -> StatePlaces:
        """Those of a bundle that belongs to no catalog."""
        folder = bundle.with_name(f"{bundle.name}.state")
        return cls(folder / "writes", folder)
