"""Requests gathered into calls: at once while few are under way, each with its own answer, refusal and end."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from serve.backend import DEADLINE, Encoded
from serve.deployments.coalescing import MOST_CHARACTERS, Gatherer
from serve.http_errors import ApiError


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


def run(scenario, most_calls=2, most_waiting=50, seconds=10.0, most_texts=1000):
    async def main():
        DEADLINE.set(time.monotonic() + seconds)
        encoder = Encoder()
        await scenario(Gatherer(encoder, most_calls, most_waiting, most_texts), encoder)

    asyncio.run(main())


async def ask(gatherer, *requests, version="v1"):
    """Begin requests, in their order."""
    tasks = [asyncio.create_task(gatherer.encode(version, list(texts), True)) for texts in requests]
    await asyncio.sleep(0.01)
    return tasks


def test_requests_go_at_once_while_few_calls_are_under_way_and_then_together():
    async def scenario(gatherer, encoder):
        tasks = await ask(gatherer, ["a"], ["bb"], ["ccc"], ["d", "dd"])
        assert [requests for _, requests, _ in encoder.calls] == [[["a"]], [["bb"]]]
        encoder.free.set()
        answers = await asyncio.gather(*tasks)
        assert [answer.vector_ND[:, 0].tolist() for answer in answers] == [[1], [2], [3], [1, 2]]
        assert encoder.calls[2:] == [("v1", [["ccc"], ["d", "dd"]], True)]

    run(scenario)


def test_a_request_of_many_texts_takes_the_room_of_many_requests():
    async def scenario(gatherer, encoder):
        tasks = await ask(gatherer, ["first"], ["a"] * 50)
        assert gatherer.is_full
        with pytest.raises(ApiError) as refused:
            await gatherer.encode("v1", ["b"], True)
        assert refused.value.status == 429
        encoder.free.set()
        await asyncio.gather(*tasks)
        assert not gatherer.is_full and len((await gatherer.encode("v1", ["b"] * 50, True)).vector_ND) == 50

    run(scenario, most_calls=1, most_texts=32)


def test_calls_hold_one_version_and_large_requests_go_alone():
    async def scenario(gatherer, encoder):
        tasks = await ask(gatherer, ["first"])
        tasks += await ask(gatherer, ["a"], version="v1")
        tasks += await ask(gatherer, ["b"], version="v2")
        tasks += await ask(gatherer, ["c"], ["x" * MOST_CHARACTERS], ["d"], version="v1")
        encoder.free.set()
        await asyncio.gather(*tasks)
        assert [len(requests) for _, requests, _ in encoder.calls] == [1] * 6

    run(scenario, most_calls=1)


def test_a_refusal_is_of_one_request_and_a_failure_of_the_call():
    async def scenario(gatherer, encoder):
        first = await ask(gatherer, ["a"])
        rest = await ask(gatherer, ["good"], ["bad"], ["fine"])
        encoder.free.set()
        outcomes = await asyncio.gather(*first, *rest, return_exceptions=True)
        assert [getattr(one, "status", 200) for one in outcomes] == [200, 200, 400, 200]
        outcomes = await asyncio.gather(*await ask(gatherer, ["dead"]), return_exceptions=True)
        assert outcomes[0].status == 503
        (after,) = await ask(gatherer, ["a"])
        assert (await after).tokens == [1]

    run(scenario, most_calls=1)


def test_what_nobody_waits_for_any_more_is_not_sent_and_a_call_of_such_is_cancelled():
    async def scenario(gatherer, encoder):
        first, second, third = await ask(gatherer, ["a"], ["b"], ["c"])
        second.cancel()
        await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.sleep(0.01)
        assert encoder.cancelled == 1 and encoder.calls[1:] == [("v1", [["c"]], True)]
        encoder.free.set()
        assert (await third).tokens == [1]

    run(scenario, most_calls=1)


def test_a_call_goes_on_for_those_who_still_wait():
    async def scenario(gatherer, encoder):
        (first,) = await ask(gatherer, ["a"])
        gone, stays = await ask(gatherer, ["b"], ["c"])
        encoder.free.set()
        await first
        encoder.free.clear()
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0.01)
        encoder.free.set()
        assert (await stays).tokens == [1] and encoder.cancelled == 0

    run(scenario, most_calls=1)


def test_too_many_that_wait_are_refused_at_once():
    async def scenario(gatherer, encoder):
        tasks = await ask(gatherer, ["a"], ["b"], ["c"])
        with pytest.raises(ApiError) as refused:
            await gatherer.encode("v1", ["d"], True)
        assert refused.value.status == 429
        encoder.free.set()
        await asyncio.gather(*tasks)

    run(scenario, most_calls=1, most_waiting=2)


def test_a_request_ends_at_its_deadline():
    async def scenario(gatherer, encoder):
        with pytest.raises(TimeoutError):
            await gatherer.encode("v1", ["a"], True)
        await asyncio.sleep(0.01)
        assert encoder.cancelled == 1

    run(scenario, seconds=0.05)
