"""Whether rewards can be trusted: do they agree with people, with themselves, with another seed, and with answers?

Collected row by row in bounded memory. Rows are those of `records.LABELLED`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import correlation
from typing import Any

from embedder.config.tasks import RANK_REWARDS
from embedder.hashing import row_seed
from embedder.labelling.rewards import is_flat, mean_gain, rank_reward, summed

DISAGREEMENTS = 5
"""Groups in which LLM and labels disagree most, that are kept to read."""
ENOUGH_GROUPS = 20
"""Fewer groups say nothing that a warning could rest on."""
MOST_FLAT = 0.5
LEAST_RELIABLE = 0.5
LEAST_STABLE = 0.5
CERTAIN = 1.96
"""Standard errors of an interval of 95 %."""
FEWEST_RIVALS = 4
"""Of fewer rivals no half has two."""

Row = Mapping[str, Any]


@dataclass
class GroupMean:
    """The mean of one value a group."""

    groups: int = 0
    _total: float = 0.0
    _squares: float = 0.0

    def count(self, value: float) -> None:
        """Count the value of a group."""
        self.groups += 1
        self._total += value
        self._squares += value**2

    @property
    def mean(self) -> float | None:
        """None without groups."""
        return round(self._total / self.groups, 6) if self.groups else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the mean, groups taken as independent; None for fewer than two."""
        if self.groups < 2:
            return None
        mean = self._total / self.groups
        spread = math.sqrt(max(0.0, self._squares / self.groups - mean**2) / (self.groups - 1))
        return round(mean - CERTAIN * spread, 6), round(mean + CERTAIN * spread, 6)


class Agreement(GroupMean):
    """How often a known positive has a higher reward than another candidate, ties half; 0.5 is chance."""

    def add(self, rewards: Sequence[float], relevance: Sequence[int]) -> None:
        """Count a group with both kinds of candidates; others say nothing."""
        known = [reward for reward, is_known in zip(rewards, relevance, strict=True) if is_known]
        others = [reward for reward, is_known in zip(rewards, relevance, strict=True) if not is_known]
        if known and others:
            wins = sum((one > other) + 0.5 * (one == other) for one in known for other in others)
            self.count(wins / (len(known) * len(others)))


@dataclass
class SameOrder:
    """How far two rewards order the candidates of a group alike; groups in which one is flat have no order."""

    spearman: GroupMean = field(default_factory=GroupMean)
    """Rank correlation within each group."""
    best: GroupMean = field(default_factory=GroupMean)
    """How often a best candidate by the first, drawn blindly where there are several, is one by the second too."""

    def add(self, first: Sequence[float], second: Sequence[float]) -> None:
        """Count a group."""
        if is_flat(first) or is_flat(second):
            return
        self.spearman.count(correlation(_ranks(first), _ranks(second)))
        bests = [i for i, reward in enumerate(first) if reward == max(first)]
        self.best.count(sum(second[i] == max(second) for i in bests) / len(bests))


@dataclass
class WithAnswers:
    """Rewards without a desired output beside those from the answers that the same rows have."""

    order: SameOrder = field(default_factory=SameOrder)
    shuffled: SameOrder = field(default_factory=SameOrder)
    """The same for rewards that are shuffled within each group."""

    def line(self, kind: str) -> str:
        """One line, beside rewards of a kind."""
        spearman, best = self.order.spearman, self.order.best
        if spearman.mean is None or spearman.interval is None or best.mean is None:
            return f"beside {kind} from the rows' answers: too few groups that both order"
        return (
            f"beside {kind} from the rows' answers: Spearman {spearman.mean:.2f} ({spearman.interval[0]:.2f} to "
            f"{spearman.interval[1]:.2f}; shuffled {self.shuffled.spearman.mean:.2f}) within {spearman.groups} groups "
            f"that both order; the same best candidate in {best.mean:.0%} (shuffled {self.shuffled.best.mean:.0%})"
        )

    def numbers(self) -> dict[str, Any]:
        """All of it by name, for JSON."""
        return {
            "groups": self.order.spearman.groups,
            "spearman": self.order.spearman.mean,
            "interval": list(self.order.spearman.interval) if self.order.spearman.interval else None,
            "spearman_shuffled": self.shuffled.spearman.mean,
            "same_best": self.order.best.mean,
            "same_best_shuffled": self.shuffled.best.mean,
        }


