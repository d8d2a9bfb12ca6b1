"""Which task and rows each step trains: a pure function of sizes, seed and step."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.errors import ConfigError
from embedder.training.plan import BatchPlan
from tests.unit.judges import quick

SIZES = {"qa": 40, "chat": 10, "tool": 30}


def plan(sizes=SIZES, weights=None, batch_size=4, steps=60, seed=0) -> BatchPlan:
    return BatchPlan(sizes, weights or {}, batch_size=batch_size, steps=steps, seed=seed)


def batches(made: BatchPlan, steps=60):
    return [made.batch(step) for step in range(steps)]


sizes = st.dictionaries(st.sampled_from("abcd"), st.integers(1, 20), min_size=1)


@quick
@given(sizes, st.integers(1, 7), st.integers(1, 40), st.integers(0, 9))
def test_the_plan_is_the_same_for_every_worker_and_in_any_order_of_steps(rows, batch_size, steps, seed):
    one, other = (plan(rows, None, batch_size, steps, seed) for _ in range(2))
    forwards = batches(one, steps)
    assert [other.batch(step) for step in reversed(range(steps))][::-1] == forwards
    reordered = dict(reversed(list(rows.items())))
    assert batches(plan(reordered, None, batch_size, steps, seed), steps) == forwards


@quick
@given(sizes, st.integers(1, 7), st.integers(1, 60), st.integers(0, 9))
def test_a_batch_is_of_one_task_and_every_epoch_takes_each_row_once(rows, batch_size, steps, seed):
    taken = {task: [] for task in rows}
    for task, numbers in batches(plan(rows, None, batch_size, steps, seed), steps):
        assert len(numbers) == batch_size
        taken[task] += numbers
    for task, numbers in taken.items():
        for first in range(0, len(numbers), rows[task]):
            epoch = numbers[first : first + rows[task]]
            assert len(set(epoch)) == len(epoch)
            assert set(epoch) <= set(range(rows[task]))


@quick
@given(sizes, st.integers(1, 80), st.integers(0, 9))
def test_shares_follow_the_sizes_within_one_step_at_any_time(rows, steps, seed):
    counts = Counter()
    for step, (task, _) in enumerate(batches(plan(rows, None, 2, steps, seed), steps), start=1):
        counts[task] += 1
        for name, size in rows.items():
            assert abs(counts[name] - step * size / sum(rows.values())) <= len(rows)
    made = plan(rows, None, 2, steps, seed)
    assert {task: made.steps_of(task) for task in rows} == {task: counts[task] for task in rows}


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (None, {"qa": 30, "chat": 7.5, "tool": 22.5}),
        ({"qa": 1, "chat": 1, "tool": 1}, {"qa": 20, "chat": 20, "tool": 20}),
        ({"qa": 3, "chat": 1}, {"qa": 45, "chat": 15, "tool": 0}),
        ({"qa": 2, "chat": 0.0}, {"qa": 60, "chat": 0, "tool": 0}),
    ],
)
def test_shares_of_the_steps_are_those_of_the_weights(weights, expected):
    made = plan(weights=weights)
    for task, steps in expected.items():
        assert abs(made.steps_of(task) - steps) <= 1


def test_tasks_are_interleaved_from_the_beginning():
    first = Counter(task for task, _ in batches(plan(weights=dict.fromkeys(SIZES, 1.0)), 9))
    assert set(first.values()) == {3}


def test_epochs_and_seeds_are_ordered_differently():
    epochs = [tuple(numbers) for _, numbers in batches(plan({"qa": 12}, batch_size=12, steps=5), 5)]
    assert len(set(epochs)) == 5
    assert batches(plan(seed=1)) != batches(plan(seed=0))


def test_a_task_without_rows_is_never_trained():
    made = plan({"qa": 5, "tool": 0})
    assert {task for task, _ in batches(made)} == {"qa"}
    assert (made.steps_of("tool"), made.steps_of("nowhere")) == (0, 0)


@pytest.mark.parametrize(
    ("rows", "weights"),
    [({}, {}), ({"qa": 0}, {}), ({"qa": 5}, {"qa": 0.0}), ({"qa": 5}, {"tool": 1.0}), ({"qa": 5}, {"qa": -1.0})],
)
def test_nothing_to_train_is_refused(rows, weights):
    with pytest.raises(ConfigError, match="no task to train"):
        plan(rows, weights)
