"""Manifests: JSON files that list the hash of every other file, and hold a hash of themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError
from typing_extensions import Self

from embedder.errors import BundleError
from embedder.hashing import content_id, file_sha256
from embedder.storage.object_store import AnyPath

REMEDY = "restore the bundle or build it again"


class HashedManifest(BaseModel):
    """Base of the manifests."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    FILE: ClassVar[str]
    """Its name; written last, so that a folder without it is unfinished."""

    files: dict[str, str]
    """SHA-256 of every other file, by path within the folder."""
    digest: str = ""
    """Hash of all other fields."""

    def computed_digest(self) -> str:
        return content_id(self.model_dump(mode="json", exclude={"digest"}))

    def write(self, folder: Path) -> None:
        """Write it with its digest."""
        complete = self.model_copy(update={"digest": self.computed_digest()})
        (folder / self.FILE).write_text(complete.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: AnyPath) -> Self:
        """The manifest of a folder.

        Raises:
            BundleError: there is none, it is damaged, or of another version of this program.
        """
        path, known = folder / cls.FILE, cls.model_fields["format"].default
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            # Before the fields are checked: another format has other fields, and the reader is to be told of that.
            if isinstance(raw, dict) and raw.get("format") != known:
                raise BundleError(
                    f"{path}: format {raw.get('format')!r}, but this version reads format {known}; "
                    "build it again, or use the version of this program that wrote it"
                )
            manifest = cls.model_validate(raw)
        except (OSError, ValidationError, json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            reason = str(error).splitlines()[0]
            raise BundleError(f"{path}: no manifest of format {known} ({reason}); {REMEDY}") from error
        if manifest.digest != manifest.computed_digest():
            raise BundleError(f"{path}: its digest does not fit its content; {REMEDY}")
        return manifest

    def check_files(self, folder: Path, only: str = "") -> None:
        """Hash the files whose path begins with `only` (all by default), and look for missing and unknown ones.

        Raises:
            BundleError: a file is missing, altered, a link, or not listed.
        """
        listed = {name for name in self.files if name.startswith(only)}
        paths = list(folder.rglob("*"))
        for path in paths:
            # What a link leads to lies outside of the bundle and may change after it was hashed.
            if path.is_symlink():
                raise BundleError(f"{path}: a link; a bundle holds its files itself: {REMEDY}")
        present = {path.relative_to(folder).as_posix() for path in paths if path.is_file()} - {self.FILE}
        for name in sorted(listed - present):
            raise BundleError(f"{folder / name}: missing; {REMEDY}")
        for name in sorted(present - self.files.keys()):
            raise BundleError(f"{folder / name}: not in the manifest; remove it, or {REMEDY}")
        for name in sorted(listed):
            try:
                is_same = file_sha256(folder / name) == self.files[name]
            except FileNotFoundError as error:
                raise BundleError(f"{folder / name}: was removed meanwhile; {REMEDY}") from error
            if not is_same:
                raise BundleError(f"{folder / name}: SHA-256 differs from the manifest; {REMEDY}")


def hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}
