"""The versions that are served: where they lie, what they are, and which one an alias means at this moment."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from embedder.config.run import RunConfig
from embedder.errors import EmbedderError, UnreachableError
from embedder.index.bundle import MODEL, Manifest, bundle_sizes, read_manifest, shard_of
from embedder.index.catalog import Catalog
from embedder.index.state_places import StatePlaces
from embedder.run.lineage import LINEAGE
from embedder.storage.object_store import AnyPath, stamp_of
from serve.http_errors import ApiError
from serve.schemas.index_schemas import Versions

logger = logging.getLogger("ray.serve")

AGAIN_S = 60.0
"""After that what was refused is tried again: it may have been put right, or another version may have gone."""


def key_of(alias: str, version: str) -> str:
    """A version with what was written through an alias, as one name; neither has a slash."""
    return f"{alias}/{version}"


def split_key(key: str) -> tuple[str, str]:
    """Alias and version of a key."""
    alias, _, version = key.rpartition("/")
    return alias, version


@dataclass(frozen=True)
class VersionSource:
    """The versions of a run's index, or a single bundle. Small, and the same for every replica."""

    folder: AnyPath
    """That of the catalog, or the bundle itself."""
    default: str
    """Alias of the index that a request means which names none."""
    is_catalog: bool

    @classmethod
    def of(cls, config: RunConfig) -> VersionSource:
        """The source of a run's versions."""
        bundle = config.serve.bundle
        return cls(bundle or config.paths.indexes, config.index.alias, is_catalog=bundle is None)

    @property
    def catalog(self) -> Catalog:
        """The run's versions.

        Raises:
            ApiError: a single bundle is served.
        """
        if not self.is_catalog:
            raise ApiError(409, "this service was deployed with serve.bundle; it serves that one bundle alone")
        return Catalog(self.folder)

    def aliases(self) -> dict[str, str]:
        """Version by alias.

        Raises:
            BundleError: the aliases cannot be read.
        """
        return Catalog(self.folder).aliases() if self.is_catalog else {self.default: self.folder.name}

    def keys(self) -> list[str]:
        """Keys of what aliases serve now, the default one first; none where that cannot be read."""
        try:
            aliases = self.aliases()
        except EmbedderError as error:
            logger.error("%s", error)
            return []
        first = sorted(aliases, key=lambda alias: alias != self.default)
        return [key_of(alias, aliases[alias]) for alias in first]

    def place(self, version: str) -> AnyPath:
        """The folder, or its place in a store, of a version's manifest."""
        return Catalog(self.folder).bundle(version) if self.is_catalog else self.folder

    def bundle(self, version: str, parts: Sequence[str] = ("",)) -> Path:
        """The bundle of a version as a folder of this machine, with at least the files that begin with one of `parts`.

        Raises:
            BundleError: there is no such version, or a fetched file is damaged.
            DataError: the object store does not answer, or refuses.
        """
        return self.catalog.here(version, parts) if self.is_catalog else Path(str(self.folder))

    def file(self, version: str, name: str) -> AnyPath | None:
        """Where one file of a version is; None: it has none of that name."""
        if self.is_catalog:
            return self.catalog.file(version, name)
        path = self.folder / name
        return path if path.is_file() else None

    def sizes(self, version: str) -> dict[str, int]:
        """Bytes of the files of a version, by their names in it."""
        return self.catalog.sizes(version) if self.is_catalog else bundle_sizes(self.bundle(version))

    def forget_removed(self) -> None:
        """Remove what this machine has fetched, or made, of versions in a store that are removed."""
        if self.is_catalog:
            self.catalog.forget_removed()

    def state(self, version: str, alias: str) -> StatePlaces:
        """The places of what was written through an alias."""
        return self.catalog.state(version, alias) if self.is_catalog else StatePlaces.beside(Path(str(self.folder)))


