"""Kills under load: each deployment of the layout and the controller in turn, two replicas of each, writes and swaps.

Clients search and embed and try once more what failed. One writes documents one by one and remembers which were
acknowledged; another moves the alias there and back. Each failure is put down to the kill before it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np

from benchmarks.serving_faults import Found, Ours
from benchmarks.serving_index import ALIAS, TASK
from benchmarks.serving_load import CLOSE
from benchmarks.serving_systems import System

KINDS = ("encoder", "shard", "ingress", "service", "controller")
"""Of deployments: those that the layout has."""
ROUNDS = 2
EVERY_S = 15.0
CLIENTS = 8
RETRY_S = 0.5
"""Before a client tries again, as SDKs wait."""
WRITE_EVERY_S = 0.25
SWAP_EVERY_S = 20.0
SETTLED_S = 90.0
"""For the writes of one version to be in the other, after the last kill."""
SLOW_MS = 1000.0


@dataclass(frozen=True)
class Expecting:
    """A request, and the answer of each version, by what answers say of their index."""

    path: str
    body: dict[str, Any]
    ids: dict[str, list[str]] = field(default_factory=dict)
    vector: list[float] | None = None

    def holds(self, answer: dict[str, Any]) -> bool:
        """True for the answer of the version that it says it is of."""
        if self.vector is None:
            return [hit["id"] for hit in answer["results"][0]] == self.ids[answer["index_version"]]
        vector = np.asarray(answer["data"][0]["embedding"])
        return bool(np.abs(vector - np.asarray(self.vector)).max() < CLOSE)


@dataclass
class Watched:
    """What clients saw."""

    took_ms: list[float] = field(default_factory=list)
    """From the first try to the answer."""
    slow: list[tuple[float, float, str]] = field(default_factory=list)
    """Time of day, milliseconds and path of answers above SLOW_MS."""
    failed: list[tuple[float, str]] = field(default_factory=list)
    """Time of day and status of first tries that failed."""
    failed_again: list[tuple[float, str]] = field(default_factory=list)
    """The same of second tries."""
    wrong: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    """Ids of documents that were acknowledged."""
    swaps: Counter[str] = field(default_factory=Counter)
    """Moves of the alias by status."""


class _Clients:
    def __init__(self, system: System, asks: list[Expecting], name: str) -> None:
        self._system, self._asks, self._name = system, asks, name
        self.watched, self.ended = Watched(), threading.Event()

    def run(self) -> None:
        asyncio.run(self._all())

    async def _all(self) -> None:
        headers = {"Authorization": f"Bearer {self._system.key}"}
        timeout, connector = aiohttp.ClientTimeout(total=60), aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector) as session:
            self._session = session
            clients = [self._read(number) for number in range(CLIENTS)]
            await asyncio.gather(*clients, self._write(), self._swap())

    async def _read(self, number: int) -> None:
        turn = 7919 * number
        while not self.ended.is_set():
            ask = self._asks[turn % len(self._asks)]
            turn += 1
            answer = await self._twice(ask.path, ask.body)
            if answer is not None and not ask.holds(answer):
                self.watched.wrong.append(f"{ask.body}: {str(answer)[:200]}")

    async def _write(self) -> None:
        number = 0
        while not self.ended.is_set():
            document = {"id": f"{self._name}-{number}", "dataset": self._name, "text": f"note {number} of {self._name}"}
            body = {"task": TASK, "documents": [document]}
            if await self._twice(f"/v1/indexes/{ALIAS}/documents", body) is not None:
                self.watched.written.append(document["id"])
            number += 1
            await asyncio.sleep(WRITE_EVERY_S)

    async def _swap(self) -> None:
        versions = ["v2", "v1"]
        while not self.ended.is_set():
            await asyncio.sleep(SWAP_EVERY_S)
            status, _ = await self._once("PUT", f"/v1/indexes/{ALIAS}", {"version": versions[0]})
            # Whatever it says the alias may have moved: the other direction is next.
            versions.reverse()
            self.watched.swaps[status] += 1

    async def _twice(self, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """The answer to the first or second try."""
        began = time.perf_counter()
        for failures in (self.watched.failed, self.watched.failed_again):
            status, answer = await self._once("POST", path, body)
            if status == "200":
                took = 1000 * (time.perf_counter() - began)
                self.watched.took_ms.append(took)
                if took > SLOW_MS:
                    self.watched.slow.append((time.time(), round(took), path))
                return answer
            failures.append((time.time(), f"{status}: {answer}"))
            await asyncio.sleep(RETRY_S)
        return None

    async def _once(self, method: str, path: str, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        try:
            async with self._session.request(method, self._system.url + path, json=body) as response:
                content = await response.read()
                is_json = response.content_type == "application/json"
                return str(response.status), await response.json() if is_json else {"text": content[:200].decode()}
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            return "lost", {"text": repr(error)[:200]}


def kill_part(ours: Ours, texts: list[str]) -> Found:
    """One kill every 15 s, the kinds in turn."""
    name = f"kills{int(time.time())}"
    settings = {"max_results": 1000, "min_replicas": 2, "max_replicas": 2, "max_ingress_replicas": 2}
    with ours(cpus_per_replica=1, **settings) as system:
        clients = _Clients(system, _expecting(system, texts[:40]), name)
        asking = threading.Thread(target=clients.run)
        asking.start()
        kills: list[tuple[float, str]] = []
        running = tuple(system.tell("memory"))
        for kind in [kind for kind in KINDS if any(name.startswith(kind) for name in running)] * ROUNDS:
            time.sleep(EVERY_S)
            kills.append((time.time(), kind))
            print(f"  {system.tell('kill', names=[kind])} is killed", flush=True)
        time.sleep(EVERY_S)
        clients.ended.set()
        asking.join()
        lost = _lost(system, name, clients.watched.written)
    return _figures(clients.watched, kills, lost)


def _expecting(system: System, texts: list[str]) -> list[Expecting]:
    """Embeddings and searches of the passages alone, with what each version answers while nothing happens."""
    passages = {"must": [{"key": "dataset", "match": {"value": "nq"}}]}
    asks = []
    for text in texts:
        search = {"query": text, "task": TASK, "k": 3, "filter": passages}
        (embed,) = system.embed([text])
        vector = system.ask("POST", embed.path, embed.body)["data"][0]["embedding"]
        asks += [Expecting("/v1/search", search), Expecting(embed.path, embed.body, vector=vector)]
    for version in ("v2", "v1"):
        moved = system.ask("PUT", f"/v1/indexes/{ALIAS}", {"version": version})["index_version"]
        for ask in asks:
            # The other ingress may follow a second later.
            while ask.vector is None and moved not in ask.ids:
                answer = system.ask("POST", ask.path, ask.body)
                if answer["index_version"] == moved:
                    ask.ids[moved] = [hit["id"] for hit in answer["results"][0]]
    return asks


def _lost(system: System, name: str, written: list[str]) -> list[str]:
    """Acknowledged documents that are not found in one of the versions, once there was time to replay them."""
    wanted = {"must": [{"key": "dataset", "match": {"value": name}}]}
    body: dict[str, object] = {"query": "note", "task": TASK, "k": 1000, "filter": wanted}
    until, lost = time.monotonic() + SETTLED_S, set(written)
    while lost and time.monotonic() < until:
        found = system.ask("POST", "/v1/search", body)["results"][0]
        lost = set(written) - {hit["id"] for hit in found}
        time.sleep(1)
    return sorted(lost)


def _figures(watched: Watched, kills: list[tuple[float, str]], lost: list[str]) -> Found:
    """What is kept and printed; a failure belongs to the kill before it."""

    def after(when: float) -> str:
        return next((kind for time_, kind in reversed(kills) if time_ <= when), "none")

    def since(when: float) -> float:
        return round(when - max((time_ for time_, _ in kills if time_ <= when), default=when), 1)

    failed, again = (Counter(after(when) for when, _ in many) for many in (watched.failed, watched.failed_again))
    slow = Counter(after(when) for when, _, _ in watched.slow)
    p50, p99 = (float(np.percentile(watched.took_ms, share)) for share in (50, 99))
    counted = sum(count for kind, count in failed.items() if kind != "ingress") + sum(again.values())
    print(f"  {len(watched.took_ms)} answered, {len(watched.written)} documents written, swaps {dict(watched.swaps)}")
    print(
        f"  failed first tries {dict(failed)}, second tries {dict(again)}; wrong {len(watched.wrong)}; lost {lost[:3]}"
    )
    print(f"  p50 {p50:.0f} ms, p99 {p99:.0f} ms; above {SLOW_MS:.0f} ms after {dict(slow)}", flush=True)
    return {
        "kill_failed": counted,
        "kill_wrong": len(watched.wrong),
        "kill_lost_writes": len(lost),
        "kill_p99_ms": round(p99, 1),
        "p50_ms": round(p50, 1),
        "longest_ms": round(max(watched.took_ms), 1),
        "answered": len(watched.took_ms),
        "written": len(watched.written),
        "swaps": dict(watched.swaps),
        "failed_once_after": dict(failed),
        "failed_twice_after": dict(again),
        "slow_after": dict(slow),
        "slow": [
            {"after": after(when), "since_s": since(when), "ms": took, "path": path}
            for when, took, path in watched.slow
        ][:60],
        "failures": [{"after": after(when), "since_s": since(when)} for when, _ in watched.failed][:60],
        "killed": [kind for _, kind in kills],
        "examples": [text[:300] for _, text in (watched.failed_again + watched.failed)[:8]] + watched.wrong[:3],
    }
