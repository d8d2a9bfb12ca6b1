"""The service as the holder of one key may use it: the only way from the routes to the service.

A version that it hands out has the tasks of the key alone, so that no check or message behind it knows others. Aliases,
tasks and documents beyond the scope are answered like those that do not exist.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from embedder.config.cutting import PromptedText
from embedder.config.serve import ServeConfig
from embedder.config.tasks import Side, TaskSpec
from embedder.data.metadata import DATASET_FIELD
from embedder.index.documents import DocumentName
from embedder.index.filters import Filter
from embedder.index.living import CollectionStats
from embedder.index.metadata_change import MetadataChange
from embedder.index.results import Hit, Shown, StoredDocument
from serve.access.audit import Caller
from serve.backend import Encoded, Pair
from serve.http_errors import ApiError
from serve.schemas.document_schemas import WrittenDocument
from serve.schemas.search_schemas import SearchFields, Timing
from serve.service import Service
from serve.versions.served import NamedVersions, Served, Version


class ScopedVersions(NamedVersions):
    """The aliases that a caller may use, each with its version."""

    def __init__(self, served: Served, caller: Caller) -> None:
        self._served, self._caller = served, caller

    @property
    def default(self) -> str:
        """The service's default alias, or else the first that the caller may use."""
        known = [alias for alias, _ in self.all()] or sorted(self._caller.scope.indexes or {self._served.default})
        return known[0]

    def all(self) -> list[tuple[str, Version]]:
        """Alias and version, the default one first."""
        scope = self._caller.scope
        return [
            (alias, _with_tasks_of(version, self._caller))
            for alias, version in self._served.all()
            if scope.has_index(alias)
        ]

    def named(self, alias: str | None, param: str = "index") -> Version:
        """The version that an alias serves; null means the default.

        Raises:
            ApiError: there is no such index, or the caller may not use it.
        """
        if alias is not None:
            self._caller.index = alias
            if not self._caller.scope.has_index(alias):
                self._caller.refused = "index"
        return super().named(alias, param)

    def model(self, name: str) -> Version:
        """The version whose model has a name.

        Raises:
            ApiError: there is no such model, or the caller may not use it.
        """
        try:
            return super().model(name)
        except ApiError:
            # Asked of the whole service only to note it: the answer is that of a name which nobody has.
            if name in self._served.models():
                self._caller.index, self._caller.refused = name, "index"
            raise


