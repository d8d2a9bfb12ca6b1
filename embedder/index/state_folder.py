"""Where what was written to a collection lies: which generation is read, the generations, and the log's segments."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from embedder.errors import BundleError
from embedder.index.manifest import REMEDY
from embedder.storage.durable import remove_unfinished, write_durably


class StateFolder:
    """The files beside a collection that never change: `CURRENT`, `generations/N/`, `log/N.log`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.current_path = folder / "CURRENT"
        self.write_lock = folder / "write.lock"
        self.compact_lock = folder / "compact.lock"

    def current(self) -> tuple[int, str]:
        """Number and digest of the generation that is read; 0 and nothing: the bundle's collection.

        Raises:
            BundleError: the file is damaged.
        """
        try:
            number, digest = self.current_path.read_text(encoding="ascii").split()
            return int(number), digest
        except FileNotFoundError:
            return 0, ""
        except ValueError as error:
            raise BundleError(f"{self.current_path}: damaged ({error}); {REMEDY}") from error

    def make_current(self, number: int, digest: str) -> None:
        write_durably(self.current_path, f"{number} {digest}\n".encode())

    def segments(self) -> list[int]:
        """Numbers of the segments of the log, in no order."""
        return [int(path.stem) for path in (self._folder / "log").glob("*.log") if path.stem.isdecimal()]

    def segment(self, number: int) -> Path:
        return self._folder / "log" / f"{number}.log"

    def generation(self, number: int) -> Path:
        return self._folder / "generations" / str(number)

    def remove_unfinished(self) -> None:
        """Remove what a compaction that was killed has left."""
        remove_unfinished(self._folder / "generations")

    def remove_before(self, number: int) -> None:
        """Remove what is older than a generation that somebody may still be reading."""
        for path in (self._folder / "generations").iterdir():
            if path.name.isdecimal() and int(path.name) < number:
                shutil.rmtree(path, ignore_errors=True)
        for segment in self.segments():
            if segment < number:
                os.unlink(self.segment(segment))
