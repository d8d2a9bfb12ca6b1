"""Load from a process of its own: clients in a closed loop, or requests at a fixed rate.

python -m benchmarks.serving_load < SPEC.json > FOUND.json
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import uvloop

from benchmarks.http_connections import Connections

CLOSE = 1e-4
"""By how much a component of a vector may differ from the expected one."""


@dataclass(frozen=True)
class Ask:
    """One request, and what its answer must hold."""

    path: str
    body: dict[str, Any]
    ids: list[str] | None = None
    """Of the hits of the first query, in order."""
    vector: list[float] | None = None
    """Of the first text."""


@dataclass(frozen=True)
class Spec:
    """Who asks what, and for how long."""

    url: str
    asks: list[Ask]
    """Each client goes round them from a place of its own."""
    clients: int = 1
    """With `rate`: the most requests that are in flight."""
    seconds: float = 5.0
    warm_s: float = 1.0
    """Before what counts begins."""
    rate: float | None = None
    """Requests a second, whatever is answered; null: each client waits for its answer."""
    requests: int | None = None
    """Stop after so many, or null."""
    key: str = ""
    timeout_s: float = 60.0
    retries: int = 0
    """How often a client tries again what was refused or failed, after the time that it is told."""


@dataclass
class Load:
    """What was answered."""

    seconds: float = 0.0
    statuses: dict[str, int] = field(default_factory=dict)
    """Answers by status; `lost` for those that never came."""
    wrong: int = 0
    """Answers of status 200 that do not hold what they must."""
    ok_ms: list[float] = field(default_factory=list)
    refused_ms: list[float] = field(default_factory=list)
    began_s: list[float] = field(default_factory=list)
    """Of the answers in `ok_ms`, since `start_at`."""
    start_at: float = 0.0
    """When what counts began, by `time.time`."""
    examples: list[str] = field(default_factory=list)
    """Of answers that failed."""
    sent_rate: float = 0.0
    """Tries a second that went out."""
    cores: float = 0.0
    """Processor time over time that asking and checking took: what the machine had less for the server."""

    @property
    def ok(self) -> int:
        """Answers of status 200."""
        return len(self.ok_ms)

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return self.ok / self.seconds

    @property
    def failed(self) -> int:
        """All others."""
        return sum(count for status, count in self.statuses.items() if status != "200")

    def percentile(self, share: float) -> float:
        """Milliseconds."""
        return float(np.percentile(self.ok_ms, share)) if self.ok_ms else float("nan")

    def figures(self) -> dict[str, Any]:
        """What is kept."""
        return {
            "rps": round(self.rate, 1),
            "p50_ms": round(self.percentile(50), 2),
            "p99_ms": round(self.percentile(99), 2),
            "statuses": self.statuses,
            "wrong": self.wrong,
            "cores_of_load": round(self.cores, 2),
        }


def start_module(name: str, given: dict[str, Any]) -> subprocess.Popen[str]:
    """Run a module that reads JSON from stdin: in a process of its own it costs this one a core and not a lock."""
    command = [sys.executable, "-m", name]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ)
    assert process.stdin is not None
    process.stdin.write(json.dumps(given))
    process.stdin.close()
    return process


def said_by(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for the end of such a process, and read the JSON that it has written.

    Raises:
        RuntimeError: it failed.
    """
    assert process.stdout is not None
    said = process.stdout.read()
    if process.wait() != 0:
        raise RuntimeError("the process failed; its error stands above")
    answer: dict[str, Any] = json.loads(said)
    return answer


def start(spec: Spec) -> subprocess.Popen[str]:
    """Begin to ask."""
    return start_module("benchmarks.serving_load", asdict(spec))


def finish(process: subprocess.Popen[str]) -> Load:
    """Wait for the end."""
    return Load(**said_by(process))


def run(spec: Spec) -> Load:
    """Ask, and wait for the end."""
    return finish(start(spec))


