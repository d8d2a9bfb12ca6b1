"""What the routes do, apart from HTTP and from Ray: limits, instructions, encoding, searching, writing, versions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from embedder.config.cutting import PromptedText, prompted_text
from embedder.config.serve import ServeConfig
from embedder.config.tasks import Side, TaskSpec
from embedder.index.documents import Document, DocumentName
from embedder.index.filters import Filter
from embedder.index.living import CollectionStats
from embedder.index.opened import OpenIndex, combine
from embedder.index.results import Hit, Shown, too_large
from embedder.index.search_options import SearchOptions
from serve.access.audit import AuditLog
from serve.access.keys import Keys
from serve.backend import Backend, time_left
from serve.http_errors import ApiError
from serve.middleware.incoming import Traffic
from serve.schemas.search_schemas import SearchFields, Timing
from serve.schemas.state_schemas import DeploymentState
from serve.versions.served import Served, Version
from serve.versions.write_replay import WriteReplayer

FRESH_S = 1.0
"""How long an answer about health, replicas or aliases holds, so that asking for it costs nothing."""
SHORTLY_S = 1.0
"""For going over to what the aliases name, where an answer need not wait for it."""
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
        self.traffic = Traffic()
        self.audit = AuditLog(settings.audit_file)
        self._answers: dict[str, tuple[float, asyncio.Task[Any]]] = {}
        self._following = asyncio.Lock()
        self._replayer = WriteReplayer(backend, served.source, settings.timeout_s, is_on=settings.replay_writes)

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
        known = version.manifest.tasks
        if task is not None and task not in known:
            raise ApiError(400, f"task {task!r:.200}: known are {sorted(known)}", param=param)
        prompted = [prompted_text("", text) if task is None else known[task].prompted(side, text) for text in texts]
        # Before tokens are made, which takes far longer than to count what they are made of.
        characters, most = sum(map(len, prompted)), self.settings.max_request_characters
        if characters > most:
            raise ApiError(
                400, f"{characters} characters in one request, instructions included; at most {most}; send fewer texts"
            )
        return prompted

    async def search(
        self, version: Version, task: str, fields: SearchFields, texts: list[str]
    ) -> tuple[list[list[Hit]], Timing]:
        """The best documents of a task for each text, over all shards, and how long they took.

        Raises:
            ApiError: k is too large, there is no such task, or no index for the mode.
            DataError: the hits are too large, or the queries have too many words.
        """
        began = time.perf_counter()
        if fields.k > self.settings.max_results:
            raise ApiError(400, f"k {fields.k}: at most {self.settings.max_results}", param="k")
        prompted = self.prompted(version, task, "query", texts)
        version.check_documents(task)
        options = SearchOptions(
            k=fields.k,
            mode=fields.mode,
            filter=fields.filter,
            parameters=fields.parameters,
            # A shard sends k hits, or more where rankings are fused, of which the answer holds only a part.
            shown=Shown(payload=fields.shows_payload, max_bytes=SPARE * self.settings.max_answer_bytes),
        )
        query_QD = None
        if fields.mode != "lexical":
            query_QD = (await self.backend.encode(version.name, prompted, True)).vector_ND
        encoded = time.perf_counter()
        timed = options.model_copy(update={"seconds": time_left()})
        calls = [
            self.backend.call(part, version.name, OpenIndex.rank, task, timed, query_QD, texts)
            for part in version.slices(self.backend.num_slices)
        ]
        results = combine(await asyncio.gather(*calls), options)
        if results.table.nbytes > self.settings.max_answer_bytes:
            raise too_large()
        hits = results.hits()
        ended = time.perf_counter()
        timing = Timing(encode=1000 * (encoded - began), search=1000 * (ended - encoded), total=1000 * (ended - began))
        return hits, timing

    async def upsert(self, version: Version, task: str, documents: Sequence[Document]) -> None:
        """Encode documents and write them; they are found when this returns.

        Raises:
            ApiError: there is no such task.
        """
        texts = self.prompted(version, task, "passage", [document.whole_text for document in documents])
        vector_ND = (await self.backend.encode(version.name, texts, True)).vector_ND
        parts = version.by_slice([document.id for document in documents], self.backend.num_slices)
        calls = [
            self.backend.call(
                part, version.name, OpenIndex.upsert, task, [documents[i] for i in positions], vector_ND[positions]
            )
            for part, positions in parts.items()
        ]
        await asyncio.gather(*calls)

    async def delete(
        self, version: Version, task: str, names: Sequence[DocumentName], within: Mapping[str, str] | None = None
    ) -> int:
        """Remove documents, of those that belong to `within` if it is given; returns how many there were.

        Raises:
            ApiError: there is no such task.
        """
        self.prompted(version, task, "passage", [])
        parts = version.by_slice([document_id for document_id, _ in names], self.backend.num_slices)
        calls = [
            self.backend.call(part, version.name, OpenIndex.delete, task, [names[i] for i in positions], within)
            for part, positions in parts.items()
        ]
        return sum(await asyncio.gather(*calls))

    async def stats(self, version: Version, wanted: Filter | None = None) -> dict[str, list[CollectionStats]]:
        """Sizes of the collections of all shards, by task; with a filter of the documents that fit it."""
        slices = version.slices(self.backend.num_slices)
        calls = [self.backend.call(part, version.name, OpenIndex.stats, wanted) for part in slices]
        parts = await asyncio.gather(*calls)
        return {task: [stats for part in parts for stats in part[task]] for task in version.manifest.collections}

    async def follow(self, seconds: float | None = None) -> None:
        """Go over to what the aliases name now; after so many seconds leave it to the next look.

        Loading a version may take minutes, and goes on meanwhile.
        """
        # Cancelled at the timeout, but nothing is lost: replicas go on loading, and the replay is a task of its own.
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._follow(), seconds)

    async def _follow(self) -> None:
        # One at a time: the loop of the ingress and requests follow too, and two would load a version twice.
        async with self._following:
            await self.served.follow(self.backend.prepare, self._replayer.may_move)
            self._replayer.look(self.served)

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
        await self._fresh(f"version {version.name}", lambda: self._pass_through(version))

    async def deployments(self) -> list[DeploymentState]:
        """The replicas of every deployment, by state, as Ray said within the last second."""
        return await self._fresh("deployments", self.backend.deployments)

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
