"""How near the number of requests that finds itself comes to the best fixed number, on servers that bear so many.

    python -m benchmarks.endpoint_pace
    python -m benchmarks.endpoint_pace --url http://gpu-box:8000/v1 --model NAME

Without an address small servers are started here, which answer after a while: one refuses (429) what is too much, one
lets it wait, one bears less after a time. Times are from the first request to the last answer.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import random
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response

from embedder.config.endpoints import LlmEndpoint
from embedder.console import console
from embedder.remote.pace import RequestPace
from embedder.remote.server import Server

PROMPT = "The old bridge leads to the market. " * 8


@dataclass(frozen=True)
class Bears:
    """What a server bears."""

    name: str
    places: int
    seconds: float
    """Mean time of an answer."""
    refuses: bool = True
    """What is too much is refused; else it waits."""
    later: int | None = None
    """Places after `after_s` seconds of answering."""
    after_s: float = 3.0


KINDS = (
    Bears("refuses above 16", 16, 0.2),
    Bears("refuses above 5", 5, 0.1),
    Bears("lets wait above 16", 16, 0.2, refuses=False),
    Bears("refuses above 24, later above 10", 24, 0.2, later=10),
)


class FixedPace(RequestPace):
    """As many requests as it is told, whatever the server says."""

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self.limit = float(most)

    def overloaded(self, began: float, *, is_silent: bool) -> None:
        """The number stays."""


def serve(bears: Bears, listener: socket.socket) -> None:
    """A server, in a process of its own, behind a socket that listens already."""
    app, running, first = FastAPI(), 0, 0.0
    places = asyncio.Semaphore(bears.places)

    @app.post("/v1/completions")
    async def completions() -> Response:
        nonlocal running, first
        first = first or time.monotonic()
        is_later = bears.later is not None and time.monotonic() - first > bears.after_s
        if bears.refuses and running >= (bears.later if is_later and bears.later else bears.places):
            return JSONResponse({"error": "busy"}, 429)
        running += 1
        try:
            async with places:
                await asyncio.sleep(bears.seconds * random.uniform(0.8, 1.2))
        finally:
            running -= 1
        return JSONResponse({"choices": [{"text": "x"}]})

    uvicorn.Server(uvicorn.Config(app, log_level="error")).run([listener])


@contextmanager
def started(bears: Bears) -> Iterator[str]:
    """The address of a server of this kind."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        port = listener.getsockname()[1]
        process = multiprocessing.get_context("spawn").Process(target=serve, args=(bears, listener), daemon=True)
        process.start()
    try:
        # Waits in the backlog until the server is up, so that no rate has its start in it.
        httpx.get(f"http://127.0.0.1:{port}/", timeout=60)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.join()


def rate(url: str, model: str, requests: int, most: int, fixed: bool) -> float:
    """Answers a second, with a fixed number of requests at once, or with one that finds itself."""
    server = Server(LlmEndpoint(url=url, model=model, max_requests=most, attempts=30), "benchmark")
    if fixed:
        server.pace = FixedPace(most)
    body = {"model": model, "prompt": PROMPT, "max_tokens": 1}
    began = time.monotonic()
    with ThreadPoolExecutor(most) as threads:
        for future in [threads.submit(server.post, "/completions", body) for _ in range(requests)]:
            future.result()
    took = time.monotonic() - began
    server.close()
    return requests / took


def measure(name: str, url: str, fixed: Sequence[int], options: argparse.Namespace) -> None:
    """Print the sweep, and the rounds as shares of its best."""
    requests, model, rounds = options.requests, options.model, options.rounds
    sweep = {count: rate(url, model, requests, count, fixed=True) for count in fixed}
    best = max(sweep.values())
    shares = sorted(rate(url, model, requests, options.most, fixed=False) / best for _ in range(rounds))
    told = ", ".join(f"{count}: {value:.1f}" for count, value in sweep.items())
    console().print(
        f"{name}: {requests} requests; answers/s by requests at once {told}; by itself, of the best: worst "
        f"{shares[0]:.2f}, median {shares[len(shares) // 2]:.2f}, best {shares[-1]:.2f} of {rounds} rounds"
    )


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a server with OpenAI's completions, in place of those that are started here")
    parser.add_argument("--model", default="any")
    parser.add_argument("--requests", type=int, default=480)
    parser.add_argument("--fixed", type=int, nargs="+", help="numbers of requests at once that are tried")
    parser.add_argument("--most", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.url:
        fixed = options.fixed or [1, 2, 4, 8, 16, 32, 64]
        measure(options.url, options.url, fixed, options)
        return
    for bears in KINDS:
        own = {bears.places // 2, bears.later or bears.places, bears.places, 2 * bears.places}
        with started(bears) as url:
            measure(bears.name, url, options.fixed or sorted(own), options)


if __name__ == "__main__":
    main()
