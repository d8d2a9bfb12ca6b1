"""Versions of an index side by side, and aliases that move from one to another at once.

    versions/NAME/                    a bundle, never changed
    writes/ALIAS/TASK/                what was written since, whatever version the alias named (embedder.index.task_log)
    states/NAME/ALIAS/                what this machine made of the two (embedder.index.shard)
    catalog/000000000031.json         all aliases (embedder.index.alias_table); the highest number counts

A kill at any moment leaves the old or the new version, and the old or the new alias. No lock is held: of two processes
that change aliases at once the second one sees what the first one made of them (embedder.storage.revisions).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from embedder.errors import BundleError, ConfigError
from embedder.index.alias_table import AliasTable
from embedder.index.bundle import Manifest, read_manifest, verify
from embedder.index.state_places import StatePlaces
from embedder.storage.durable import (
    discard_folder,
    place_durably,
    remove_unfinished,
    storage_failures,
    unfinished_folder,
)
from embedder.storage.folder_store import FolderStore
from embedder.storage.object_store import AnyPath
from embedder.storage.position import clock
from embedder.storage.revisions import Revisions

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


class Catalog:
    """The versions and aliases in one folder."""

    def __init__(self, folder: Path, log: AnyPath | None = None) -> None:
        """`log`: where the logs of its tasks are, if not in the folder."""
        self.folder, self.log = folder, folder if log is None else log
        self._tables = Revisions(FolderStore(folder), "catalog", clock)

    def versions(self) -> list[str]:
        """Names of the versions, sorted."""
        manifests = (self.folder / "versions").glob(f"*/{Manifest.FILE}")
        return sorted(path.parent.name for path in manifests if NAME.fullmatch(path.parent.name))

    def aliases(self) -> dict[str, str]:
        """Version by alias.

        Raises:
            BundleError: the table of aliases is damaged.
            StorageError: it cannot be read.
        """
        return self._table().aliases

    def mark_built(self, version: str) -> None:
        """Note that a version was built from the corpus, not copied from another one."""
        self._change(lambda table: replace(table, built=version))

    def built(self) -> str | None:
        """The version that was built last, if it is still there."""
        version = self._table().built
        return version if version in self.versions() else None

    def resolve(self, name: str) -> str:
        """The version that an alias or a version's own name means.

        Raises:
            ConfigError: there is none.
        """
        return self._resolved(name, self._table())

    def bundle(self, version: str) -> Path:
        return self.folder / "versions" / version

    def state(self, version: str, alias: str) -> StatePlaces:
        """The places of what was written through an alias, as a version shows it; nothing is there for other names."""
        return StatePlaces(self.log / "writes" / alias, self.folder / "states" / version / alias)

    def point(self, alias: str, version: str) -> None:
        """Let an alias name a version, at once and for good when this returns.

        Raises:
            ConfigError: there is no such version, or the alias is no name or that of a version.
            StorageError: the disk is full, read-only or failing; the alias names what it named.
        """
        self._check_name(alias)
        if alias in self.versions():
            raise ConfigError(f"{alias!r} is a version of {self.folder}; an alias needs a name of its own")
        # Resolved in the table that is replaced: a version that is removed meanwhile gets no alias.
        self._change(lambda table: table.pointed(alias, self._resolved(version, table)))

    def drop(self, alias: str) -> None:
        """Remove an alias; the version stays."""
        self._change(lambda table: table.dropped(alias))

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
        table = self._table()
        if version in table.aliases:
            raise ConfigError(f"{version!r} is an alias of {self.folder}; a version needs a name of its own")
        if version in table.leaving:
            raise ConfigError(
                f"version {version!r} of {self.folder} has begun to be removed; remove it once more first"
            )
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
        """Remove a version; what was written through it stays in the log.

        Raises:
            ConfigError: it does not exist, or an alias names it.
        """
        if version not in self.versions():
            raise ConfigError(f"{self.folder}: no version {version!r:.200}; there are {self.versions()}")
        # In the table before its files go: who points an alias at it at this moment either comes first or is refused.
        self._change(lambda table: self._leaving(version, table))
        with storage_failures(self.folder):
            for folder in (self.bundle(version), self.folder / "states" / version):
                if folder.exists():
                    discard_folder(folder)
        self._change(lambda table: replace(table, leaving=[name for name in table.leaving if name != version]))

    def remove_unfinished(self) -> None:
        """Remove what kills have left; call it where nobody else is building, copying or moving aliases."""
        for name in ("versions", "states", "catalog"):
            remove_unfinished(self.folder / name)

    def _table(self) -> AliasTable:
        _, content = self._tables.newest()
        return self._parsed(content)

    def _parsed(self, content: bytes | None) -> AliasTable:
        try:
            return AliasTable() if content is None else AliasTable.parse(content)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise BundleError(
                f"{self.folder / 'catalog'}: the file with the highest number is damaged ({error}); remove it, so that "
                "the one before counts, and see that the aliases are right"
            ) from error

    def _change(self, change: Callable[[AliasTable], AliasTable]) -> None:
        # Before the change: once that is made, a failure must not tell that it was not.
        self._tables.clean()
        self._tables.change(lambda content: change(self._parsed(content)).content())

    def _resolved(self, name: str, table: AliasTable) -> str:
        version = table.aliases.get(name, name)
        is_there = NAME.fullmatch(version) and (self.bundle(version) / Manifest.FILE).is_file()
        if not is_there or version in table.leaving:
            versions = self.versions()
            near = get_close_matches(name[:200], [*table.aliases, *versions], n=1)
            remedy = "build one with `llm-embedder index`"
            if versions:
                remedy = f"name one of them by `python -m embedder.index {self.folder} point ALIAS VERSION`"
            raise ConfigError(
                f"{self.folder}: no version or alias {name!r:.200}; there are versions {versions} and aliases "
                f"{table.aliases}; {f'did you mean {near[0]}?' if near else remedy}"
            )
        return version

    def _leaving(self, version: str, table: AliasTable) -> AliasTable:
        """The table in which a version is being removed; ConfigError: it is needed."""
        named = [alias for alias, target in table.aliases.items() if target == version]
        if named:
            raise ConfigError(f"version {version!r} is served as {named}; point these elsewhere first")
        return replace(table, leaving=sorted({*table.leaving, version}))

    def _check_name(self, name: str) -> None:
        if not NAME.fullmatch(name):
            raise ConfigError(f"{name!r:.200} is no name of a version or alias; use letters, digits, '.', '_' and '-'")