@dataclass(frozen=True)
class Version:
    """A version that an alias serves: model and index as one unit."""

    alias: str
    """By which what was written to it is known: each alias has writes of its own."""
    name: str
    manifest: Manifest
    stamp: Versions
    """What answers say of it."""
    created: int
    """Seconds since 1970."""
    widths: tuple[int, ...]
    """Prefixes of its vectors that are vectors too, the whole last."""
    has_reranker: bool

    @classmethod
    def read(cls, source: VersionSource, alias: str, name: str) -> Version:
        """Read what a version is.

        Raises:
            BundleError: it does not exist, or is damaged.
        """
        place = source.place(name)
        manifest = read_manifest(place)
        known = source.file(name, f"{MODEL}/{LINEAGE}")
        lineage = json.loads(known.read_text(encoding="utf-8")) if known else {}
        trained = lineage.get("settings", {}).get("train") or {}
        widths = sorted({*trained.get("matryoshka_dimensions", []), manifest.dimension})
        created = int(stamp_of(place / Manifest.FILE)[1] / 1e9)
        # Once, because the version of an index is a hash over all that the manifest lists.
        stamp = Versions(model_version=manifest.model_version, index_version=manifest.index_version)
        return cls(alias, name, manifest, stamp, created, tuple(widths), manifest.has_reranker)

    @property
    def key(self) -> str:
        """Under which replicas have it."""
        return key_of(self.alias, self.name)

    def slices(self, num_slices: int) -> list[int]:
        """The slices that hold shards of it."""
        return [part for part in range(num_slices) if shards_of(part, num_slices, self.manifest.num_shards)]

    def check_task(self, task: str | None, param: str) -> None:
        """See that it knows a task, if one is named.

        Raises:
            ApiError: it knows no such task.
        """
        if task is not None and task not in (known := self.manifest.tasks):
            raise ApiError(400, f"task {task!r:.200}: known are {sorted(known)}", param=param)

    def check_reranker(self) -> None:
        """See that it has a reranker.

        Raises:
            ApiError: its run trained none.
        """
        if not self.has_reranker:
            raise ApiError(
                400, "rerank_from: the index has no reranker (label.teacher: reranker trains one)", param="rerank_from"
            )

    def check_documents(self, task: str) -> None:
        """See that it has documents of a task.

        Raises:
            ApiError: it has none.
        """
        if task not in (known := self.manifest.collections):
            raise ApiError(400, f"task {task!r:.200}: the index has {sorted(known)}", param="task")

    def by_slice(self, ids: Sequence[str], num_slices: int) -> dict[int, list[int]]:
        """Positions of the ids by the slice that holds their shard."""
        positions: dict[int, list[int]] = {}
        for i, document_id in enumerate(ids):
            part = shard_of(document_id, self.manifest.num_shards) % num_slices
            positions.setdefault(part, []).append(i)
        return positions


class NamedVersions(ABC):
    """Versions by alias and by the name of their model."""

    @property
    @abstractmethod
    def default(self) -> str:
        """Alias of the index that a request means which names none."""

    @abstractmethod
    def all(self) -> list[tuple[str, Version]]:
        """Alias and version, the default one first."""

    def named(self, alias: str | None, param: str = "index") -> Version:
        """The version that an alias serves; null means the default.

        Raises:
            ApiError: there is no such index.
        """
        name = self.default if alias is None else alias
        known = dict(self.all())
        if name not in known:
            raise ApiError(404, f"index {name!r:.200}: served are {sorted(known)}", param=param)
        return known[name]

    def models(self) -> dict[str, Version]:
        """Versions by the names of their models: each model's own and its alias; of one name the default one counts."""
        by_name: dict[str, Version] = {}
        for alias, version in self.all():
            for name in (version.manifest.name, alias):
                by_name.setdefault(name, version)
        return by_name

    def model(self, name: str) -> Version:
        """The version whose model has a name.

        Raises:
            ApiError: there is no such model.
        """
        models = self.models()
        if name not in models:
            known = sorted(models)
            raise ApiError(404, f"model {name!r:.200}: served are {known}", param="model", code="model_not_found")
        return models[name]