@dataclass
class WithinGroups:
    """Correlation of two rewards of the same candidates, each less its mean over the group; pooled over groups."""

    groups: int = 0
    _both: float = 0.0
    _first: float = 0.0
    _second: float = 0.0

    def add(self, first: Sequence[float], second: Sequence[float]) -> None:
        """Count a group."""
        one, other = _centred(first), _centred(second)
        self.groups += 1
        self._both += math.fsum(a * b for a, b in zip(one, other, strict=True))
        self._first += math.fsum(a * a for a in one)
        self._second += math.fsum(b * b for b in other)

    @property
    def value(self) -> float | None:
        """-1 to 1; None where one of the two never differs within a group."""
        product = self._first * self._second
        return round(self._both / math.sqrt(product), 6) if product > 0 else None


@dataclass
class LabelTrust:
    """Collects what speaks for and against the rewards of one task."""

    seed: int
    sums: bool = False
    """Log-likelihoods of outputs are compared as sums over their tokens (the task's `reward_sum`), not as means."""
    agreement: Agreement = field(default_factory=Agreement)
    shuffled: Agreement = field(default_factory=Agreement)
    """The same for rewards that are shuffled within each group, which no LLM made: about 0.5, as far as chance goes."""
    halves: WithinGroups = field(default_factory=WithinGroups)
    """Ranks among one half of the rivals against those among the other; or rewards by halves of own answers."""
    stability: WithinGroups = field(default_factory=WithinGroups)
    """Rewards against those of another seed: other samples, other worked examples."""
    with_answers: dict[str, WithAnswers] = field(default_factory=dict)
    """By kind of reward from answers; of rewards that need none."""
    rewarded: int = 0
    flat: int = 0
    _against: list[tuple[float, str, Row]] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Count a row; one without rewards says nothing."""
        rewards = row["rewards"]
        if not rewards:
            return
        self.rewarded += 1
        self.flat += max(rewards) == min(rewards)
        self.agreement.add(rewards, row["relevance"])
        self.shuffled.add(self._shuffled(row), row["relevance"])
        if row["base_scores"] is not None:
            self._add_halves(row["reward"], *compared_scores(row, self.sums))
        self._keep(row)

    def _add_halves(self, reward: str, base: Sequence[float], scores: Sequence[Sequence[float]]) -> None:
        """Count the rewards of a row by each half of what was sampled, where they depend on it."""
        if reward == "own_answers" and len(base) > 1:
            self.halves.add(*(_among(mean_gain, range(start, len(base), 2), base, scores) for start in (0, 1)))
        elif reward in RANK_REWARDS and len(base) > FEWEST_RIVALS:
            # With each half of the rivals the desired output, which is the first.
            halves = ([0, *range(start, len(base), 2)] for start in (1, 2))
            self.halves.add(*(_among(rank_reward, half, base, scores) for half in halves))

    def _shuffled(self, row: Row) -> list[float]:
        mixed = list(row["rewards"])
        random.Random(row_seed(self.seed, "shuffled", row["row_id"])).shuffle(mixed)
        return mixed

    def add_repeated(self, row: Row, again: Row) -> None:
        """Count a row beside the same one that was labelled with another seed."""
        if row["rewards"] and again["rewards"]:
            self.stability.add(row["rewards"], again["rewards"])

    def add_with_answers(self, row: Row, kind: str, rewards: Sequence[float]) -> None:
        """Count a row beside rewards of its candidates that were made from its answers."""
        if row["rewards"]:
            found = self.with_answers.setdefault(kind, WithAnswers())
            found.order.add(row["rewards"], rewards)
            found.shuffled.add(self._shuffled(row), rewards)

    def _keep(self, row: Row) -> None:
        known = [reward for reward, positive in zip(row["rewards"], row["relevance"], strict=True) if positive]
        if known and max(row["rewards"]) > max(known):
            self._against.append((max(known) - max(row["rewards"]), str(row["row_id"]), row))
            # The id decides between equals, so that the order of the rows does not.
            self._against = sorted(self._against, key=lambda each: each[:2])[:DISAGREEMENTS]

    @property
    def disagreements(self) -> list[Row]:
        """Groups of which another candidate has a higher reward than all known positives, the farthest first."""
        return [row for _, _, row in self._against]

    @property
    def reliability(self) -> float | None:
        """Of all outputs together, from their halves (Spearman and Brown, 1910); None where there are too few."""
        half = self.halves.value
        return None if half is None or half <= -1 else round(2 * half / (1 + half), 6)

    def warnings(self) -> list[str]:
        """What speaks against these rewards, each with what to do; none where too few groups were rewarded."""
        if self.rewarded < ENOUGH_GROUPS:
            return []
        told = []
        if self.flat > MOST_FLAT * self.rewarded:
            told.append(
                f"{self.flat} of {self.rewarded} groups are flat and teach nothing; take reward: gain, more rivals "
                "(label.num_samples), or a stronger LLM"
            )
        interval = self.agreement.interval
        if interval and self.agreement.groups >= ENOUGH_GROUPS and interval[0] <= 0.5:
            told.append(
                f"a known positive has a higher reward than another candidate in {self.agreement.mean:.0%} of pairs "
                f"({interval[0]:.0%} to {interval[1]:.0%}), which chance gives too; read the groups below, then take "
                "another template, more shots, a stronger LLM, or reward: none"
            )
        if self.reliability is not None and self.reliability < LEAST_RELIABLE:
            told.append(
                f"rewards by two halves of the sampled outputs hardly agree (reliability {self.reliability:.2f}); "
                "raise label.num_samples, or, with answers in the rows, take reward: gain"
            )
        if self.stability.value is not None and self.stability.value < LEAST_STABLE:
            told.append(
                f"another seed gives other rewards (correlation {self.stability.value:.2f}); raise label.num_samples "
                "or shots, or take reward: gain"
            )
        for kind, beside in sorted(self.with_answers.items()):
            bounds = beside.order.spearman.interval
            if bounds and beside.order.spearman.groups >= ENOUGH_GROUPS and bounds[0] <= 0:
                told.append(
                    f"rewards without answers order the candidates as {kind} from answers does no more than chance "
                    "would; give the task worked_examples, take a stronger LLM, or reward: none"
                )
        return told

    def numbers(self) -> dict[str, Any]:
        """All of it by name, for JSON; what is not known is None."""
        return {
            "positive_above_other": self.agreement.mean,
            "interval": list(self.agreement.interval) if self.agreement.interval else None,
            "positive_above_other_shuffled": self.shuffled.mean,
            "groups_with_known_positives": self.agreement.groups,
            "reliability": self.reliability,
            "stability": self.stability.value,
            "with_answers": {kind: beside.numbers() for kind, beside in sorted(self.with_answers.items())},
            "warnings": self.warnings(),
        }

    def line(self) -> str:
        """What is known in one line; empty without rewards."""
        mean, interval = self.agreement.mean, self.agreement.interval
        parts = []
        if mean is not None and interval is not None:
            parts.append(
                f"a known positive above another candidate in {mean:.0%} of pairs ({interval[0]:.0%} to "
                f"{interval[1]:.0%}; shuffled {self.shuffled.mean:.0%})"
            )
        if self.reliability is not None:
            parts.append(f"split-half reliability {self.reliability:.2f}")
        if self.stability.value is not None:
            parts.append(f"correlation with another seed {self.stability.value:.2f}")
        return "; ".join(parts)


def _centred(values: Sequence[float]) -> list[float]:
    mean = math.fsum(values) / len(values)
    return [value - mean for value in values]


def compared_scores(row: Row, sums: bool) -> tuple[Sequence[float], Sequence[Sequence[float]]]:
    """The log-likelihoods that are compared, without a candidate and with each: means, or sums where these count."""
    base, scores, tokens = row["base_scores"], row["scores"], row.get("output_tokens")
    return (summed(base, tokens), [summed(each, tokens) for each in scores]) if sums and tokens else (base, scores)


def _among(
    reward: Callable[[list[float], list[float]], float],
    outputs: Sequence[int],
    base: Sequence[float],
    scores: Sequence[Sequence[float]],
) -> list[float]:
    """Rewards of each candidate where these outputs alone are there."""
    known = [base[i] for i in outputs]
    return [reward(known, [row[i] for i in outputs]) for row in scores]


def _ranks(values: Sequence[float]) -> list[float]:
    """Rank of each value from below; equal ones share the mean of theirs."""
    return [sum(other < value for other in values) + 0.5 * values.count(value) for value in values]


def trust_lines(tasks: Mapping[str, LabelTrust]) -> list[str]:
    """Whether the rewards of each task can be trusted, and what to do where they cannot."""
    lines = []
    for task, trust in sorted(tasks.items()):
        lines += [f"{task}: {line}" for line in [trust.line()] if line]
        lines += [f"{task}: {beside.line(kind)}" for kind, beside in sorted(trust.with_answers.items())]
        lines += [f"WARNING: {task}: {warning}" for warning in trust.warnings()]
    return lines
