"""Versions of an index side by side, and aliases that move from one to another at once.

    versions/NAME/                    a bundle, never changed; in an object store its manifest alone, whose files are in
    files/SHA256                      embedder.index.stored_files
    writes/ALIAS/TASK/                what was written since, whatever version the alias named (embedder.index.task_log)
    states/NAME/ALIAS/                what this machine made of the two (embedder.index.shard); for an object store it
                                      is in the cache of the machine
    catalog/000000000031.json         all aliases (embedder.index.alias_table); the highest number counts

A kill at any moment leaves the old or the new version, and the old or the new alias. No lock is held: of two processes
that change aliases at once the second one sees what the first one made of them (embedder.storage.revisions).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from embedder.errors import BundleError, ConfigError
from embedder.hashing import content_id
from embedder.index.alias_table import AliasTable
from embedder.index.bundle import Manifest, bundle_sizes, read_manifest, verify
from embedder.index.state_places import StatePlaces
from embedder.index.stored_files import (
    fetch_bundle,
    fetched_versions,
    file_sizes,
    forget_bundle,
    put_files,
    remove_files,
    stored_file,
)
from embedder.storage.connect import store_at
from embedder.storage.durable import discard_folder, place_durably, storage_failures, unfinished_folder
from embedder.storage.folders import remove_folder
from embedder.storage.node_cache import cache_folder, scratch
from embedder.storage.object_store import AnyPath, ObjectPath, upload
from embedder.storage.position import clock
from embedder.storage.revisions import Revisions

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
BUILDING = "building"
"""Folder of shards that are built for a version that is not there yet."""


class Catalog:
    """The versions and aliases in one folder, here or in an object store."""

    def __init__(self, folder: AnyPath) -> None:
        self.folder = folder
        self._tables = Revisions(store_at(folder), "catalog", clock)

    def versions(self) -> list[str]:
        """Names of the versions, sorted."""
        manifests = (self.folder / "versions").glob(f"*/{Manifest.FILE}")
        names = (path.parent.name for path in manifests)
        return sorted(name for name in names if NAME.fullmatch(name))

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

    def bundle(self, version: str) -> AnyPath:
        """The place of a version; in an object store that of its manifest alone."""
        return self.folder / "versions" / version

    def here(self, version: str, parts: Sequence[str] = ("",)) -> Path:
        """The bundle of a version as a folder of this machine; of a store at least the files that begin with `parts`.

        Raises:
            BundleError: there is no such version, or a file is not as the manifest says.
            DataError: the store does not answer, or refuses.
        """
        bundle = self.bundle(version)
        if isinstance(bundle, Path):
            return bundle
        return fetch_bundle(bundle.parent.parent, version, read_manifest(bundle), parts)

    def file(self, version: str, name: str) -> AnyPath | None:
        """Where one file of a version is; None: it has none of that name.

        Raises:
            BundleError: there is no such version.
            DataError: the store does not answer, or refuses.
        """
        bundle = self.bundle(version)
        if not isinstance(bundle, Path):
            return stored_file(bundle.parent.parent, read_manifest(bundle), name)
        path = bundle / name
        return path if path.is_file() else None

    def sizes(self, version: str) -> dict[str, int]:
        """Bytes of the files of a version, by their names in it."""
        bundle = self.bundle(version)
        if isinstance(bundle, Path):
            return bundle_sizes(bundle)
        stored = file_sizes(bundle.parent.parent)
        files = read_manifest(bundle).files
        if gone := [name for name, digest in files.items() if digest not in stored]:
            raise BundleError(f"{bundle}: {gone[0]} is not stored; remove the version, and build it again")
        return {name: stored[digest] for name, digest in files.items()}

    @property
    def states(self) -> Path:
        """The folder of this machine for what it makes of versions and writes; it can be removed."""
        if isinstance(self.folder, Path):
            return self.folder / "states"
        return cache_folder() / "states" / content_id(self.folder.uri)[:16]

    def state(self, version: str, alias: str) -> StatePlaces:
        """The places of what was written through an alias, as a version shows it; nothing is there for other names."""
        return StatePlaces(self.folder / "writes" / alias, self.states / version / alias)

    def point(self, alias: str, version: str) -> None:
        """Let an alias name a version, at once and for good when this returns.

        Raises:
            ConfigError: there is no such version, or the alias is no name or that of a version.
            StorageError: the disk is full, read-only or failing; the alias names what it named.
        """
        self.check_alias(alias)
        # Resolved in the table that is replaced: a version that is removed meanwhile gets no alias.
        self._change(lambda table: table.pointed(alias, self._resolved(version, table)))

    def check_alias(self, alias: str) -> None:
        """Refuse what can be no alias.

        Raises:
            ConfigError: it is no name, or that of a version.
        """
        self._check_name(alias)
        if alias in self.versions():
            raise ConfigError(f"{alias!r} is a version; an alias needs a name of its own")

    def move(self, alias: str, old: str, new: str) -> bool:
        """Let an alias name another version, unless somebody has pointed it elsewhere meanwhile; whether it does."""
        self._change(lambda table: table.pointed(alias, new) if table.aliases.get(alias) == old else table)
        return self.aliases().get(alias) == new

    def drop(self, alias: str) -> None:
        """Remove an alias; the version stays."""
        self._change(lambda table: table.dropped(alias))

    @contextmanager
    def adding(self, version: str) -> Iterator[Path]:
        """A new folder of this machine to be filled with a bundle, which is published under that name at the end.

        Raises:
            ConfigError, BundleError: as `publish`.
            StorageError: the disk is full, read-only or failing; there is no such version then.
        """
        self._check_name(version)
        self._check_free(version, self._table())
        bundle = self.bundle(version)
        if not isinstance(bundle, Path):
            with scratch(version) as staged:
                yield staged
                self.publish(staged, version)
            return
        with storage_failures(bundle):
            staged = unfinished_folder(bundle)
        try:
            with storage_failures(staged.parent):
                yield staged
            self.publish(staged, version)
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    def publish(self, staged: Path, version: str) -> None:
        """Make a filled folder, manifest included, one of the versions; for a store files that are stored may lack.

        Raises:
            ConfigError: there is another version of that name.
            BundleError: the folder has no manifest, or a damaged one.
        """
        self._check_name(version)
        manifest = read_manifest(staged)
        self._check_free(version, self._table())
        if version in self.versions():
            if read_manifest(self.bundle(version)).digest != manifest.digest:
                raise ConfigError(f"{self.bundle(version)}: exists with another content; choose another name")
            if isinstance(self.folder, Path):
                shutil.rmtree(staged)
                return
        bundle = self.bundle(version)
        if isinstance(bundle, Path):
            with storage_failures(bundle):
                try:
                    place_durably(staged, bundle)
                except OSError as error:
                    # Of two that are made at once the first has the name.
                    if not (staged.is_dir() and bundle.is_dir()):
                        raise
                    raise ConfigError(f"{bundle}: exists by now; choose another name") from error
        else:
            self._store(staged, bundle, manifest)

    def _check_free(self, version: str, table: AliasTable) -> None:
        if version in table.aliases:
            raise ConfigError(f"{version!r} is an alias of {self.folder}; a version needs a name of its own")
        if version in table.leaving:
            raise ConfigError(
                f"version {version!r} of {self.folder} has begun to be removed; remove it once more first"
            )

    def _store(self, staged: Path, bundle: ObjectPath, manifest: Manifest) -> None:
        indexes = bundle.parent.parent
        here = {name: digest for name, digest in manifest.files.items() if (staged / name).is_file()}
        put_files(indexes, staged, here)
        upload(staged / Manifest.FILE, bundle / Manifest.FILE)
        # Once it is named: what another process has removed since it was found to be stored is told from that.
        gone = set(manifest.files.values()) - file_sizes(indexes).keys()
        if gone:
            (bundle / Manifest.FILE).unlink(missing_ok=True)
            raise BundleError(f"{bundle}: {len(gone)} of its files are not stored; run the job again")

    def restore(self, bundle: Path, version: str) -> None:
        """Copy a bundle from elsewhere, such as a snapshot, once it is verified.

        Raises:
            BundleError: it is not whole; nothing was changed.
            StorageError: the disk is full, read-only or failing; nothing was changed.
            ConfigError: there is another version of that name.
        """
        verify(bundle)
        with self.adding(version) as staged:
            shutil.copytree(bundle, staged, dirs_exist_ok=True)
            verify(staged)

    def remove(self, version: str) -> None:
        """Remove a version; what was written through it stays in the log. In a store no other may be added meanwhile.

        Raises:
            ConfigError: it does not exist, or an alias names it.
        """
        # One whose removal was cut off has no manifest any more.
        if version not in self.versions() and version not in self._table().leaving:
            raise ConfigError(f"{self.folder}: no version {version!r:.200}; there are {self.versions()}")
        # In the table before its files go: who points an alias at it at this moment either comes first or is refused.
        self._change(lambda table: self._leaving(version, table))
        bundle = self.bundle(version)
        if isinstance(bundle, Path):
            for folder in (bundle, self.states / version):
                if folder.exists():
                    with storage_failures(folder):
                        discard_folder(folder)
        else:
            remove_folder(bundle)
            self._remove_unused(bundle.parent.parent)
            self.forget_removed()
        self._change(lambda table: replace(table, leaving=[name for name in table.leaving if name != version]))

    def _remove_unused(self, indexes: ObjectPath) -> None:
        """Remove stored files that neither a version nor a build has; call it where no other version is being added."""
        # Before who names them: what is stored from here on may not be named yet.
        stored = file_sizes(indexes).keys()
        notes = [json.loads(note.read_text()) for note in (indexes / BUILDING).glob("*/*.json")]
        named = {digest for note in notes for digest in note["files"].values()}
        for version in self.versions():
            named |= set(read_manifest(self.bundle(version)).files.values())
        remove_files(indexes, stored - named)

    def forget_removed(self) -> None:
        """Remove what this machine has fetched, or made, of versions in a store that are removed.

        Raises:
            DataError: the store does not answer, or refuses.
        """
        if not isinstance(self.folder, ObjectPath):
            return
        # Before the versions: what is fetched from here on may be of one that was added meanwhile.
        fetched, made = fetched_versions(self.folder), list(self.states.glob("*"))
        versions = self.versions()
        for version in fetched:
            if version not in versions:
                forget_bundle(self.folder, version)
        for state in made:
            if state.name not in versions:
                shutil.rmtree(state, ignore_errors=True)

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