class ScopedService:
    """What the routes call; everything that reads or writes documents adds the caller's scope."""

    def __init__(self, service: Service, caller: Caller) -> None:
        self._service, self._caller, self._scope = service, caller, caller.scope
        self.settings: ServeConfig = service.settings
        self.tasks: Mapping[str, TaskSpec] = service.tasks
        self.served = ScopedVersions(service.served, caller)
        # These know no version and no document.
        self.texts = service.texts
        self.deployments = service.deployments
        self.follow = service.follow
        self.large = service.large

    async def named(self, alias: str | None, param: str = "index") -> Version:
        """The version that an alias serves, be it new; null means the default.

        Raises:
            ApiError: there is no such index, or the caller may not use it.
        """
        return await self._service.known(lambda: self.served.named(alias, param))

    async def model(self, name: str) -> Version:
        """The version whose model has a name, be it new.

        Raises:
            ApiError: there is no such model, or the caller may not use it.
        """
        return await self._service.known(lambda: self.served.model(name))

    def prompted(
        self, version: Version, task: str | None, side: Side, texts: Sequence[str], param: str = "task"
    ) -> list[PromptedText]:
        """Texts as the encoder reads them for a task; as they are where no task is named.

        Raises:
            ApiError: there is no such task, or the caller may not use it.
        """
        self._note_task(task)
        return self._service.prompted(version, task, side, texts, param)

    def pairs(self, version: Version, task: str | None, query: str, texts: Sequence[str]) -> list[Pair]:
        """A query with each of some texts as the reranker reads them for a task, if one is named.

        Raises:
            ApiError: there is no such task, or the caller may not use it.
        """
        self._note_task(task)
        return self._service.reranker.pairs(version, task, query, texts)

    async def score(self, version: Version, pairs: list[Pair], truncate: bool, param: str) -> Encoded:
        """The reranker's score of each pair.

        Raises:
            ApiError: they are too many, or too long together.
        """
        return await self._service.reranker.score(version, pairs, truncate, param)

    async def encode(self, version: Version, texts: list[PromptedText], truncate: bool) -> Encoded:
        """The vectors of texts by the model of a version."""
        return await self._service.backend.encode(version.name, texts, truncate)

    async def search(
        self,
        version: Version,
        task: str,
        fields: SearchFields,
        texts: list[str],
        vectors: Sequence[Sequence[float]] = (),
        share: int = 1,
    ) -> tuple[list[list[Hit]], Timing]:
        """The best of the caller's documents of a task for each text or vector, and how long they took.

        Raises:
            ApiError: k is too large, there is no such task, no index for the mode, or a vector does not fit.
        """
        self._note_task(task)
        narrowed = fields.model_copy(update={"filter": self._scope.narrowed(fields.filter)})
        answers, timing = await self._service.search(version, task, narrowed, texts, vectors, share)
        return [[self._scope.shown(hit) for hit in hits] for hits in answers], timing

    async def documents(
        self, version: Version, task: str, names: Sequence[DocumentName], shown: Shown
    ) -> list[StoredDocument]:
        """Those of the documents that are there and the caller's, in the order of their names.

        Raises:
            ApiError: there is no such task.
        """
        self._note_task(task)
        stored = self._stored_names(names)
        found = await self._service.documents(version, task, stored, self._scope.filter, shown)
        return [self._scope.shown(one) for one in found]

    async def count(self, version: Version, task: str, wanted: Filter | None) -> int:
        """How many of the caller's documents of a task fit a filter.

        Raises:
            ApiError: there is no such task.
        """
        self._note_task(task)
        return await self._service.count(version, task, self._scope.narrowed(wanted))

    async def page(
        self,
        version: Version,
        task: str,
        after: DocumentName | None,
        limit: int,
        wanted: Filter | None,
        shown: Shown,
    ) -> tuple[list[StoredDocument], DocumentName | None]:
        """The caller's documents that come after a stored name, and that of the last one if there are more.

        Raises:
            ApiError: there is no such task.
        """
        self._note_task(task)
        # One more, which tells whether there is another page.
        found = await self._service.page(version, task, after, limit + 1, self._scope.narrowed(wanted), shown)
        last = (found[limit - 1].id, found[limit - 1].dataset) if len(found) > limit else None
        return [self._scope.shown(one) for one in found[:limit]], last

    async def upsert(self, version: Version, task: str, documents: Sequence[WrittenDocument]) -> int:
        """Encode and write documents as the caller's; returns how many, of those of one name the last one.

        Raises:
            ApiError: there is no such task, or a document says that it is another tenant's.
        """
        self._note_writes(version, task, len(documents))
        with self._noting_where():
            stored = self._scope.stored(documents)
        # Last wins, before anything is encoded for nothing.
        last = list({document.name: document for document in stored}.values())
        self._caller.documents = len(last)
        await self._service.upsert(version, task, last)
        if self._scope.where:
            # What is the caller's under the same name and came with the corpus, or from an unlimited key, is replaced.
            # Afterwards, so that a fault between the two leaves both and not none; writing again puts that right.
            mine = self._scope.where.get(DATASET_FIELD, "")
            names = [(document.id, document.dataset or mine) for document in documents]
            await self._service.delete(version, task, names, self._scope.where)
        return len(last)

    async def delete(self, version: Version, task: str, chosen: Sequence[DocumentName] | Filter) -> int:
        """Remove those of the documents, by name or all that fit a filter, that are the caller's; returns how many.

        Raises:
            ApiError: there is no such task, or more documents fit than one call may change.
        """
        deleted, within = 0, self._scope.where or None
        async for names, wanted in self._chosen(version, task, chosen):
            deleted += await self._service.delete(version, task, names, within, wanted)
        return deleted

    async def change(
        self, version: Version, task: str, chosen: Sequence[DocumentName] | Filter, change: MetadataChange
    ) -> int:
        """Change the metadata of those of the documents that are the caller's; returns how many there were.

        Raises:
            ApiError: there is no such task, more documents fit than one call may change, or the change would give
                documents to another tenant.
        """
        with self._noting_where():
            own = self._scope.changed(change)
        changed, within = 0, self._scope.where or None
        async for names, wanted in self._chosen(version, task, chosen):
            changed += await self._service.change(version, task, names, own, within, wanted)
        return changed

    async def _chosen(
        self, version: Version, task: str, chosen: Sequence[DocumentName] | Filter
    ) -> AsyncIterator[tuple[Sequence[DocumentName], Filter | None]]:
        """Documents that a call may touch, some at a time, with the filter that each must still fit when it is."""
        if not isinstance(chosen, Filter):
            self._note_writes(version, task, len(chosen))
            yield self._stored_names(chosen), None
            return
        self._note_writes(version, task, 0)
        wanted = self._scope.narrowed(chosen)
        names = await self._service.names(version, task, wanted)
        self._caller.documents = len(names)
        for first in range(0, len(names), self.settings.max_inputs):
            yield names[first : first + self.settings.max_inputs], wanted

    def _stored_names(self, names: Sequence[DocumentName]) -> list[DocumentName]:
        """The names under which documents of the caller may be stored."""
        return self._scope.stored_names(names) if self._scope.where else list(dict.fromkeys(names))

    @contextmanager
    def _noting_where(self) -> Iterator[None]:
        """Note a refusal because documents would be another tenant's."""
        try:
            yield
        except ApiError as error:
            self._caller.refused = "where" if error.status == 403 else None
            raise

    async def stats(self, version: Version) -> dict[str, list[CollectionStats]]:
        """Sizes of the collections of all shards, by task; of the caller's documents alone."""
        return await self._service.stats(version, self._scope.filter)

    @property
    def sees_all_documents(self) -> bool:
        return not self._scope.where

    def versions(self) -> list[str]:
        """Names of the versions that there are, or that the caller's aliases serve: a name may tell of others."""
        source = self._service.served.source
        if self._scope.is_limited or not source.is_catalog:
            return sorted({version.name for _, version in self.served.all()})
        return source.catalog.versions()

    async def check_health(self, version: Version) -> None:
        """A real pass through the encoder and every shard.

        Raises:
            ApiError: a part does not answer.
        """
        await self._service.check_health(version)

    async def behind_s(self, version: Version) -> float:
        """Seconds since the replicas of a version knew all that had been written."""
        return await self._service.behind_s(version)

    async def metrics(self) -> str:
        """What the service counts, whose labels name aliases and tasks.

        Raises:
            ApiError: the caller has a scope.
        """
        self._refuse_scope()
        return await self._service.metrics()

    def whole(self, index: str, version: str | None = None) -> Service:
        """The service itself, for moving an alias.

        Raises:
            ApiError: the caller has a scope, beyond which an alias could be moved.
        """
        self._caller.index, self._caller.version = index, version
        self._refuse_scope()
        return self._service

    def _refuse_scope(self) -> None:
        if self._scope.is_limited:
            self._caller.refused = "scope"
            raise ApiError(403, "this needs a key without a scope")

    def _note_task(self, task: str | None) -> None:
        self._caller.task = task
        if task is not None and not self._scope.has_task(task):
            self._caller.refused = "task"

    def _note_writes(self, version: Version, task: str, documents: int) -> None:
        """Note a write, and refuse a task without documents before a shard names all that it has.

        Raises:
            ApiError: there is no such task.
        """
        self._note_task(task)
        self._caller.documents = documents
        # A task that the version does not know at all is refused like that of a search, by `prompted`.
        if task in version.manifest.tasks:
            version.check_documents(task)


def _with_tasks_of(version: Version, caller: Caller) -> Version:
    scope = caller.scope
    if scope.tasks is None:
        return version
    manifest = version.manifest
    tasks = {task: how for task, how in manifest.tasks.items() if scope.has_task(task)}
    collections = {task: size for task, size in manifest.collections.items() if scope.has_task(task)}
    return replace(version, manifest=manifest.model_copy(update={"tasks": tasks, "collections": collections}))
