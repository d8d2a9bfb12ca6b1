"""Which tasks and rows each step trains: a pure function of sizes, seed and step."""

from __future__ import annotations

import time
import tracemalloc
from collections import Counter
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.config.train import TrainConfig
from embedder.errors import ConfigError
from embedder.training import batch_plan
from embedder.training.batch_plan import BatchPart, BatchPlan, deal_slots, share_of_batch
from tests.unit.judges import quick

SIZES = {"qa": 40, "chat": 10, "tool": 30}
MIXED = {"batches": "mixed"}
PINNED = [
    ("tool", [16, 18, 11, 12]),
    ("qa", [39, 18, 9, 34]),
    ("qa", [11, 25, 27, 31]),
    ("tool", [27, 28, 7, 15]),
    ("qa", [30, 5, 38, 3]),
    ("tool", [26, 6, 23, 3]),
]
PINNED_MIXED = [BatchPart("qa", [30, 18]), BatchPart("tool", [12, 29])]


def plan(sizes=SIZES, mix=None, batch_size=4, steps=60, seed=0) -> BatchPlan:
    """A plan of one worker; `mix` holds the settings of TrainConfig that say how tasks are mixed."""
    settings = {"batch_size": batch_size, "steps": steps, "seed": seed, "num_workers": 1}
    return BatchPlan(sizes, TrainConfig(**settings, **(mix or {})))


def batches(made: BatchPlan) -> list[list[BatchPart]]:
    return [made.batch(step) for step in range(made.steps)]


def taken(made: BatchPlan) -> dict[str, list[int]]:
    """Rows of each task in the order they are trained."""
    rows = {task: [] for task in made.sizes}
    for parts in batches(made):
        for part in parts:
            rows[part.task] += part.rows
    return rows


sizes = st.dictionaries(st.sampled_from("abcd"), st.integers(1, 20), min_size=1)
mixes = st.sampled_from([{}, {"mix_temperature": 3.0}, MIXED])
few = st.integers(1, 7)


@quick
@given(sizes, mixes, few, st.integers(1, 40), st.integers(0, 9))
def test_batch_plan_is_the_same_for_every_worker_and_in_any_order_of_steps(rows, mix, batch_size, steps, seed):
    one, other = (plan(rows, mix, batch_size, steps, seed) for _ in range(2))
    forwards = batches(one)
    assert [other.batch(step) for step in reversed(range(steps))][::-1] == forwards
    reordered = dict(reversed(list(rows.items())))
    assert batches(plan(reordered, mix, batch_size, steps, seed)) == forwards


@quick
@given(sizes, mixes, few, st.integers(1, 60), st.integers(0, 9))
def test_batch_plan_every_epoch_of_a_task_takes_each_of_its_rows_once(rows, mix, batch_size, steps, seed):
    made = plan(rows, mix, batch_size, steps, seed)
    for parts in batches(made):
        assert sum(len(part.rows) for part in parts) == batch_size
        assert len({part.task for part in parts}) == len(parts)
        assert mix == MIXED or len(parts) == 1
    for task, numbers in taken(made).items():
        assert len(numbers) == made.rows_of(task)
        for first in range(0, len(numbers), rows[task]):
            epoch = numbers[first : first + rows[task]]
            assert len(set(epoch)) == len(epoch)
            assert set(epoch) <= set(range(rows[task]))


@quick
@given(sizes, mixes, st.integers(1, 80), st.integers(0, 9))
def test_batch_plan_shares_are_kept_at_every_step(rows, mix, steps, seed):
    made, counts = plan(rows, mix, 2, steps, seed), Counter()
    wanted = {task: size ** (1 / mix.get("mix_temperature", 1)) for task, size in rows.items()}
    for step, parts in enumerate(batches(made), start=1):
        for part in parts:
            counts[part.task] += len(part.rows)
        slot = 1 if mix == MIXED else 2
        for task, share in wanted.items():
            assert abs(counts[task] - 2 * step * share / sum(wanted.values())) < slot * len(rows)


@pytest.mark.parametrize(
    ("mix", "expected"),
    [
        ({}, {"qa": 30, "chat": 7.5, "tool": 22.5}),
        ({"task_weights": {"qa": 1, "chat": 1, "tool": 1}}, {"qa": 20, "chat": 20, "tool": 20}),
        ({"task_weights": {"qa": 3, "chat": 1}}, {"qa": 45, "chat": 15, "tool": 0}),
        ({"task_weights": {"qa": 2, "chat": 0.0}}, {"qa": 60, "chat": 0, "tool": 0}),
        ({"mix_temperature": 2.0}, {"qa": 60 * 2 / (3 + 3**0.5), "chat": 60 / (3 + 3**0.5), "tool": 60 * 0.366}),
        ({"mix_temperature": 1e9}, {"qa": 20, "chat": 20, "tool": 20}),
    ],
)
@pytest.mark.parametrize("batches", ["one_task", "mixed"])
def test_batch_plan_shares_are_those_of_sizes_temperature_or_weights(mix, expected, batches):
    made = plan(mix={**mix, "batches": batches})
    for task, steps in expected.items():
        assert abs(made.rows_of(task) - 4 * steps) <= 8


