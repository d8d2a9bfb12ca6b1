"""Says how sure a number is: bootstrap intervals, and paired differences with a randomisation test.

Q queries, N retrievers, U units, R resamples. What is drawn again is a unit: a document or conversation with all of its
queries, or a query that stands alone, since chunks of one book do not vote independently. Intervals are the 2.5 and
97.5 percentiles of R bootstrap resamples (Efron 1979); the difference of two retrievers is taken in the same ones. The
p-value is that of a two-sided paired randomisation test (Fisher; Smucker et al. 2007): R times the values of two
retrievers are swapped unit by unit at random, and it is counted how often they come as far apart as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedder.evaluation.base import Measure

Floats = NDArray[np.float64]
CELLS = 4_000_000
"""Random numbers drawn at a time, because R x U of them may not fit into memory."""


@dataclass(frozen=True)
class Table:
    """Values of the same queries for all retrievers of one dataset and measure."""

    measure: Measure
    values_QN: Floats
    weights_QN: Floats
    units_Q: NDArray[np.int64]
    """The unit of each query, counted from 0."""


@dataclass(frozen=True)
class Estimate:
    """A number and its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Estimate):
    """How far one retriever is from the baseline, and how easily chance brings that about."""

    p: float


@dataclass(frozen=True)
class Drawn:
    """A measure of all retrievers, over one dataset or averaged over several."""

    point_N: Floats
    resampled_RN: Floats
    swapped_RN: Floats
    """The difference to the baseline when values are swapped at random."""


def draw(table: Table, baseline: int, resamples: int, seed: int) -> Drawn:
    """The measure as it is, in bootstrap resamples, and with values swapped against those of retriever `baseline`."""
    count_U = np.bincount(table.units_Q)
    units, retrievers = len(count_U), table.values_QN.shape[1]
    # A measure is a quotient of sums over units, so no resample has to go back to the queries.
    sums_UN2 = np.zeros((units, retrievers, 2))
    np.add.at(sums_UN2[..., 0], table.units_Q, table.values_QN * table.weights_QN)
    np.add.at(sums_UN2[..., 1], table.units_Q, table.weights_QN)
    total_N2 = sums_UN2.sum(0)
    shift_UN2 = sums_UN2[:, [baseline]] - sums_UN2
    random = np.random.default_rng(seed)
    resampled, swapped = [], []
    for first in range(0, resamples, max(1, CELLS // units)):
        some = min(resamples - first, max(1, CELLS // units))
        drawn = random.integers(0, units, size=(some, units)) + units * np.arange(some)[:, None]
        # How often each unit was drawn, for all resamples by one count: those of resample r are moved by r x U.
        count_RU = np.bincount(drawn.ravel(), minlength=some * units).reshape(some, units).astype(np.float64)
        resampled.append(_measure(table.measure, np.tensordot(count_RU, sums_UN2, 1)))
        swap_RU = random.integers(0, 2, size=(some, units)).astype(np.float64)
        # A swapped unit brings its sums to the other retriever: what one gains the other loses.
        moved_RN2 = np.tensordot(swap_RU, shift_UN2, 1)
        other = _measure(table.measure, total_N2 + moved_RN2)
        swapped.append(other - _measure(table.measure, total_N2[[baseline]] - moved_RN2))
    return Drawn(_measure(table.measure, total_N2), np.concatenate(resampled), np.concatenate(swapped))


def average(parts: Sequence[Drawn]) -> Drawn:
    """The mean over datasets, each of which counts once however many queries it has."""
    return Drawn(
        np.mean([part.point_N for part in parts], axis=0),
        np.mean([part.resampled_RN for part in parts], axis=0),
        np.mean([part.swapped_RN for part in parts], axis=0),
    )


def estimate(drawn: Drawn, retriever: int) -> Estimate:
    """A retriever's number with its 95 % interval."""
    low, high = np.quantile(drawn.resampled_RN[:, retriever], [0.025, 0.975])
    return Estimate(float(drawn.point_N[retriever]), float(low), float(high))


def distance(drawn: Drawn, retriever: int, other: int) -> Estimate:
    """A retriever less any other one, with the 95 % interval."""
    low, high = np.quantile(drawn.resampled_RN[:, retriever] - drawn.resampled_RN[:, other], [0.025, 0.975])
    return Estimate(float(drawn.point_N[retriever] - drawn.point_N[other]), float(low), float(high))


def difference(drawn: Drawn, retriever: int, baseline: int) -> Difference:
    """A retriever less the baseline, with the 95 % interval and the p-value."""
    found = distance(drawn, retriever, baseline)
    value = found.value
    swapped_R = np.abs(drawn.swapped_RN[:, retriever])
    # Rounding must not make a swap that changes nothing look nearer than it is.
    as_far = int((swapped_R >= abs(value) - 1e-12 * max(1.0, abs(value))).sum())
    # One more in both counts, because the values as they are belong to the swaps: p is never 0.
    return Difference(value, found.low, found.high, (as_far + 1) / (len(swapped_R) + 1))


def _measure(measure: Measure, sums: Floats) -> Floats:
    """The measure from sums of weighted values and of weights, which lie in the last axis."""
    mean: Floats = sums[..., 0] / sums[..., 1]
    return np.exp(mean) if measure.kind == "perplexity" else mean
