"""The statistics of the study: known answers, coverage, and how often nothing is called something."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.study_statistics import Gains, gain, holm, training_spread

RESAMPLES = 400
TRIALS = 250


def test_holm_corrects_the_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_the_order_and_the_first_is_bonferroni():
    p_values = list(np.random.default_rng(0).uniform(size=20))
    adjusted = holm(p_values)
    assert all(np.diff(np.array(adjusted)[np.argsort(p_values)]) >= 0)
    assert min(adjusted) == pytest.approx(min(1.0, 20 * min(p_values)))


def test_gain_is_the_mean_over_data_sets_of_weighted_means_over_queries():
    one = Gains({"a": np.array([1.0, 6.0]), "b": np.array([3.0, 2.0])}, np.array([1.0, 3.0]))  # 7/4 and 5/4
    other = Gains({"c": np.array([0.5, 0.5])}, np.array([1.0, 1.0]))
    assert gain([one, other], 10, 0).value == pytest.approx((1.5 + 0.5) / 2)


def test_gain_of_equal_trainings_has_the_interval_of_its_queries():
    values = np.random.default_rng(1).normal(0.1, 1.0, 500)
    found = gain([Gains(dict.fromkeys("abcdef", values), np.ones(500))], 20_000, 0)
    error = values.std(ddof=1) / np.sqrt(500)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.05)
    assert found.over_trainings and found.trainings == 6


def test_gain_of_equal_queries_has_the_interval_of_students_t():
    levels = [0.01, 0.03, 0.02, 0.05, 0.0, 0.01]
    found = gain([Gains({str(i): np.full(40, level) for i, level in enumerate(levels)}, np.ones(40))], 50_000, 0)
    half = 2.5706 * np.std(levels, ddof=1) / np.sqrt(6)
    assert (found.low, found.high) == pytest.approx((0.02 - half, 0.02 + half), abs=0.1 * half)


def test_a_single_unit_or_no_difference_claims_nothing():
    one = gain([Gains({"a": np.array([5.0]), "b": np.array([5.0])}, np.array([1.0]))], 100, 0)
    assert (one.value, one.low, one.high, one.p) == (5.0, -np.inf, np.inf, 1.0)
    same = gain([Gains({"a": np.zeros(9), "b": np.zeros(9)}, np.ones(9))], 100, 0)
    assert (same.value, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)


def test_training_spread_compares_trainings_that_report_on_the_same_data_sets_alone():
    first = Gains({"a": np.array([1.0]), "b": np.array([3.0])}, np.ones(1))
    second = Gains({"c": np.array([10.0]), "d": np.array([10.0])}, np.ones(1))
    # Mean over both of (mean of two): each of a and b counts a quarter, so the error is sqrt(2 x 2 / 16).
    assert training_spread([first, second]) == (pytest.approx(0.5), 2)
    assert training_spread([Gains({"a": np.ones(3)}, np.ones(3))]) == (0.0, 0)


def test_two_trainings_of_a_data_set_borrow_the_spread_of_their_task():
    random = np.random.default_rng(2)
    sets = [Gains({f"{i}a": random.normal(size=30), f"{i}b": random.normal(size=30)}, np.ones(30)) for i in range(6)]
    alone, borrowed = gain(sets[:1], 4000, 0), gain(sets[:1], 4000, 0, pooled=sets)
    assert borrowed.high - borrowed.low < alone.high - alone.low
    assert (borrowed.trainings, borrowed.value) == (2, alone.value)


def simulated(random, strata, trainings, units, spread, *, arms=1):
    """Gains of `arms` arms of one method: training effects differ, query effects are shared, the true gain is 0."""
    of_training, of_unit, noise = spread
    unit_effects = [random.normal(0, of_unit, units) for _ in range(strata)]
    return [
        [
            {
                f"{stratum}.{i}": random.normal(0, of_training) + unit_effects[stratum] + random.normal(0, noise, units)
                for i in range(trainings)
            }
            for stratum in range(strata)
        ]
        for _ in range(arms)
    ]


LAYOUTS = {
    "two directions, trainings decide": (2, 3, 40, (0.02, 0.02, 0.05)),
    "two directions, queries decide": (2, 3, 40, (0.002, 0.2, 0.1)),
    "six left-out sets": (6, 2, 30, (0.02, 0.05, 0.1)),
    "both directions on few documents": (1, 6, 8, (0.01, 0.05, 0.05)),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_gain_covers_the_truth_in_about_95_of_100_cases(layout):
    random, covered, called = np.random.default_rng(3), 0, 0
    for trial in range(TRIALS):
        (arm,) = simulated(random, *layout)
        found = gain([Gains(each, np.ones(layout[2])) for each in arm], RESAMPLES, trial)
        covered += found.low <= 0 <= found.high
        called += found.p < 0.05
    assert 0.93 <= covered / TRIALS <= 0.995
    assert called / TRIALS <= 0.07


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_two_arms_of_one_method_differ_in_5_of_100_cases_at_most(layout):
    random, called = np.random.default_rng(4), 0
    for trial in range(TRIALS):
        first, second = simulated(random, *layout, arms=2)
        paired = [
            Gains({name: one[name] - other[name] for name in one}, np.ones(layout[2]))
            for one, other in zip(first, second, strict=True)
        ]
        called += gain(paired, RESAMPLES, trial).p < 0.05
    assert called / TRIALS <= 0.06


def test_gain_finds_what_is_there():
    random = np.random.default_rng(5)
    (arm,) = simulated(random, 2, 6, 200, (0.01, 0.1, 0.1))
    found = gain([Gains({name: 0.05 + values for name, values in each.items()}, np.ones(200)) for each in arm], 4000, 0)
    assert found.low > 0 and found.p < 0.01 and found.low < 0.05 < found.high