class _Refusal(NamedTuple):
    name: str
    reason: str
    at: float


class Served(NamedVersions):
    """Which version each alias serves in this process.

    `follow` moves to what the aliases say once every replica has loaded it; until then, and if one cannot, the old
    version goes on being served. So a request sees one version or the other, and always the whole of it.
    """

    def __init__(self, source: VersionSource, max_versions: int) -> None:
        """Begin with the default alias.

        Raises:
            EmbedderError: what it names is not there, or damaged.
        """
        self.source, self.max_versions = source, max_versions
        version = source.aliases().get(source.default) or source.default
        self._by_alias = {source.default: Version.read(source, source.default, version)}
        self._refused: dict[str, _Refusal] = {}

    @property
    def default(self) -> str:
        return self.source.default

    def all(self) -> list[tuple[str, Version]]:
        """Alias and version, the default one first."""
        return sorted(self._by_alias.items(), key=lambda item: (item[0] != self.source.default, item[0]))

    async def follow(
        self,
        prepare: Callable[[str], Awaitable[None]],
        is_ready: Callable[[Version], Awaitable[bool]],
    ) -> None:
        """Go over to what the aliases name now, each once `prepare` has had every replica load it, by its key.

        `is_ready` is asked whether the new version shows all that was written; if not yet, the alias stays until the
        next look.
        """
        # In threads, because a store may take long to answer, and requests are answered in this loop.
        wanted = await asyncio.to_thread(self.source.aliases)
        for gone in self._by_alias.keys() - wanted.keys() - {self.source.default}:
            del self._by_alias[gone]
        for alias, name in wanted.items():
            known = self._by_alias.get(alias)
            if known is not None and known.name == name:
                self._refused.pop(alias, None)
                continue
            # Not every second: hashing and loading a damaged version is mostly in vain, but it may be put right.
            refusal = self._refused.get(alias)
            if refusal is not None and refusal.name == name and time.monotonic() - refusal.at < AGAIN_S:
                continue
            if known is None and len(self._by_alias) >= self.max_versions:
                self._refuse(alias, name, f"{self.max_versions} are served already (serve.max_versions)")
                continue
            try:
                version = await asyncio.to_thread(Version.read, self.source, alias, name)
                # Before vectors are made for it, which needs the new version loaded.
                await prepare(version.key)
                if known is not None and not await is_ready(version):
                    continue
            except (ApiError, TimeoutError, UnreachableError) as error:
                logger.warning("version %s as %s is not ready yet: %s", name, alias, error)
                continue
            except EmbedderError as error:
                self._refuse(alias, name, str(error))
                continue
            # One assignment: a request that asked before it keeps the old version to its end, none sees half of each.
            self._by_alias[alias] = version
            self._refused.pop(alias, None)
            logger.info("serving a version", extra={"alias": alias, "version": name})

    def refusal(self, alias: str) -> str | None:
        """Why an alias is not followed, if so."""
        return self._refused[alias].reason if alias in self._refused else None

    def forgive(self, alias: str) -> None:
        """Try again what was refused for an alias: it has been fixed."""
        self._refused.pop(alias, None)

    def _refuse(self, alias: str, name: str, reason: str) -> None:
        """Say once why an alias is not followed."""
        before, now = self._refused.get(alias), _Refusal(name, reason, time.monotonic())
        self._refused[alias] = now
        if before is None or before[:2] != now[:2]:
            logger.error("not serving version %s as %s: %s", name, alias, reason)


def shards_of(slice_number: int, num_slices: int, num_shards: int) -> list[int]:
    """The shards of a version that a deployment holds: every num_slices-th one.

    So a version may have another number of shards than the one the service was deployed with.
    """
    return list(range(slice_number, num_shards, num_slices))