class _Asking:
    def __init__(self, spec: Spec, connections: Connections) -> None:
        self._spec, self._connections = spec, connections
        self._bodies = [json.dumps(ask.body).encode() for ask in spec.asks]
        self._counts: Counter[str] = Counter()
        self.load = Load()
        self._sent = 0
        self._began = time.perf_counter() + spec.warm_s
        self.load.start_at = time.time() + spec.warm_s
        self._end = self._began + spec.seconds

    async def closed(self, number: int) -> None:
        """One client."""
        place = number * 7919
        while time.perf_counter() < self._end and (self._spec.requests is None or self._sent < self._spec.requests):
            await self._ask(place % len(self._bodies))
            place += 1

    async def open(self, rate: float) -> None:
        """Requests at a rate; what is late is sent at once."""
        waiting: set[asyncio.Task[None]] = set()
        at, place = time.perf_counter(), 0
        while at < self._end:
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            if len(waiting) < self._spec.clients:
                one = asyncio.create_task(self._ask(place % len(self._bodies)))
                waiting.add(one)
                one.add_done_callback(waiting.discard)
            at, place = at + 1 / rate, place + 1
        await asyncio.gather(*waiting)

    async def _ask(self, place: int) -> None:
        """One request, and what a client makes of a refusal: openai's SDK waits so."""
        for attempt in range(self._spec.retries + 1):
            wait = await self._try(place)
            if wait is None or attempt == self._spec.retries:
                return
            if not 0 < wait <= 60:
                wait = min(0.5 * 2**attempt, 8.0) * (1 - 0.25 * random.random())
            # Until the end at most: no client comes back after it, nor at once before it.
            await asyncio.sleep(min(wait, max(0.0, self._end - time.perf_counter())))
            if time.perf_counter() >= self._end:
                return

    async def _try(self, place: int) -> float | None:
        """Ask once; returns the seconds that the answer tells to wait, 0 where it tells none, None for a good one."""
        ask = self._spec.asks[place]
        self._sent += 1
        began = time.perf_counter()
        wait = 0.0
        try:
            answer = await self._connections.post(ask.path, self._bodies[place], self._spec.timeout_s)
            content, status = answer.content, str(answer.status)
            wait = float(answer.headers.get(b"retry-after-ms", 0)) / 1000
            wait = wait or float(answer.headers.get(b"retry-after", 0))
        except (OSError, asyncio.TimeoutError) as error:
            content, status = repr(error).encode(), "lost"
        ended = time.perf_counter()
        is_outside = ended < self._began or (began > self._end and self._spec.requests is None)
        if is_outside and status == "200":
            return None
        self._note(status, began, ended)
        if status != "200" and len(self.load.examples) < 5:
            self.load.examples.append(f"{status}: {content[:300].decode(errors='replace')}")
        if status == "200" and not holds(ask, content):
            self.load.wrong += 1
        return None if status == "200" else wait

    def _note(self, status: str, began: float, ended: float) -> None:
        self._counts[status] += 1
        took = 1000 * (ended - began)
        if status == "200":
            self.load.ok_ms.append(took)
            self.load.began_s.append(began - self._began)
        else:
            self.load.refused_ms.append(took)

    def end(self) -> Load:
        """What was found, over the time that it took."""
        ended = time.perf_counter()
        self.load.seconds = (ended if self._spec.requests else max(ended, self._end)) - self._began
        self.load.statuses = dict(self._counts)
        self.load.sent_rate = sum(self._counts.values()) / self.load.seconds
        return self.load


def holds(ask: Ask, content: bytes) -> bool:
    """Whether an answer is the right one."""
    if ask.ids is not None:
        return [hit["id"] for hit in json.loads(content)["results"][0]] == ask.ids
    if ask.vector is not None:
        vector = np.asarray(json.loads(content)["data"][0]["embedding"])
        return bool(np.abs(vector - np.asarray(ask.vector)).max() < CLOSE)
    return True


async def _all(spec: Spec) -> Load:
    headers = {"Content-Type": "application/json"}
    if spec.key:
        headers["Authorization"] = f"Bearer {spec.key}"
    connections = Connections(spec.url, headers)
    asking = _Asking(spec, connections)
    if spec.rate is not None:
        await asking.open(spec.rate)
    else:
        await asyncio.gather(*(asking.closed(number) for number in range(spec.clients)))
    connections.close()
    return asking.end()


def main() -> None:
    """Read what to ask from stdin, write what was answered to stdout."""
    given = json.load(sys.stdin)
    spec = Spec(**{**given, "asks": [Ask(**ask) for ask in given["asks"]]})
    began, busy = time.perf_counter(), time.process_time()
    load = uvloop.run(_all(spec))
    load.cores = (time.process_time() - busy) / (time.perf_counter() - began)
    json.dump(asdict(load), sys.stdout)


if __name__ == "__main__":
    main()
