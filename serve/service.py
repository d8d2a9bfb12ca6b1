"""What the routes do, apart from HTTP and from Ray: limits, instructions, encoding, searching, writing, versions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from typing_extensions import Unpack

from embedder.config.cutting import PromptedText, prompted_text
from embedder.config.serve import ServeConfig
from embedder.config.tasks import Side, TaskSpec
from embedder.index.documents import DocumentName, first_by_name
from embedder.index.filters import Filter
from embedder.index.living import CollectionStats
from embedder.index.metadata_change import MetadataChange
from embedder.index.opened import OpenIndex, combine
from embedder.index.results import Hit, SearchResults, Shown, StoredDocument, stored_documents, too_large
from embedder.index.search_options import SearchOptions
from serve.access.audit import AuditLog
from serve.access.keys import Keys
from serve.backend import Backend, R, Ts, time_left
from serve.grouping import grouped
from serve.http_errors import ApiError
from serve.large_work import LargeWork
from serve.middleware.incoming import Traffic
from serve.reranking import Reranker
from serve.schemas.document_schemas import WrittenDocument
from serve.schemas.search_schemas import SearchFields, Timing
from serve.schemas.sent_vectors import unit_vectors
from serve.schemas.state_schemas import DeploymentState
from serve.search_limits import check_results
from serve.versions.missing_vectors import MissingVectors
from serve.versions.served import Served, Version

FRESH_S = 1.0
"""How long an answer about health, replicas or aliases holds, so that asking for it costs nothing."""
SHORTLY_S = 1.0
"""For going over to what the aliases name, where an answer need not wait for it."""
NAMES_AT_ONCE = 2048
"""Names of a page, where all that fit a filter are asked for."""
SPARE = 4
"""How many times the bytes of an answer each ranking of a shard may have."""

T = TypeVar("T")


class Service:
    """Everything behind the routes."""

    def __init__(self, settings: ServeConfig, tasks: Mapping[str, TaskSpec], served: Served, backend: Backend) -> None:
        """Begin with the versions that are served.

        Raises:
            ConfigError: the file of API keys holds none.
        """
        self.settings, self.tasks, self.served, self.backend = settings, tasks, served, backend
        self.keys = Keys(settings.api_keys_file) if settings.api_keys_file else None
        """Those that requests are asked for; None: everybody may do everything."""
        self.reranker = Reranker(settings, backend)
        self.traffic = Traffic()
        self.audit = AuditLog(settings.audit_file)
        self.large = LargeWork()
        self._answers: dict[str, tuple[float, asyncio.Task[Any]]] = {}
        self._following = asyncio.Lock()
        self._missing = MissingVectors(backend, is_on=not settings.read_only)

    def texts(self, given: str | list[str], name: str, most: int | None = None) -> list[str]:
        """The texts of a request, within the limits.

        Raises:
            ApiError: they are too many, or too long.
        """
        texts = [given] if isinstance(given, str) else given
        limit = self.settings.max_inputs if most is None else most
        if len(texts) > limit:
            raise ApiError(400, f"{name}: {len(texts)} texts; at most {limit}", param=name)
        longest = max(map(len, texts))
        if longest > self.settings.max_characters:
            raise ApiError(
                400, f"{name}: a text of {longest} characters; at most {self.settings.max_characters}", param=name
            )
        return texts

    def prompted(
        self, version: Version, task: str | None, side: Side, texts: Sequence[str], param: str = "task"
    ) -> list[PromptedText]:
        """Texts as the encoder reads them for a task; as they are where no task is named.

        Raises:
            ApiError: the version knows no such task, or the texts are too long together.
        """
        version.check_task(task, param)
        known = version.manifest.tasks
        prompted = [prompted_text("", text) if task is None else known[task].prompted(side, text) for text in texts]
        # Before tokens are made, which takes far longer than to count what they are made of.
        characters, most = sum(map(len, prompted)), self.settings.max_request_characters
        if characters > most:
            raise ApiError(
                400, f"{characters} characters in one request, instructions included; at most {most}; send fewer texts"
            )
        return prompted

    async def search(
        self,
        version: Version,
        task: str,
        fields: SearchFields,
        texts: list[str],
        vectors: Sequence[Sequence[float]] = (),
        share: int = 1,
    ) -> tuple[list[list[Hit]], Timing]:
        """The best documents of a task for each text, or each vector, over all shards, and how long they took.

        Args:
            share: how many searches share the bytes of an answer, and the characters for the reranker.

        Raises:
            ApiError: k is too large, there is no such task, no reranker, or a vector does not fit.
            DataError: the hits are too large, or the queries have too many words.
        """
        began = time.perf_counter()
        max_bytes = self.settings.max_answer_bytes // share
        check_results(fields, self.settings.max_results)
        if fields.rerank_from is not None:
            version.check_reranker()
        prompted = self.prompted(version, task, "query", texts)
        version.check_documents(task)
        query_QD = None
        if vectors:
            query_QD = unit_vectors(vectors, version.manifest.dimension, "vector")
        elif fields.mode != "lexical":
            query_QD = (await self.backend.encode(version.name, prompted, True)).vector_ND
        encoded = time.perf_counter()

        async def ranked(wanted: Filter | None, k: int) -> SearchResults:
            # A shard sends k hits, or more where rankings are fused, of which the answer holds only a part.
            shown = replace(fields.shown, max_bytes=SPARE * max_bytes)
            options = SearchOptions(
                k=k, mode=fields.mode, filter=wanted, parameters=fields.parameters, shown=shown, seconds=time_left()
            )
            parts = await self._of_all(version, OpenIndex.rank, task, options, query_QD, texts)
            results = await self.large.beside((len(texts) or len(vectors)) * k, combine, parts, options)
            # What the reranker puts in order is cut by its scores, in its order.
            kept = results if fields.rerank_from else results.part(fields.offset, fields.score_threshold)
            if kept.table.nbytes > max_bytes:
                raise too_large()
            return kept

        if fields.grouping is None:
            results = await ranked(fields.filter, fields.rerank_from or fields.k + fields.offset)
            hits = await self.large.beside(results.table.num_rows, results.hits)
        else:
            hits = [await grouped(ranked, fields.grouping, fields.k, fields.filter)]
        searched = time.perf_counter()
        ended = searched
        if fields.rerank_from is not None:
            hits = await self.reranker.ordered(version, task, fields, texts, hits, share)
            ended = time.perf_counter()
        times = {"encode": encoded - began, "search": searched - encoded, "rerank": ended - searched}
        return hits, Timing(total=1000 * (ended - began), **{stage: 1000 * taken for stage, taken in times.items()})

    async def documents(
        self, version: Version, task: str, names: Sequence[DocumentName], wanted: Filter | None, shown: Shown
    ) -> list[StoredDocument]:
        """Those of the documents that are there and fit a filter, in the order of their names.

        Raises:
            ApiError: there is no such task.
            DataError: they are too large together.
        """
        bounded = replace(shown, max_bytes=self.settings.max_answer_bytes)
        tables = await self._of_named(version, OpenIndex.documents, task, names, wanted, bounded)
        found = stored_documents(self._table(tables))
        place = {name: i for i, name in enumerate(names)}
        return sorted(found, key=lambda one: place[one.id, one.dataset])

    async def count(self, version: Version, task: str, wanted: Filter | None) -> int:
        """How many documents of a task fit a filter; None: all of them.

        Raises:
            ApiError: there is no such task.
        """
        version.check_documents(task)
        return sum(await self._of_all(version, OpenIndex.count, task, wanted))

    async def page(
        self,
        version: Version,
        task: str,
        after: DocumentName | None,
        limit: int,
        wanted: Filter | None,
        shown: Shown,
    ) -> list[StoredDocument]:
        """The first documents of a task, by id and dataset, that come after a name and fit a filter.

        Raises:
            ApiError: there is no such task.
            DataError: they are too large together.
        """
        version.check_documents(task)
        bounded = replace(shown, max_bytes=self.settings.max_answer_bytes)
        pages = await self._of_all(version, OpenIndex.page, task, after, limit, wanted, bounded)
        return stored_documents(first_by_name([self._table(pages)], limit))

    def _table(self, parts: Sequence[pa.Table]) -> pa.Table:
        table = pa.concat_tables(parts)
        if table.nbytes > self.settings.max_answer_bytes:
            raise too_large()
        return table

    async def upsert(self, version: Version, task: str, documents: Sequence[WrittenDocument]) -> None:
        """Encode those of the documents that come without a vector, and write all; they are found when this returns.

        Raises:
            ApiError: there is no such task, or a vector does not fit.
        """
        given = {i: one.vector for i, one in enumerate(documents) if one.vector is not None}
        plain = [i for i in range(len(documents)) if i not in given]
        vector_ND = np.empty((len(documents), version.manifest.dimension), dtype=np.float32)
        vector_ND[list(given)] = unit_vectors(list(given.values()), version.manifest.dimension, "documents")
        texts = self.prompted(version, task, "passage", [documents[i].whole_text for i in plain])
        if texts:
            vector_ND[plain] = (await self.backend.encode(version.name, texts, True)).vector_ND
        rows = [one if one.vector is None else one.model_copy(update={"vector": None}) for one in documents]
        parts = version.by_slice([document.id for document in documents], self.backend.num_slices)
        calls = [
            self.backend.call(
                part, version.key, OpenIndex.upsert, task, [rows[i] for i in positions], vector_ND[positions]
            )
            for part, positions in parts.items()
        ]
        await asyncio.gather(*calls)

    async def delete(
        self,
        version: Version,
        task: str,
        names: Sequence[DocumentName],
        within: Mapping[str, str] | None = None,
        wanted: Filter | None = None,
    ) -> int:
        """Remove those of the documents that belong to `within` and fit a filter, if these are given.

        Returns how many there were.

        Raises:
            ApiError: there is no such task.
        """
        return sum(await self._of_named(version, OpenIndex.delete, task, names, within, wanted))

    async def change(
        self,
        version: Version,
        task: str,
        names: Sequence[DocumentName],
        change: MetadataChange,
        within: Mapping[str, str] | None = None,
        wanted: Filter | None = None,
    ) -> int:
        """Change the metadata of those of the documents that belong to `within` and fit a filter, if these are given.

        Returns how many there were.

        Raises:
            ApiError: there is no such task.
            DataError: a document would have too many fields; nothing of its shard was written.
        """
        return sum(await self._of_named(version, OpenIndex.change, task, names, change, within, wanted))

    async def stats(self, version: Version, wanted: Filter | None = None) -> dict[str, list[CollectionStats]]:
        """Sizes of the collections of all slices, by task; with a filter of the documents that fit it."""
        parts = await self._of_all(version, OpenIndex.stats, wanted)
        return {task: [part[task] for part in parts] for task in version.manifest.collections}

    async def names(self, version: Version, task: str, wanted: Filter | None) -> list[DocumentName]:
        """The names of all documents of a task that fit a filter, of which one call is to change each.

        Raises:
            ApiError: there is no such task, or they are more than one call may change.
        """
        count, most = await self.count(version, task, wanted), self.settings.max_changed
        if count > most:
            raise ApiError(
                400, f"filter: {count} documents fit; at most {most} a call (serve.max_changed)", param="filter"
            )
        names: list[DocumentName] = []
        while True:
            after, shown = names[-1] if names else None, Shown(payload=False)
            pages = await self._of_all(version, OpenIndex.page, task, after, NAMES_AT_ONCE, wanted, shown)
            page = first_by_name(pages, NAMES_AT_ONCE)
            names += zip(page["id"].to_pylist(), page["dataset"].to_pylist(), strict=True)
            if page.num_rows < NAMES_AT_ONCE:
                return names

    async def _of_all(
        self, version: Version, method: Callable[[OpenIndex, Unpack[Ts]], R], *arguments: Unpack[Ts]
    ) -> list[R]:
        """Ask every slice of a version; returns the answers."""
        slices = version.slices(self.backend.num_slices)
        return await asyncio.gather(*(self.backend.call(part, version.key, method, *arguments) for part in slices))

    async def _of_named(
        self,
        version: Version,
        method: Callable[[OpenIndex, str, list[DocumentName], Unpack[Ts]], R],
        task: str,
        names: Sequence[DocumentName],
        *arguments: Unpack[Ts],
    ) -> list[R]:
        """What the slices answer that hold some documents, each asked for its own of the names.

        Raises:
            ApiError: there is no such task.
        """
        version.check_documents(task)
        parts = version.by_slice([document_id for document_id, _ in names], self.backend.num_slices)
        return await asyncio.gather(
            *(
                self.backend.call(part, version.key, method, task, [names[i] for i in own], *arguments)
                for part, own in parts.items()
            )
        )

    async def follow(self, seconds: float | None = None) -> None:
        """Go over to what the aliases name now; after so many seconds leave it to the next look.

        Loading a version may take minutes, and goes on meanwhile.
        """
        # Cancelled at the timeout, but nothing is lost: replicas go on loading, and vectors are made by a task.
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._follow(), seconds)

    async def _follow(self) -> None:
        # One at a time: the loop of the ingress and requests follow too, and two would load a version twice.
        async with self._following:
            await self.served.follow(self.backend.prepare, self._missing.are_made)
            for _, version in self.served.all():
                await self._missing.are_made(version)

    async def known(self, find: Callable[[], Version]) -> Version:
        """What `find` finds among the versions that are served, after a look at the aliases if it finds nothing.

        Another ingress, or the job `index`, may have made the alias just now. All who ask share one look a second: a
        client who asks for names that nobody has cannot make it more.

        Raises:
            ApiError: there is none.
        """
        # The error of the end is raised outside of this, so that it does not carry the first one along.
        with suppress(ApiError):
            return find()
        # A look that fails leaves the name unknown; the loop of the ingress makes it again and logs why.
        await asyncio.gather(self._fresh("aliases", lambda: self.follow(SHORTLY_S)), return_exceptions=True)
        return find()

    async def check_health(self, version: Version) -> None:
        """A real pass through the encoder and every shard; an answer holds for a second, and is asked for once.

        Raises:
            ApiError: a part does not answer.
        """
        await self._fresh(f"version {version.key}", lambda: self._pass_through(version))

    async def behind_s(self, version: Version) -> float:
        """Seconds since the replicas of a version knew all that had been written, as one of each slice said."""
        return max(await self._fresh(f"age of {version.key}", lambda: self._of_all(version, OpenIndex.age_s)))

    async def deployments(self) -> list[DeploymentState]:
        """The replicas of every deployment, by state, as Ray said within the last second."""
        return await self._fresh("deployments", self.backend.deployments)

    async def metrics(self) -> str:
        """The metrics of the service, as Prometheus reads them, of the last second."""
        return await self._fresh("metrics", self.backend.metrics)

    async def _fresh(self, name: str, ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
        asked, known = self._answers.get(name, (0.0, None))
        if known is None or (known.done() and time.monotonic() - asked > FRESH_S):
            known = asyncio.create_task(ask())
            self._answers[name] = (time.monotonic(), known)
        # Shielded: the client of one request may hang up while others wait for the same answer.
        answer: T = await asyncio.shield(known)
        return answer

    async def _pass_through(self, version: Version) -> None:
        for task in list(version.manifest.collections)[:1]:
            await self.search(version, task, SearchFields(k=1), ["ready"])
