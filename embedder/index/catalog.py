"""Versions of an index side by side, and aliases that move from one to another at once.

    versions/NAME/     a bundle, never changed
    states/NAME/       what was written to its index since (embedder.index.living)
    built              the version that was built last
    aliases.json       alias -> version, and which ones it named before until when

A kill at any moment leaves the old or the new version, and the old or the new alias.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embedder.errors import BundleError, ConfigError
from embedder.hashing import content_id
from embedder.index.bundle import Manifest, read_manifest, verify
from embedder.storage.durable import (
    discard_folder,
    locked,
    place_durably,
    remove_unfinished,
    storage_failures,
    unfinished_folder,
    write_durably,
)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


class Catalog:
    """The versions and aliases in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def versions(self) -> list[str]:
        """Names of the versions, sorted."""
        manifests = (self.folder / "versions").glob(f"*/{Manifest.FILE}")
        return sorted(path.parent.name for path in manifests if NAME.fullmatch(path.parent.name))

    def aliases(self) -> dict[str, str]:
        """Version by alias.

        Raises:
            BundleError: the file is damaged.
        """
        aliases: dict[str, str] = self._read()["aliases"]
        return aliases

    def previous(self) -> dict[str, dict[str, int]]:
        """By alias the versions that it named before and when it left them (ns since 1970), the first one left first.

        Those that are not there any more or are settled are left out.

        Raises:
            BundleError: the file is damaged.
        """
        named: dict[str, dict[str, int]] = self._read()["previous"]
        known = self.versions() if any(named.values()) else []
        return {
            alias: {version: left[version] for version in left if version in known} for alias, left in named.items()
        }

    def mark_built(self, version: str) -> None:
        """Note that a version was built from the corpus, not copied from another one."""
        with storage_failures(self.folder):
            write_durably(self.folder / "built", f"{version}\n".encode())

    def built(self) -> str | None:
        """The version that was built last, if it is still there."""
        path = self.folder / "built"
        version = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
        return version if version in self.versions() else None

    def settle(self, alias: str, version: str, left_ns: int, successor: str) -> None:
        """Forget that an alias named a version before: nothing of it is needed any more.

        Only if the alias has not left it again since that time, and names that successor.
        """
        with self._changing():
            previous = self.previous()
            if previous.get(alias, {}).get(version) == left_ns and self.aliases().get(alias) == successor:
                del previous[alias][version]
                self._write_aliases(self.aliases(), previous)

    def resolve(self, name: str) -> str:
        """The version that an alias or a version's own name means.

        Raises:
            ConfigError: there is none.
        """
        version = self.aliases().get(name, name)
        if not NAME.fullmatch(version) or not (self.bundle(version) / Manifest.FILE).is_file():
            raise ConfigError(
                f"{self.folder}: no version or alias {name!r:.200}; there are versions {self.versions()} and aliases "
                f"{self.aliases()}; build one with `python -m ray_jobs.index`"
            )
        return version

    def bundle(self, version: str) -> Path:
        return self.folder / "versions" / version

    def state(self, version: str) -> Path:
        return self.folder / "states" / version

    def point(self, alias: str, version: str) -> None:
        """Let an alias name a version, at once and for good when this returns.

        Raises:
            ConfigError: there is no such version, or the alias is no name or that of a version.
            StorageError: the disk is full, read-only or failing; the alias names what it named.
        """
        self._check_name(alias)
        if alias in self.versions():
            raise ConfigError(f"{alias!r} is a version of {self.folder}; an alias needs a name of its own")
        with self._changing():
            # Read under the lock: two jobs that move aliases at once must not undo each other's.
            aliases, previous, target = self.aliases(), self.previous(), self.resolve(version)
            if aliases.get(alias, target) != target:
                moved = {target, aliases[alias]}
                left = {name: when for name, when in previous.get(alias, {}).items() if name not in moved}
                # Taken out and put in last, because the order says which version was left first.
                previous[alias] = {**left, aliases[alias]: time.time_ns()}
            self._write_aliases({**aliases, alias: target}, previous)

    def drop(self, alias: str) -> None:
        """Remove an alias; the version stays."""
        with self._changing():
            aliases, previous = self.aliases(), self.previous()
            aliases.pop(alias, None)
            previous.pop(alias, None)
            self._write_aliases(aliases, previous)

    def stage(self, version: str) -> Path:
        """A new folder to be filled with a bundle and then published under that name."""
        self._check_name(version)
        with storage_failures(self.folder):
            return unfinished_folder(self.bundle(version))

    def publish(self, staged: Path, version: str) -> None:
        """Make a filled folder, manifest included, one of the versions.

        Raises:
            ConfigError: there is another version of that name.
            BundleError: the folder has no manifest, or a damaged one.
        """
        self._check_name(version)
        manifest = read_manifest(staged)
        if version in self.aliases():
            raise ConfigError(f"{version!r} is an alias of {self.folder}; a version needs a name of its own")
        if version in self.versions():
            if read_manifest(self.bundle(version)).digest != manifest.digest:
                raise ConfigError(f"{self.bundle(version)}: exists with another content; choose another name")
            shutil.rmtree(staged)
            return
        with storage_failures(self.folder):
            place_durably(staged, self.bundle(version))

    def restore(self, bundle: Path, version: str) -> None:
        """Copy a bundle from elsewhere, such as a snapshot, once it is verified.

        Raises:
            BundleError: it is not whole; nothing was changed.
            StorageError: the disk is full, read-only or failing; nothing was changed.
            ConfigError: there is another version of that name.
        """
        verify(bundle)
        staged = self.stage(version)
        try:
            with storage_failures(staged.parent):
                shutil.copytree(bundle, staged, dirs_exist_ok=True)
            verify(staged)
            self.publish(staged, version)
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    def remove(self, version: str) -> None:
        """Remove a version and all that was written to it.

        Raises:
            ConfigError: it does not exist, an alias names it, or what was written to it is not in the next one yet.
        """
        with self._changing():
            if version not in self.versions():
                raise ConfigError(f"{self.folder}: no version {version!r:.200}; there are {self.versions()}")
            named = [alias for alias, target in self.aliases().items() if target == version]
            if named:
                raise ConfigError(f"version {version!r} is served as {named}; point these elsewhere first")
            waiting = [alias for alias, left in self.previous().items() if version in left]
            if waiting and self.state(version).exists():
                raise ConfigError(
                    f"what was written to version {version!r} may not all be in what {waiting} name now; run the "
                    f"service, which replays it there, or remove {self.state(version)} first to lose it"
                )
            for folder in (self.bundle(version), self.state(version)):
                if folder.exists():
                    discard_folder(folder)

    def remove_unfinished(self) -> None:
        """Remove what kills have left; call it where nobody else is building or copying."""
        for name in ("versions", "states"):
            remove_unfinished(self.folder / name)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Keep other jobs that move aliases or remove versions out.

        Raises:
            StorageError: the disk is full, read-only or failing.
        """
        with storage_failures(self.folder), locked(self.folder / "catalog.lock"):
            yield

    def _read(self) -> dict[str, Any]:
        path = self.folder / "aliases.json"
        try:
            raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if raw["digest"] != content_id(raw["aliases"], raw["previous"]):
                raise ValueError("its digest does not fit its content")
        except FileNotFoundError:
            return {"aliases": {}, "previous": {}}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise BundleError(f"{path}: not readable ({error}); remove it and set the aliases again") from error
        return raw

    def _write_aliases(self, aliases: dict[str, str], previous: dict[str, dict[str, int]]) -> None:
        content = {"aliases": aliases, "previous": previous, "digest": content_id(aliases, previous)}
        write_durably(self.folder / "aliases.json", (json.dumps(content, indent=2) + "\n").encode())

    def _check_name(self, name: str) -> None:
        if not NAME.fullmatch(name):
            raise ConfigError(f"{name!r:.200} is no name of a version or alias; use letters, digits, '.', '_' and '-'")