def test_batch_plan_tasks_are_interleaved_from_the_beginning():
    first = Counter(part.task for (part,) in batches(plan(mix={"task_weights": dict.fromkeys(SIZES, 1.0)}, steps=9)))
    assert set(first.values()) == {3}


def test_batch_plan_a_mixed_batch_holds_every_task_by_its_share():
    for parts in batches(plan(mix=MIXED, batch_size=16)):
        counts = {part.task: len(part.rows) for part in parts}
        assert 7 <= counts["qa"] <= 9
        assert 1 <= counts["chat"] <= 3
        assert 5 <= counts["tool"] <= 7


def test_batch_plan_epochs_and_seeds_are_ordered_differently():
    epochs = [tuple(part.rows) for (part,) in batches(plan({"qa": 12}, batch_size=12, steps=5))]
    assert len(set(epochs)) == 5
    assert batches(plan(seed=1)) != batches(plan(seed=0))


def test_batch_plan_more_tasks_and_another_batch_size_leave_the_order_of_a_task_as_it_is():
    alone = taken(plan({"qa": 40}, batch_size=4, steps=10))["qa"]
    beside = taken(plan(SIZES, batch_size=8, steps=20))["qa"]
    assert beside[:40] == alone


LEAVE = {
    name: {"task_weights": dict.fromkeys(SIZES, 1.0), "batches": name, "exhausted": "drop"}
    for name in ("one_task", "mixed")
}


