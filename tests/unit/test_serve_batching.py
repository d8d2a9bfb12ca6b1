"""Batches that requests share: tokens within the budget, every request in turn, poison and cancellation apart."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.deployments.batching import URGENT_S, Cause, NotEncodable, TokenBatcher, run_apart
from tests.event_loop import settle
from tests.waiting import wait_until

POISON = 666


def vector_of(row):
    return np.array([len(row), sum(row)], dtype=np.float32)


class Model:
    """Says what it was given; fails on a batch with poison in it; waits while it is held."""

    def __init__(self):
        self.begun, self.batches, self.free, self.no_memory = 0, [], threading.Event(), False
        self.free.set()

    def __call__(self, rows):
        self.begun += 1
        self.free.wait(60)
        self.batches.append(rows)
        if self.no_memory:
            raise torch.OutOfMemoryError("pretended")
        if any(POISON in row for row in rows):
            raise IndexError("index out of range in self")
        return np.stack([vector_of(row) for row in rows])


def run(scenario, budget=10, step=None):
    """A scenario with a batcher and its model, in a loop of its own."""
    model = Model()

    async def main():
        with ThreadPoolExecutor(1) as executor:
            return await scenario(TokenBatcher(model, budget, step or budget, [executor], lambda *_: None), model)

    return asyncio.run(main()), model


async def held(batcher, model, *requests, deadline=math.inf, small_tokens=10):
    """Submit requests so that all of them wait when the first batch begins."""
    model.free.clear()
    first = asyncio.create_task(batcher.submit([[0]]))
    await asyncio.to_thread(wait_until, lambda: model.begun == 1)
    tasks = [
        asyncio.create_task(batcher.submit(rows, deadline, is_small=sum(map(len, rows)) <= small_tokens))
        for rows in requests
    ]
    await settle()
    model.free.set()
    await first
    return tasks


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=12), min_size=1, max_size=5), max_size=6),
    st.integers(1, 30),
)
def test_batcher_gives_every_request_its_own_vectors_in_its_order(requests, budget):
    async def scenario(batcher, model):
        return await asyncio.gather(*await held(batcher, model, *requests, small_tokens=10**9))

    answers, model = run(scenario, budget)
    for rows, vectors in zip(requests, answers, strict=True):
        assert np.array_equal(vectors, np.stack([vector_of(row) for row in rows]))
    assert all(len(batch) == 1 or sum(map(len, batch)) <= budget for batch in model.batches)
    assert sum(map(len, model.batches)) == 1 + sum(map(len, requests))


def test_batcher_takes_small_requests_first_and_a_share_of_large_ones():
    async def scenario(batcher, model):
        tasks = await held(batcher, model, [[1] * 5] * 8, *[[[2] * 5] * 2] * 4)
        await asyncio.gather(*tasks[1:])
        assert not tasks[0].done()
        await tasks[0]

    _, model = run(scenario, budget=10, step=10)
    small, large = [[2] * 5] * 2, [[1] * 5]
    # A third of the tokens of small ones: three and a third a batch, so that a row of five fits in every other one.
    assert model.batches[1:] == [small, small + large, small, small + large, large * 2, large * 2, large * 2]


def test_batcher_computes_large_requests_in_a_thread_of_their_own_beside_small_ones():
    model = Model()
    threads = {}

    def compute(rows):
        threads[len(rows)] = threading.current_thread().name
        return model(rows) if len(rows) == 2 else np.stack([vector_of(row) for row in rows])

    async def main():
        with ThreadPoolExecutor(1, "small") as executor, ThreadPoolExecutor(1, "large") as behind:
            batcher = TokenBatcher(compute, 10, 10, [executor], lambda *_: None, [behind])
            model.free.clear()
            large = asyncio.create_task(batcher.submit([[1] * 5] * 4, is_small=False))
            await asyncio.to_thread(wait_until, lambda: model.begun == 1)
            small = await batcher.submit([[2]])
            assert not large.done()
            model.free.set()
            return small, await large

    small, large = asyncio.run(main())
    assert np.array_equal(small, [vector_of([2])]) and np.array_equal(large, [vector_of([1] * 5)] * 4)
    assert threads == {1: "small_0", 2: "large_0"}


def test_batcher_shares_what_waits_among_idle_threads_and_leaves_nothing_to_a_busy_one():
    model = Model()

    async def main():
        with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
            batcher = TokenBatcher(model, 40, 40, [first, second], lambda *_: None)
            both = [asyncio.create_task(batcher.submit([[i] * 5])) for i in range(8)]
            await asyncio.gather(*both)
            assert sorted(map(len, model.batches)) == [4, 4]
            model.batches.clear()
            model.free.clear()
            held = asyncio.create_task(batcher.submit([[0]]))
            await asyncio.to_thread(wait_until, lambda: model.begun == 3)
            later = [asyncio.create_task(batcher.submit([[i] * 5])) for i in range(4)]
            await settle()
            model.free.set()
            await asyncio.gather(held, *later)
            # One thread is held up, so the other one takes all that waits.
            assert sorted(map(len, model.batches)) == [1, 4]

    asyncio.run(main())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=12), min_size=1), st.booleans())))
def test_batcher_with_two_threads_gives_every_request_its_own_vectors(requests):
    async def main():
        with ThreadPoolExecutor(1) as executor, ThreadPoolExecutor(1) as behind:
            batcher = TokenBatcher(Model(), 10, 5, [executor], lambda *_: None, [behind])
            return await asyncio.gather(*(batcher.submit(rows, is_small=is_small) for rows, is_small in requests))

    for (rows, _), vectors in zip(requests, asyncio.run(main()), strict=True):
        assert np.array_equal(vectors, [vector_of(row) for row in rows])


@pytest.mark.parametrize(("left_s", "large_rows"), [(URGENT_S + 60, 0), (URGENT_S / 2, 4)])
def test_batcher_gives_a_large_request_near_its_deadline_more_than_small_ones(left_s, large_rows):
    async def scenario(batcher, model):
        deadline = time.monotonic() + left_s
        await asyncio.gather(*await held(batcher, model, [[1] * 5] * 4, [[2] * 5] * 2, deadline=deadline))

    _, model = run(scenario, budget=10)
    assert model.batches[1] == [[2] * 5] * 2 + [[1] * 5] * large_rows


def test_batcher_ends_the_oldest_of_large_requests_first_and_computes_rows_by_length():
    async def scenario(batcher, model):
        tasks = await held(batcher, model, [[1] * 3, [1], [1] * 2], [[2]] * 4, small_tokens=0)
        assert np.array_equal(await tasks[0], [vector_of(row) for row in ([1] * 3, [1], [1] * 2)])
        assert not tasks[1].done()
        await tasks[1]

    _, model = run(scenario, budget=3)
    assert model.batches[1:] == [[[1], [1] * 2], [[1] * 3], [[2]] * 3, [[2]]]


def test_batcher_computes_nothing_after_the_deadline():
    async def scenario(batcher, model):
        late = await held(batcher, model, [[7]] * 3, deadline=0.0)
        with pytest.raises(TimeoutError):
            await late[0]
        return await batcher.submit([[8]])

    _, model = run(scenario)
    assert model.batches == [[[0]], [[8]]]


def test_batcher_lets_poison_fail_alone():
    async def scenario(batcher, model):
        tasks = await held(batcher, model, [[1]], [[2], [POISON]], [[3]])
        return await asyncio.gather(*tasks, return_exceptions=True)

    (good, bad, other), _ = run(scenario, 2000)
    assert np.array_equal(good, [vector_of([1])]) and np.array_equal(other, [vector_of([3])])
    assert isinstance(bad, NotEncodable) and bad.row == 1 and "IndexError" in bad.failure.reason
    assert bad.failure.cause is Cause.ROW


def test_batcher_does_not_compute_what_nobody_waits_for():
    async def scenario(batcher, model):
        model.free.clear()
        first = asyncio.create_task(batcher.submit([[0]]))
        await asyncio.to_thread(wait_until, lambda: model.begun == 1)
        gone = asyncio.create_task(batcher.submit([[7]] * 3))
        stays = asyncio.create_task(batcher.submit([[8]]))
        await settle()
        assert batcher.waiting == 4
        gone.cancel()
        await settle()
        assert batcher.waiting == 1
        model.free.set()
        await asyncio.gather(first, stays)

    _, model = run(scenario)
    assert model.batches == [[[0]], [[8]]]


def test_batcher_goes_on_after_it_was_idle():
    async def scenario(batcher, _):
        for _ in range(3):
            await batcher.submit([[1]])
            await settle()

    _, model = run(scenario)
    assert len(model.batches) == 3


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_batch_with_a_vector_that_is_not_finite_fails_there_alone(value):
    outcomes = run_apart(lambda rows: np.array([[1.0], [value]], dtype=np.float32), [[1], [2]])
    assert np.array_equal(outcomes[0], [1.0]) and outcomes[1] == ("its vector is not finite", Cause.MODEL)


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: out of memory")]
)
def test_row_without_memory_for_it_fails_alone_and_later_batches_are_as_large_as_before(error):
    sizes = []

    def small(rows):
        sizes.append(len(rows))
        if any(len(row) > 2 for row in rows):
            raise error
        return np.stack([vector_of(row) for row in rows])

    async def scenario():
        with ThreadPoolExecutor(1) as executor:
            batcher = TokenBatcher(small, 16, 16, [executor], lambda *told: None)
            rows = [[1], [2], [3], [4, 4, 4, 4]]
            outcomes = run_apart(small, rows)
            with pytest.raises(NotEncodable) as caught:
                await batcher.submit(rows)
            sizes.clear()
            await batcher.submit([[i] for i in range(8)])
            return outcomes, caught.value

    (*vectors, failure), told = asyncio.run(scenario())
    assert np.array_equal(vectors, [vector_of([i]) for i in (1, 2, 3)])
    assert (failure.cause, told.failure.cause, told.row) == (Cause.MEMORY, Cause.MEMORY, 3)
    assert sizes == [8]


def test_batcher_a_text_without_memory_for_it_is_told_apart_from_a_poisoned_one():
    async def scenario(batcher, model):
        model.no_memory = True
        with pytest.raises(NotEncodable) as caught:
            await batcher.submit([[1]])
        return caught.value.failure

    failure, _ = run(scenario)
    assert failure.cause is Cause.MEMORY
