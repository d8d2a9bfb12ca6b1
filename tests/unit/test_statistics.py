"""Intervals and the test of significance, against theory, against counting, and for units that are drawn together."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from embedder.evaluation import statistics
from embedder.evaluation.base import PERPLEXITY, Measure
from embedder.evaluation.statistics import Table, average, difference, draw, estimate

MEAN = Measure("x")
ROUNDS = 4000


def table(*columns, weights=None, units=None, measure=MEAN):
    values = np.array(columns, dtype=float).T
    same = np.ones_like(values) if weights is None else np.array([weights] * values.shape[1], dtype=float).T
    places = np.arange(len(values)) if units is None else np.array(units)
    return Table(measure, values, same, places)


def drawn(one, rounds=ROUNDS, seed=0):
    return draw(one, 0, rounds, seed)


BASE = [i / 20 for i in range(20)]


def test_bootstrap_a_constant_gain_has_an_interval_of_no_width_and_is_sure():
    found = difference(drawn(table(BASE, [value + 0.25 for value in BASE])), 1, 0)
    assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))
    assert found.p == pytest.approx(1 / (ROUNDS + 1))


def test_bootstrap_the_interval_of_a_mean_is_as_wide_as_theory_says():
    values = np.random.default_rng(1).normal(3, 2, size=400)
    found = estimate(drawn(table(values)), 0)
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(400), rel=0.1)
    assert found.low < found.value < found.high


def test_randomisation_test_no_difference_at_all_is_certain_to_be_chance():
    found = difference(drawn(table(BASE, BASE)), 1, 0)
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)


@pytest.mark.parametrize("seed", range(3))
def test_randomisation_test_p_is_the_share_of_swaps_that_come_as_far_apart(seed):
    random = np.random.default_rng(seed)
    one, other = random.normal(size=(2, 9))
    other = other + 0.4
    observed = abs(float((other - one).mean()))
    counted = [
        abs(float((np.where(swap, one - other, other - one)).mean())) >= observed - 1e-12
        for swap in product([False, True], repeat=9)
    ]
    found = difference(drawn(table(one, other), rounds=40_000), 1, 0)
    assert found.p == pytest.approx(np.mean(counted), abs=0.01)


def test_randomisation_test_equal_means_of_noise_are_rarely_called_different():
    random = np.random.default_rng(0)
    ps = []
    for trial in range(200):
        one, other = random.normal(size=(2, 30))
        ps.append(difference(draw(table(one, other), 0, 400, trial), 1, 0).p)
    assert 0.01 <= np.mean(np.array(ps) < 0.05) <= 0.1
    assert np.mean(np.array(ps) < 0.5) == pytest.approx(0.5, abs=0.12)


def test_perplexity_weighs_tokens_and_not_outputs():
    one = table([1.0, 3.0], weights=[30, 10], measure=PERPLEXITY)
    assert drawn(one).point_N[0] == pytest.approx(math.exp((30 * 1.0 + 10 * 3.0) / 40))


def test_bootstrap_an_interval_of_a_perplexity_is_its_own_scale():
    random = np.random.default_rng(2)
    found = estimate(
        drawn(table(random.normal(2, 0.5, 200), weights=random.integers(5, 50, 200), measure=PERPLEXITY)), 0
    )
    assert 0 < found.low < found.value < found.high
    assert found.value == pytest.approx(math.exp(2), rel=0.1)


def test_bootstrap_queries_of_one_document_are_drawn_together():
    """Ten documents whose queries all say the same thing are ten votes, not a hundred."""
    votes = np.random.default_rng(3).normal(size=10)
    values = np.repeat(votes, 10)
    alone, together = (estimate(drawn(table(values, units=units)), 0) for units in (None, np.repeat(np.arange(10), 10)))
    assert together.value == pytest.approx(alone.value)
    ratio = (together.high - together.low) / (alone.high - alone.low)
    assert ratio == pytest.approx(math.sqrt(10), rel=0.15)
    swapped = table(values, values + np.repeat(np.abs(votes) + 0.1, 10), units=np.repeat(np.arange(10), 10))
    assert difference(drawn(swapped), 1, 0).p >= 1 / 2**10


def test_bootstrap_units_of_unequal_size_keep_their_weight():
    values, units = [1.0] * 90 + [0.0] * 10, [0] * 90 + list(range(1, 11))
    assert drawn(table(values, units=units)).point_N[0] == pytest.approx(0.9)


def test_average_counts_each_dataset_once():
    small, large = table([0.0, 0.0], [1.0, 1.0]), table([0.5] * 100, [0.5] * 100)
    found = average([drawn(small), drawn(large, seed=1)])
    assert found.point_N == pytest.approx([0.25, 0.75])
    assert difference(found, 1, 0).value == pytest.approx(0.5)
    assert estimate(found, 1).value == pytest.approx(0.75)


def test_bootstrap_the_same_seed_draws_the_same(monkeypatch):
    one = table(BASE, BASE[::-1])
    first = drawn(one)
    assert np.array_equal(first.resampled_RN, drawn(one).resampled_RN)
    assert not np.array_equal(first.resampled_RN, drawn(one, seed=1).resampled_RN)
    monkeypatch.setattr(statistics, "CELLS", 7)
    small = drawn(one, rounds=50)
    assert small.resampled_RN.shape == (50, 2) and small.swapped_RN.shape == (50, 2)


def test_bootstrap_a_single_query_has_no_width():
    found = estimate(drawn(table([2.0])), 0)
    assert (found.low, found.value, found.high) == (2.0, 2.0, 2.0)