@pytest.mark.parametrize("mix", LEAVE.values(), ids=LEAVE.keys())
def test_batch_plan_an_exhausted_task_leaves_the_mix_after_each_of_its_rows_was_trained(mix):
    steps = 21 if mix["batches"] == "one_task" else 20
    made = plan(mix=mix, steps=steps)
    seen = taken(made)
    for task, size in SIZES.items():
        assert set(seen[task]) == set(range(size))
        assert len(seen[task]) == made.rows_of(task) <= -(-size // 4) * 4
    last = {task: max(step for step, parts in enumerate(batches(made)) if task in dict(parts)) for task in SIZES}
    assert last["chat"] < last["tool"] < last["qa"] == steps - 1


@quick
@given(sizes, st.sampled_from(list(LEAVE)), few, st.integers(0, 9), st.data())
def test_batch_plan_leaving_holds_for_any_sizes_and_at_any_step(rows, batches_of, batch_size, seed, data):
    slot = batch_size if batches_of == "one_task" else 1
    slots = sum(-(-size // slot) for size in rows.values())
    most = slots if slot > 1 or batch_size == 1 else slots // batch_size
    if not most:
        return
    steps = data.draw(st.integers(1, most))
    made = plan(rows, {"batches": batches_of, "exhausted": "drop"}, batch_size, steps, seed)
    for task, numbers in taken(made).items():
        assert len(numbers) == made.rows_of(task) < rows[task] + slot
        assert len(set(numbers[: rows[task]])) == min(len(numbers), rows[task])


def test_batch_plan_a_mix_that_ends_before_the_last_step_is_refused():
    with pytest.raises(
        ConfigError, match=r"'drop', and the rows of all tasks last for 21 steps; lower train.steps \(22"
    ):
        plan(mix={"exhausted": "drop"}, steps=22)
    with pytest.raises(ConfigError, match="last for 20 steps"):
        plan(mix={**MIXED, "exhausted": "drop"}, steps=21)
    plan(mix={"exhausted": "drop"}, steps=21)


def test_batch_plan_repeated_tasks_go_on_in_a_new_order_each_time():
    rows = taken(plan(mix={"task_weights": {"chat": 1.0}}, batch_size=5, steps=6))["chat"]
    assert len({tuple(rows[i : i + 10]) for i in (0, 10, 20)}) == 3


@pytest.mark.parametrize("count", [1, 2, 3, 6, 12])
@pytest.mark.parametrize("seed", range(4))
def test_deal_slots_keeps_each_share_after_every_slot(count, seed):
    weights = np.random.default_rng(seed).random(count) ** 3 + 0.01
    shares = {f"{i:02d}": weight for i, weight in enumerate((weights / weights.sum()).tolist())}
    owners = deal_slots(shares, 3000, seed)
    assert len(owners) == 3000
    for number, share in enumerate(shares.values()):
        strayed = np.cumsum(owners == number) - share * np.arange(1, 3001)
        assert np.abs(strayed).max() < max(1, count - 1)


@pytest.mark.parametrize("seed", range(4))
def test_deal_slots_gives_every_stretch_each_task_by_its_share(seed):
    """Wherever 100 slots are taken from, each task has its share of them but for the bound at both ends."""
    shares = {"a": 0.5, "b": 0.3, "c": 0.15, "d": 0.05}
    owners = deal_slots(shares, 5000, seed)
    for number, share in enumerate(shares.values()):
        counts = np.convolve(owners == number, np.ones(100, int), "valid")
        assert np.abs(counts - 100 * share).max() < 2 * 3
        assert counts.std() < 1.2


def test_deal_slots_is_not_regular():
    """Of two tasks with half each, the next slot is of the same task at times, but never of it three times more."""
    owners = deal_slots({"a": 0.5, "b": 0.5}, 10_000, 0)
    assert 0.2 < (owners[1:] == owners[:-1]).mean() < 0.5
    runs = np.diff(np.flatnonzero(np.diff(owners)))
    assert runs.max() <= 3


@pytest.mark.parametrize("size", [2, 3, 5, 16, 17, 100])
def test_batch_plan_brings_every_row_to_every_position_equally_often(size):
    """Chi-square over seeds; the bound is exceeded by chance once in a million."""
    seeds = 2_000
    found = np.zeros((size, size))
    for seed in range(seeds):
        found[np.arange(size), plan({"qa": size}, batch_size=size, steps=1, seed=seed).batch(0)[0].rows] += 1
    expected, freedom = seeds / size, (size - 1) ** 2
    chi = ((found - expected) ** 2 / expected).sum()
    assert chi < freedom + 4.8 * (2 * freedom) ** 0.5 + 16


@quick
@given(sizes, mixes, few, st.integers(1, 60), st.integers(1, 9))
def test_batch_plan_longer_than_a_cycle_takes_each_row_once_an_epoch_too(rows, mix, batch_size, steps, cycle):
    with mock.patch.object(batch_plan, "CYCLE_SLOTS", cycle):
        made = plan(rows, mix, batch_size, steps)
    for task, numbers in taken(made).items():
        assert len(numbers) == made.rows_of(task)
        for first in range(0, len(numbers), rows[task]):
            epoch = numbers[first : first + rows[task]]
            assert len(set(epoch)) == len(epoch)


def test_batch_plan_is_what_it_was_when_checkpoints_of_this_format_were_written():
    """Fails where NumPy or this code deals otherwise: then `job.FORMAT` must be raised."""
    assert [(part.task, part.rows) for (part,) in batches(plan(steps=6))] == PINNED
    assert plan(mix=MIXED, seed=7).batch(3) == PINNED_MIXED


def test_batch_plan_of_a_million_steps_takes_a_megabyte_and_less_than_a_second():
    many = {"qa": 10**9, "chat": 10**8 + 7, "tool": 12_345}
    for mix in ({}, MIXED):
        tracemalloc.start()
        began = time.process_time()
        made = plan(many, mix, batch_size=64, steps=10**6)
        assert time.process_time() - began < 1
        assert tracemalloc.get_traced_memory()[0] < 1.2 * 2**20
        tracemalloc.stop()
        assert abs(made.rows_of("chat") / (64 * 10**6) - many["chat"] / sum(many.values())) < 1e-5


def test_batch_plan_of_ten_million_rows_gives_any_batch():
    for mix in ({}, {"exhausted": "drop"}):
        made = plan({"qa": 10**7, "tool": 1000}, mix, batch_size=64, steps=10**5)
        for step in (0, 99_998, 99_999):
            parts = made.batch(step)
            assert sum(len(part.rows) for part in parts) == 64
            assert all(0 <= row < made.sizes[part.task] for part in parts for row in part.rows)


@quick
@given(st.lists(few, min_size=1, max_size=4), st.sampled_from([1, 2, 4]))
def test_share_of_batch_is_even_whatever_its_parts(counts, workers):
    parts = [BatchPart(str(i), list(range(count))) for i, count in enumerate(counts)]
    shares = [share_of_batch(parts, rank, workers) for rank in range(workers)]
    held = [sorted((part.task, row) for part in share for row in part.rows) for share in shares]
    assert sorted(row for one in held for row in one) == [(part.task, row) for part in parts for row in part.rows]
    assert max(map(len, held)) - min(map(len, held)) <= 1
    for part in parts:
        mine = [sum(len(own.rows) for own in share if own.task == part.task) for share in shares]
        assert max(mine) - min(mine) <= 1


def test_share_of_batch_of_one_worker_is_the_whole():
    parts = [BatchPart("qa", [5, 3, 8]), BatchPart("tool", [3])]
    assert share_of_batch(parts, 0, 1) == parts


def test_batch_plan_a_task_without_rows_is_never_trained():
    made = plan({"qa": 5, "tool": 0})
    assert {part.task for (part,) in batches(made)} == {"qa"}
    assert (made.rows_of("tool"), made.rows_of("nowhere")) == (0, 0)


@pytest.mark.parametrize(
    ("rows", "weights"),
    [({}, {}), ({"qa": 0}, {}), ({"qa": 5}, {"tool": 1.0}), ({"qa": 5}, {"qa": 0.0, "tool": 1.0})],
)
def test_batch_plan_nothing_to_train_is_refused(rows, weights):
    with pytest.raises(ConfigError, match="no task to train"):
        plan(rows, {"task_weights": weights})
