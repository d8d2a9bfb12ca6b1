"""Statistics that show whether labels carry signal, collected row by row in bounded memory.

They are shares, histograms and groups to read. Rows are those of `records.LABELLED`. Nothing here depends on the order
of the rows.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import fmean
from typing import Any

from embedder.config.label import LabelConfig
from embedder.config.tasks import OWN_REWARDS, RANK_REWARDS, TaskSpec
from embedder.labelling.even_draw import EvenDraw
from embedder.labelling.false_negatives import FalseNegatives, as_good_as_positive
from embedder.labelling.label_trust import LabelTrust, compared_scores
from embedder.labelling.rewards import desired_rank, group_rewards, is_flat, is_saturated
from embedder.reporting.html import TEXT_CHARACTERS, printable

EXAMPLES = 10
"""Groups to read that are kept of a task."""
REASON_WORDS, REASONS = 6, 20
"""Errors are counted by their first words; beyond so many reasons of a task the rest is counted together."""

RANK_STEP, SCORE_STEP = 0.5, 0.02
"""Width of a bin: ranks and their differences are whole or half, all other rewards are continuous."""
END_BIN = 5000
"""Bins on either side of the origin: scores up to 100 and ranks up to 2,500 are told apart."""
BARS = 50
"""At most so many bars of a histogram are shown, with neighbouring bins as one."""
# All but 1 are even, so that every bar of half ranks holds as many whole ranks.
MERGED_BINS = (1, 2, 4, 10, 20, 40, 100, 200, 400)
"""How many bins can be one bar; the last is enough for all bins there are."""

COMPARED = ("rank", "likelihood", "gain")
"""Kinds of reward whose share of flat groups is told side by side, whichever of them the task learns from."""

Row = Mapping[str, Any]
"""A row of `records.LABELLED`; the columns `truncated` and `output_tokens` may be null or missing."""


class Histogram:
    """Counts of finite values in bins of one width, and their mean.

    Bin k holds origin + k * step <= value < origin + (k + 1) * step. Values more than `END_BIN` bins from the origin
    are counted in the end bins.
    """

    # Sums are kept in whole steps of 1/UNIT, because a sum of floats depends on the order of the rows.
    UNIT = 2**20

    def __init__(self, step: float, origin: float = 0.0) -> None:
        self.step, self.origin = step, origin
        self.counts: Counter[int] = Counter()
        self._sum = 0

    def add(self, value: float) -> None:
        """Count one value."""
        self.counts[max(-END_BIN, min(END_BIN, math.floor((value - self.origin) / self.step)))] += 1
        self._sum += round(value * self.UNIT)

    @property
    def mean(self) -> float | None:
        """Mean of the values, to a millionth; None without values."""
        return self._sum / self.UNIT / self.counts.total() if self.counts else None

    def bars(self, merged: int = 1) -> dict[float, int]:
        """Counts by the lower end of the bar, in order; `merged` neighbouring bins are one bar."""
        bars: Counter[int] = Counter()
        for position, count in self.counts.items():
            bars[position // merged] += count
        return {round(self.origin + bar * merged * self.step, 6): bars[bar] for bar in sorted(bars)}


def bins_a_bar(histograms: Sequence[Histogram]) -> int:
    """How many bins become one bar, so that histograms of one step span about `BARS` bars at most."""
    positions = [position for histogram in histograms for position in histogram.counts] or [0]
    extent = max(positions) - min(positions) + 1
    return next(merged for merged in MERGED_BINS if extent <= BARS * merged)


@dataclass(frozen=True)
class LabelCost:
    """What the labelling of one run cost; earlier runs into the same folder are not in it."""

    seconds: float
    """Wall time."""
    pairs: int
    """(query, candidate) pairs that were scored."""
    tokens: int
    """Tokens the LLM computed, prompts and outputs together."""
    flops: float
    """Floating-point operations for these tokens."""
    peak_flops: float | None
    """Operations that the device of one actor can do in a second; None: not known."""
    actors: int
    money: float = 0.0
    """What a server asks for these tokens, by the prices of the run file."""

    @property
    def pairs_per_s(self) -> float:
        """Pairs a second of all actors together; 0 where no time was taken."""
        return self.pairs / self.seconds if self.seconds > 0 else 0.0

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second of all actors together; 0 where no time was taken."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0

    @property
    def peak_share(self) -> float | None:
        """Share of what the devices of all actors could have done in this time; None: not known."""
        return share_of_peak(self.flops, self.seconds * self.actors * (self.peak_flops or 0.0))

    @classmethod
    def of(cls, numbers: Mapping[str, Any]) -> LabelCost:
        """The cost in what `numbers` returned."""
        return cls(**{each.name: numbers[each.name] for each in fields(cls) if each.name in numbers})

    def numbers(self) -> dict[str, float | None]:
        """All of it by name, the rates included."""
        rates = {"pairs_per_s": self.pairs_per_s, "tokens_per_s": self.tokens_per_s, "peak_share": self.peak_share}
        return asdict(self) | rates


def share_of_peak(flops: float, possible: float) -> float | None:
    """Share of the possible operations; None where these are not known, or were measured too low.

    A machine that others use may give less while its peak is measured than later, and no share is above 1.
    """
    return flops / possible if possible > 0 and flops <= possible else None


def example(row: Row, sums: bool = False) -> dict[str, Any]:
    """What the page shows of a group, its texts cut and cleaned; what the labels do not hold is None.

    `desired`: the desired output; `outputs`: (text, log-likelihood without a candidate, is it the desired one) of each
    output, the likeliest first; `rank`: that of the desired output without a candidate, 1 is best; `candidates`: the
    highest reward first, each with the rank and log-likelihood of the desired output when the prompt holds it; for
    rewards that need no desired output with the mean log-likelihood of the LLM's own answers, or that of "yes".
    Log-likelihoods are means over the tokens, in nats; ranks are those of their sums where these count.
    """
    base, scores, ranked = row["base_scores"] or [], row["scores"], _is_ranked(row)
    ranked_base, ranked_scores = compared_scores(row, sums) if ranked else ([], [])
    is_own, several = row["reward"] in OWN_REWARDS, row["reward"] == "own_answers"
    texts = [printable(text) for text in row["outputs"] or (row["answers"] or [])[:1]]
    desired = [printable(text) for text in (row["answers"] or [])[:1]] if is_own else texts
    unknown = [None] * len(row["candidate_texts"])
    as_good = as_good_as_positive(row["rewards"], row["relevance"]) if row["rewards"] else []
    columns = {
        "text": [printable(text) for text in row["candidate_texts"]],
        "positive": [bool(known) for known in row["relevance"]],
        "as_good": [i in as_good for i in range(len(row["candidate_texts"]))],
        "reward": row["rewards"] or unknown,
        "rank": [desired_rank(with_candidate) for with_candidate in ranked_scores] if ranked else unknown,
        "likelihood": [fmean(each if several else each[:1]) for each in scores] if scores else unknown,
    }
    candidates = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    outputs = [(text, base[i], i == 0 and not is_own) for i, text in enumerate(texts)] if base else []
    return {
        **{name: printable(row[name]) for name in ("dataset", "query_id", "query")},
        "desired": desired[0] if desired else None,
        "outputs": sorted(dict.fromkeys(outputs), key=lambda output: -output[1]),
        "rank": desired_rank(ranked_base) if ranked else None,
        "candidates": sorted(candidates, key=lambda candidate: -(candidate["reward"] or 0.0)),
        "error": None if row["error"] is None else printable(row["error"]),
    }


class TaskStatistics:
    """The labels of one task. Counts and histograms; read them through `shares` and `numbers`.

    flat: all rewards are equal. saturated: the desired output is already first without a candidate. polarised: one
    candidate has the highest reward and all others have one and the same, so that the softmax of the rewards is nearly
    one-hot. decided: neither flat nor saturated. `margin` and `sums` are the task's `reward_margin`, and whether its
    `reward_sum` is the sum.
    """

    def __init__(self, seed: int, margin: float = 0.0, sums: bool = False) -> None:
        self.margin, self.sums = margin, sums
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        """Errors by their first words; of too many, those that come first in the alphabet."""
        self.rank_without, self.rank_with = Histogram(RANK_STEP, origin=1), Histogram(RANK_STEP, origin=1)
        """Rank of the desired output (1 is best): one value a group without a candidate, one a candidate with it."""
        self.chance = Histogram(SCORE_STEP)
        """For each group with a known positive: how likely a blind choice of the best would hold one."""
        self.rewards: dict[str, tuple[Histogram, Histogram]] = {}
        """By kind (rank, likelihood; teacher: no log-likelihoods): rewards of other candidates, and of positives."""
        self.trust = LabelTrust(seed, sums)
        """Whether the rewards agree with people and with themselves."""
        self.false_negatives = FalseNegatives(seed)
        self._examples = EvenDraw[dict[str, Any]](seed, EXAMPLES)

    def add(self, row: Row) -> None:
        """Count one row, and keep it to read if the draw falls on it.

        Rewards and scores must be finite, as those of the labeller are.

        Raises:
            KeyError: a column of `records.LABELLED` other than `truncated` and `output_tokens` is missing.
            ValueError: a row's rewards, relevance and texts differ in number.
        """
        self.counts["groups"] += 1
        # Not every teacher tells how many candidates it cut, so that the share is of those that do.
        if row.get("truncated") is not None:
            self.counts["truncated"] += row["truncated"]
            self.counts["cut_of"] += len(row["candidate_texts"])
        self._examples.offer(row["row_id"], lambda: example(row, self.sums))
        self.trust.add(row)
        if row["rewards"]:
            self._count_rewards(row)
        elif row["error"] is not None:
            self.counts["errors"] += 1
            self._count_reason(row["error"])
        else:
            self.counts["unrewarded"] += 1

    def _count_rewards(self, row: Row) -> None:
        rewards, ranked = row["rewards"], _is_ranked(row)
        best, least = max(rewards), min(rewards)
        bests = [i for i, reward in enumerate(rewards) if reward == best]
        flat = is_flat(rewards)
        base, scores = compared_scores(row, self.sums) if row["base_scores"] is not None else ([], [])
        saturated = ranked and is_saturated(base)
        self.counts["rewarded"] += 1
        self.counts["candidates"] += len(rewards)
        self.counts["flat"] += flat
        self.counts["saturated"] += saturated
        # A group of two candidates always is, because there is only one other.
        self.counts["polarised"] += not flat and rewards.count(least) == len(rewards) - 1
        self.counts["decided"] += not flat and not saturated
        self.false_negatives.add(row)
        if any(row["relevance"]) and not flat:
            self.counts["known"] += 1
            self.counts["agree"] += any(row["relevance"][i] for i in bests)
            self.chance.add(chance_of_positive(len(rewards), sum(map(bool, row["relevance"])), len(bests)))
        kind = "teacher" if row["base_scores"] is None else row["reward"]
        step = RANK_STEP if ranked and kind == "rank" else SCORE_STEP
        histograms = self.rewards.setdefault(kind, (Histogram(step), Histogram(step)))
        for reward, known in zip(rewards, row["relevance"], strict=True):
            histograms[bool(known)].add(reward)
        if ranked:
            self.counts["ranked"] += 1
            self.counts["samples"] += len(row["outputs"]) - 1
            self.rank_without.add(desired_rank(base))
            for with_candidate in scores:
                self.rank_with.add(desired_rank(with_candidate))
        if base and row["reward"] not in OWN_REWARDS:
            self._compare_kinds(base, scores, ranked)

    def _compare_kinds(self, base: Sequence[float], scores: Sequence[Sequence[float]], ranked: bool) -> None:
        """Count the group for each kind of reward, and that it is flat by it."""
        # Without rivals no rank can change, which says nothing of the group.
        for kind in COMPARED if ranked or len(base) > 1 else COMPARED[1:]:
            self.counts[f"scored_{kind}"] += 1
            self.counts[f"flat_{kind}"] += is_flat(group_rewards(kind, base, scores, self.margin))

    def _count_reason(self, error: str) -> None:
        words = re.sub(r"\d+", "#", printable(error, 10 * TEXT_CHARACTERS)).split()[:REASON_WORDS]
        self.reasons[" ".join(words)[:TEXT_CHARACTERS]] += 1
        if len(self.reasons) > REASONS:
            # The last of the alphabet goes, not the rarest: counts so far depend on the order of the rows.
            self.counts["other_reasons"] += self.reasons.pop(max(self.reasons))

    @property
    def examples(self) -> list[dict[str, Any]]:
        """Groups to read, at most `EXAMPLES`, drawn evenly from all rows by a seeded hash of `row_id`."""
        return self._examples.rows

    @property
    def as_good(self) -> list[dict[str, Any]]:
        """Groups to read in which a mined candidate is as good as a known positive."""
        return [example(row, self.sums) for row in self.false_negatives.rows]

    @property
    def disagreements(self) -> list[dict[str, Any]]:
        """Groups to read in which LLM and labels disagree most."""
        return [example(row, self.sums) for row in self.trust.disagreements]

    @property
    def mean_samples(self) -> float | None:
        """Distinct sampled outputs a group, the desired output not among them; None without ranks."""
        return self.counts["samples"] / self.counts["ranked"] if self.counts["ranked"] else None

    def shares(self) -> dict[str, float]:
        """The counts `groups`, `rewarded`, `errors`; then shares, of which those of nothing are left out.

        flat, saturated, polarised, decided: of the rewarded groups (saturated: of those with ranks). flat_rank,
        flat_likelihood, flat_gain: what flat would be with this kind of reward, of the groups with log-likelihoods.
        positive_is_best: a known positive has the highest reward, of the groups that know one and are not flat;
        positive_by_chance: the same for a blind choice. truncated: of the candidates of groups that tell.
        """
        counts = self.counts
        shares: dict[str, float] = {name: counts[name] for name in ("groups", "rewarded", "errors")}
        if counts["rewarded"]:
            shares |= {name: counts[name] / counts["rewarded"] for name in ("flat", "polarised", "decided")}
        if counts["ranked"]:
            shares["saturated"] = counts["saturated"] / counts["ranked"]
        for kind in COMPARED:
            if counts[f"scored_{kind}"]:
                shares[f"flat_{kind}"] = counts[f"flat_{kind}"] / counts[f"scored_{kind}"]
        if self.chance.mean is not None:
            shares["positive_is_best"] = counts["agree"] / counts["known"]
            shares["positive_by_chance"] = self.chance.mean
        if counts["cut_of"]:
            shares["truncated"] = counts["truncated"] / counts["cut_of"]
        return shares

    def numbers(self) -> dict[str, Any]:
        """All that is known, for JSON; histograms as counts by the lower end of the bar."""
        counts = {name: self.counts[name] for name in ("unrewarded", "ranked", "known", "candidates")}
        shares, reasons = self.shares(), dict(sorted(self.reasons.items()))
        if self.counts["other_reasons"]:
            reasons["(other)"] = self.counts["other_reasons"]
        return {
            **shares,
            **counts,
            "truncated_candidates": self.counts["truncated"] if "truncated" in shares else None,
            "mean_samples": self.mean_samples,
            "error_reasons": reasons,
            "trust": self.trust.numbers(),
            "false_negatives": self.false_negatives.numbers(),
            "rank_without": _histogram_numbers([self.rank_without])[0],
            "rank_with": _histogram_numbers([self.rank_with])[0],
            "rewards": {
                kind: dict(zip(("other", "positive"), _histogram_numbers(pair), strict=True))
                for kind, pair in sorted(self.rewards.items())
            },
        }


def statistics_of(label: LabelConfig, spec: TaskSpec | None) -> TaskStatistics:
    """The statistics of a task before its first row; blocks may hold labels of a task that the run file has dropped."""
    if spec is None:
        return TaskStatistics(label.seed)
    return TaskStatistics(label.seed, spec.reward_margin, spec.reward_sum == "sum")


def chance_of_positive(candidates: int, positives: int, chosen: int) -> float:
    """How likely at least one of `chosen` of the candidates, drawn blindly, is a positive."""
    return 1 - math.comb(candidates - positives, chosen) / math.comb(candidates, chosen)


def _is_ranked(row: Row) -> bool:
    # Rewards of another teacher can be called ranks too, but hold no log-likelihoods to take ranks from.
    return row["reward"] in RANK_REWARDS and bool(row["rewards"]) and row["base_scores"] is not None


def _histogram_numbers(histograms: Sequence[Histogram]) -> list[dict[str, Any]]:
    merged = bins_a_bar(histograms)
    return [
        {
            "mean": histogram.mean,
            "bar_width": round(histogram.step * merged, 6),
            "counts": {f"{low:g}": count for low, count in histogram.bars(merged).items()},
        }
        for histogram in histograms
    ]
