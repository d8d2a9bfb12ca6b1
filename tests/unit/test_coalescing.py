"""Requests coalesced into calls: at once while few are under way, each with its own answer, refusal and end."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from serve.backend import DEADLINE, Encoded
from serve.deployments.coalescing import MOST_CHARACTERS, Coalescer
from serve.http_errors import ApiError
from tests.event_loop import settle


class Encoder:
    """Answers when it is told to; a text "bad" is refused, "dead" fails the whole call."""

    def __init__(self):
        self.calls, self.free, self.cancelled = [], asyncio.Event(), 0

    async def __call__(self, version, requests, truncate):
        self.calls.append((version, requests, truncate))
        try:
            await self.free.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if ["dead"] in requests:
            raise ApiError(503, "died")
        return [
            ApiError(400, "bad text") if texts == ["bad"] else Encoded(np.array([[len(text)] for text in texts]), [1])
            for texts in requests
        ]


def run(scenario, most_calls=2, most_waiting=50, seconds=60.0, most_texts=1000):
    async def main():
        DEADLINE.set(time.monotonic() + seconds)
        encoder = Encoder()
        await scenario(Coalescer(encoder, most_calls, most_waiting, most_texts), encoder)

    asyncio.run(main())


async def ask(coalescer, *requests, version="v1"):
    """Begin requests, in their order."""
    tasks = [asyncio.create_task(coalescer.encode(version, list(texts), True)) for texts in requests]
    await settle()
    return tasks


def test_coalescer_sends_at_once_while_few_calls_are_under_way_and_then_together():
    async def scenario(coalescer, encoder):
        tasks = await ask(coalescer, ["a"], ["bb"], ["ccc"], ["d", "dd"])
        assert [requests for _, requests, _ in encoder.calls] == [[["a"]], [["bb"]]]
        encoder.free.set()
        answers = await asyncio.gather(*tasks)
        assert [answer.vector_ND[:, 0].tolist() for answer in answers] == [[1], [2], [3], [1, 2]]
        assert encoder.calls[2:] == [("v1", [["ccc"], ["d", "dd"]], True)]

    run(scenario)


def test_coalescer_counts_a_request_of_many_texts_as_many_requests():
    async def scenario(coalescer, encoder):
        tasks = await ask(coalescer, ["first"], ["a"] * 50)
        assert coalescer.is_full
        with pytest.raises(ApiError) as refused:
            await coalescer.encode("v1", ["b"], True)
        assert refused.value.status == 429
        encoder.free.set()
        await asyncio.gather(*tasks)
        assert not coalescer.is_full and len((await coalescer.encode("v1", ["b"] * 50, True)).vector_ND) == 50

    run(scenario, most_calls=1, most_texts=32)


def test_coalescer_calls_hold_one_version_and_large_requests_go_alone():
    async def scenario(coalescer, encoder):
        tasks = await ask(coalescer, ["first"])
        tasks += await ask(coalescer, ["a"], version="v1")
        tasks += await ask(coalescer, ["b"], version="v2")
        tasks += await ask(coalescer, ["c"], ["x" * MOST_CHARACTERS], ["d"], version="v1")
        encoder.free.set()
        await asyncio.gather(*tasks)
        assert [len(requests) for _, requests, _ in encoder.calls] == [1] * 6

    run(scenario, most_calls=1)


def test_coalescer_gives_a_refusal_to_one_request_and_a_failure_to_the_call():
    async def scenario(coalescer, encoder):
        first = await ask(coalescer, ["a"])
        rest = await ask(coalescer, ["good"], ["bad"], ["fine"])
        encoder.free.set()
        outcomes = await asyncio.gather(*first, *rest, return_exceptions=True)
        assert [getattr(one, "status", 200) for one in outcomes] == [200, 200, 400, 200]
        outcomes = await asyncio.gather(*await ask(coalescer, ["dead"]), return_exceptions=True)
        assert outcomes[0].status == 503
        (after,) = await ask(coalescer, ["a"])
        assert (await after).tokens == [1]

    run(scenario, most_calls=1)


def test_coalescer_drops_what_nobody_waits_for_and_cancels_a_call_of_such():
    async def scenario(coalescer, encoder):
        first, second, third = await ask(coalescer, ["a"], ["b"], ["c"])
        second.cancel()
        await settle()
        first.cancel()
        await settle()
        assert encoder.cancelled == 1 and encoder.calls[1:] == [("v1", [["c"]], True)]
        encoder.free.set()
        assert (await third).tokens == [1]

    run(scenario, most_calls=1)


def test_coalescer_call_goes_on_for_those_who_still_wait():
    async def scenario(coalescer, encoder):
        (first,) = await ask(coalescer, ["a"])
        gone, stays = await ask(coalescer, ["b"], ["c"])
        encoder.free.set()
        await first
        encoder.free.clear()
        await settle()
        gone.cancel()
        await settle()
        encoder.free.set()
        assert (await stays).tokens == [1] and encoder.cancelled == 0

    run(scenario, most_calls=1)


def test_coalescer_refuses_at_once_when_too_many_wait():
    async def scenario(coalescer, encoder):
        tasks = await ask(coalescer, ["a"], ["b"], ["c"])
        with pytest.raises(ApiError) as refused:
            await coalescer.encode("v1", ["d"], True)
        assert refused.value.status == 429
        encoder.free.set()
        await asyncio.gather(*tasks)

    run(scenario, most_calls=1, most_waiting=2)


def test_coalescer_ends_a_request_at_its_deadline():
    async def scenario(coalescer, encoder):
        with pytest.raises(TimeoutError):
            await coalescer.encode("v1", ["a"], True)
        await settle()
        assert encoder.cancelled == 1

    run(scenario, seconds=0.05)
