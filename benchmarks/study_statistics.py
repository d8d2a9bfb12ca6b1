"""How sure a gain is that several trainings show on several data sets: pure functions of numbers.

D data sets, K trainings, U units of queries (documents, conversations, or queries that stand alone), R resamples.

The gain of a task is the mean over its data sets of the mean over the trainings that report on them. Chance enters
twice: another training would gain something else, and so would other queries. Both are drawn again, and their two
deviations are added:

- units are drawn with replacement within each data set, the same ones for all its trainings, which all met the same
  queries. Of few units a resample spreads too little, so its deviation is multiplied by sqrt(U / chi-square(U - 1)),
  which gives the tails of Student's t.
- trainings are too few to be drawn with replacement: an interval from six of them would be three tenths too narrow.
  Their part is drawn from Student's t with the spread that they show, and as many degrees of freedom.

Interval: the 2.5 and 97.5 percentiles; p: twice the share of draws on the far side of 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
CELLS = 4_000_000
"""Random numbers drawn at a time, because R x U of them may not fit into memory."""
FEW = 3
"""With fewer trainings than this, the spread over trainings is that of all data sets of the task together."""


@dataclass(frozen=True)
class Gains:
    """What each training gains on one data set over what it is compared with."""

    by_training: Mapping[str, Floats]
    """Name of the training -> for each unit, the sum over its queries of weight x gain."""
    weight_U: Floats
    """The sum of the weights of each unit's queries."""

    @property
    def mean(self) -> float:
        """The mean over trainings of the weighted mean over queries."""
        return fmean(self.of(name) for name in self.by_training)

    def of(self, training: str) -> float:
        """The weighted mean over queries of one training."""
        return float(self.by_training[training].sum() / self.weight_U.sum())


@dataclass(frozen=True)
class Gain:
    """A gain with its 95 % interval and the p-value against none."""

    value: float
    low: float
    high: float
    p: float
    trainings: int
    """Trainings behind it."""
    over_trainings: bool
    """False: there is one training a data set, or none was trained, and the interval is over queries alone."""


def gain(datasets: Sequence[Gains], resamples: int, seed: int, pooled: Sequence[Gains] | None = None) -> Gain:
    """The gain over some data sets, each of which counts once.

    `pooled`: all data sets of the task, whose trainings say how much trainings spread where `datasets` have too few.
    """
    random = np.random.default_rng(seed)
    spread, freedom = training_spread(datasets)
    names = {name for each in datasets for name in each.by_training}
    if pooled is not None and len(names) < FEW:
        scale = sqrt(len(pooled) / len(datasets))
        spread, freedom = training_spread(pooled)
        spread *= scale
    value = fmean(each.mean for each in datasets)
    if any(len(each.weight_U) == 1 for each in datasets):
        # A single unit does not say how units differ, so nothing can be claimed.
        return Gain(value, -np.inf, np.inf, 1.0, len(names), freedom > 0)
    draw_R = np.full(resamples, value)
    for each in datasets:
        draw_R += _unit_deviations(each, resamples, random) / len(datasets)
    if freedom:
        draw_R += spread * random.standard_t(freedom, resamples)
    low, high = np.quantile(draw_R, [0.025, 0.975])
    # One more in both counts, because the value itself belongs to the draws: p is never 0.
    far = min(int((draw_R <= 0).sum()), int((draw_R >= 0).sum()))
    p = min(1.0, 2 * (far + 1) / (resamples + 1))
    return Gain(value, float(low), float(high), p, len(names), freedom > 0)


def training_spread(datasets: Sequence[Gains]) -> tuple[float, int]:
    """The standard error that the spread over trainings gives the mean over data sets, and its degrees of freedom.

    Trainings that report on the same data sets are of one stratum; only within a stratum do they tell how they spread.
    """
    share: dict[str, float] = {}
    strata: dict[str, list[int]] = {}
    for number, each in enumerate(datasets):
        for name in each.by_training:
            share[name] = share.get(name, 0.0) + each.of(name) / (len(each.by_training) * len(datasets))
            strata.setdefault(name, []).append(number)
    members: dict[tuple[int, ...], list[str]] = {}
    for name, numbers in strata.items():
        members.setdefault(tuple(numbers), []).append(name)
    variance, freedom = 0.0, 0
    for names in members.values():
        if len(names) > 1:
            variance += len(names) * float(np.var([share[name] for name in names], ddof=1))
            freedom += len(names) - 1
    return sqrt(variance), freedom


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm 1979): the chance that any of the table is below it by chance."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, greatest = [0.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        greatest = max(greatest, min(1.0, (len(p_values) - place) * p_values[i]))
        adjusted[i] = greatest
    return adjusted


def _unit_deviations(gains: Gains, resamples: int, random: np.random.Generator) -> Floats:
    """How far the data set's gain moves when its units are drawn anew, for each resample."""
    sum_U = np.mean(list(gains.by_training.values()), axis=0)
    units, mean = len(sum_U), float(sum_U.sum() / gains.weight_U.sum())
    drawn = []
    for first in range(0, resamples, max(1, CELLS // units)):
        some = min(resamples - first, max(1, CELLS // units))
        # How often each unit was drawn, for all resamples by one count: those of resample r are moved by r x U.
        place = random.integers(0, units, size=(some, units)) + units * np.arange(some)[:, None]
        count_RU = np.bincount(place.ravel(), minlength=some * units).reshape(some, units).astype(np.float64)
        drawn.append(count_RU @ sum_U / (count_RU @ gains.weight_U) - mean)
    widened: Floats = np.concatenate(drawn) * np.sqrt(units / random.chisquare(units - 1, resamples))
    return widened
