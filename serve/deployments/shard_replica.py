"""Deployment: one slice of the index shards, of every served version."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embedder.config.serve import ServeConfig
from embedder.errors import BundleError, EmbedderError, StorageError
from embedder.index.bundle import read_manifest, shard_folder
from embedder.index.opened import OpenIndex
from embedder.index.search_options import SearchOptions
from serve.backend import INDEX_CALLS, check_format
from serve.deployments.replica_memory import pass_over_imported, return_freed_memory
from serve.deployments.service_metrics import ShardMetrics
from serve.deployments.version_cache import VersionCache
from serve.large_work import LargeWork
from serve.versions.served import VersionSource, key_of, shards_of, split_key

logger = logging.getLogger("ray.serve")

TIDY_EVERY_S = 5.0
"""Between two looks at what others have compacted, and at what is to be compacted or unloaded."""
FOLLOW_S = 0.5
"""Between two looks at what others have written, so that searches need not wait for a slow store."""
TOLD_EVERY_S = 60.0
"""Between two lines of the log on a store that does not answer."""
FORGET_EVERY_S = 60.0
"""Between two looks at which versions were removed, of which this machine then keeps no file."""
NO_ROOM_S = 60.0
"""After a compaction that the disk refused, until the next one."""
SMALL_SEARCH = 8.0
"""Queries of a search beside which others need not wait for a thread."""
QUERY_CHARACTERS = 1024
"""So many characters of a query, which are split into words, count as a further query."""


class ShardReplica:
    """Searches the collections of its shards, and writes to them. Any replica of a slice gives the same answer."""

    def __init__(
        self, source: VersionSource, settings: ServeConfig, deployed: str, slice_number: int, num_slices: int
    ) -> None:
        """Open the shards of the versions that are served; `deployed` is the one that the service was deployed with.

        Raises:
            BundleError: they are missing or damaged.
        """
        pass_over_imported()
        self._source, self._settings = source, settings
        self._slice = (slice_number, num_slices)
        self._metrics = ShardMetrics(slice_number)
        self._compact_from = self._forget_from = self._tell_from = 0.0
        self._large = LargeWork()
        self._indexes = VersionCache(self._load)
        self._indexes.preload(source.keys()[: settings.max_versions], key_of(source.default, deployed))
        # A thread, because compaction takes minutes of CPU and Ray's event loop must answer health checks meanwhile.
        for work, every_s in ((ShardReplica.tidy, TIDY_EVERY_S), (ShardReplica.follow, FOLLOW_S)):
            arguments = (weakref.ref(self), work, every_s)
            threading.Thread(target=_work_while_there, args=arguments, name=work.__name__, daemon=True).start()

    async def call(
        self,
        key: str,
        method: str,
        *arguments: Any,  # noqa: ANN401 - as the method has them
        call_format: int = 0,
    ) -> Any:  # noqa: ANN401
        """Run a method of INDEX_CALLS on the shards of a version, by its key; `Backend.call` has the types.

        Raises:
            ApiError: the caller is of another version of this code.
            ValueError: the method is not one of these, or what it raises for the arguments.
            ConfigError: there is no such task, or the document's shard is not here.
            DataError: vectors do not fit.
            BundleError: the version is missing or damaged.
            StorageError: the disk takes nothing; searches go on.
        """
        check_format(call_format)
        if method not in INDEX_CALLS:
            raise ValueError(f"{method!r:.200} is not a call of the index; there are {sorted(INDEX_CALLS)}")
        index = await self._indexes.get(key)
        began = time.perf_counter()
        # In a thread, because FAISS and the disk would hold up every other request of this replica's event loop.
        if method == OpenIndex.rank.__name__ and (work := search_work(*arguments)) > SMALL_SEARCH:
            answer = await self._large.run(work, INDEX_CALLS[method], index, *arguments)
        else:
            answer = await asyncio.to_thread(INDEX_CALLS[method], index, *arguments)
        if method == OpenIndex.rank.__name__:
            self._metrics.searched(time.perf_counter() - began)
        return answer

    async def prepare(self, key: str) -> None:
        """Open the shards of a version, by its key, and search them once.

        Raises:
            BundleError: they are missing or damaged.
        """
        index = await self._indexes.get(key)
        try:
            await asyncio.to_thread(_probe, index)
        except (RuntimeError, ValueError) as error:
            raise BundleError(f"version {split_key(key)[1]}: {error}") from error

    async def check_health(self) -> None:
        """A real search of every collection; an exception has the replica replaced."""
        for index in self._indexes.loaded():
            await asyncio.to_thread(_probe, index)

    def _load(self, key: str) -> OpenIndex:
        alias, version = split_key(key)
        manifest = read_manifest(self._source.place(version))
        shards = shards_of(*self._slice, manifest.num_shards)
        parts = [f"{shard_folder(Path(), shard).as_posix()}/" for shard in shards]
        bundle = self._source.bundle(version, parts)
        return OpenIndex.open(bundle, self._source.state(version, alias), shards)

    def tidy(self) -> None:
        """Compact what was written, adopt what others compacted, unload what is not served, give memory back."""
        try:
            self._indexes.unload(key_of(*named) for named in self._source.aliases().items())
            if time.monotonic() > self._forget_from:
                self._forget_from = time.monotonic() + FORGET_EVERY_S
                self._source.forget_removed()
        except EmbedderError as error:
            logger.error("%s", error)
        for index in self._indexes.loaded():
            self._tidy(index)
        return_freed_memory()

    def follow(self) -> None:
        """Take in what others have written."""
        for index in self._indexes.loaded():
            try:
                index.follow()
            except EmbedderError as error:
                if time.monotonic() > self._tell_from:
                    self._tell_from = time.monotonic() + TOLD_EVERY_S
                    logger.error("what others write is not seen: %s", error)

    def _tidy(self, index: OpenIndex) -> None:
        try:
            # First, because another replica may have compacted already, and then there is nothing to do here.
            index.adopt()
            may_compact = not self._settings.read_only and time.monotonic() > self._compact_from
            if may_compact and (compacted := index.compact(self._settings.compact_after_rows)):
                logger.info("compacted collections", extra={"collections": compacted})
            if may_compact and (folded := index.fold()):
                logger.info("made snapshots of logs", extra={"logs": folded})
            self._metrics.sizes(index)
        except StorageError as error:
            # Later, because on a full disk each attempt builds a collection in vain and takes the room of writes.
            self._compact_from = time.monotonic() + NO_ROOM_S
            logger.error("writes are not compacted: %s", error)
        except (EmbedderError, OSError, RuntimeError, ValueError) as error:
            # Logged and not raised: what is wrong with one version must not keep the others from being compacted.
            logger.error("the index cannot be tidied: %s", error)


def search_work(task: str, options: SearchOptions, query_QD: np.ndarray | None, texts: Sequence[str] | None) -> float:
    """How much a search is, in queries of a line; takes what `OpenIndex.rank` takes."""
    queries = len(texts or ()) if query_QD is None else len(query_QD)
    characters = 0 if options.mode == "dense" else sum(map(len, texts or ()))
    return queries + characters / QUERY_CHARACTERS


def _work_while_there(replica: weakref.ref[ShardReplica], work: Callable[[ShardReplica], None], every_s: float) -> None:
    """Do some work until nobody has the replica any more, whose files this thread would else keep open."""
    while True:
        time.sleep(every_s)
        if (there := replica()) is None:
            return
        work(there)
        del there


def _probe(index: OpenIndex) -> None:
    probe_QD = np.ones((1, index.manifest.dimension), dtype=np.float32)
    # A slice holds no shard of a version that has fewer of them than there are slices.
    for task in (task for task, collection in index.collections.items() if collection.shards):
        index.rank(task, SearchOptions(k=1), probe_QD, None)
