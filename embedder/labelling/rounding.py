"""What bfloat16 does to rank rewards: a sample of labelled groups, compared with the same groups scored in float32."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from heapq import nsmallest
from typing import Any

from embedder.config.tasks import OWN_REWARDS, TaskSpec
from embedder.hashing import content_id
from embedder.labelling.rewards import rank_reward, summed

Row = Mapping[str, Any]
"""A row of `records.LABELLED`."""
Scores = Sequence[Sequence[float]]
"""Log-likelihoods of the outputs of a group: without a candidate, then with each."""


@dataclass(frozen=True)
class Rounding:
    """How far rank rewards from bfloat16 are from those from float32."""

    groups: int
    rewards: int
    differing: int
    """Rewards that are another number of ranks."""
    most_ranks: float
    """Greatest difference of two of them."""
    best_differs: int
    """Groups in which no candidate is best by both."""
    mean_nats: float
    """Mean difference of two log-likelihoods, without its sign."""

    def line(self) -> str:
        """One line for the report."""
        return (
            f"bfloat16 beside float32, on {self.groups:,} groups: {self.differing:,} of {self.rewards:,} rank rewards "
            f"differ ({self.differing / self.rewards:.1%}), the most by {self.most_ranks:g}; the best candidate "
            f"differs in {self.best_differs:,} groups, log-likelihoods by {self.mean_nats:.2g} nats on average"
        )


def draw_sample(rows: Iterable[Row], count: int, seed: int) -> list[Row]:
    """At most `count` rows with rank rewards to compare, drawn evenly by a seeded hash of `row_id`."""
    # Without rivals no rank can change, and the LLM's own answers are none.
    ranked = (
        row for row in rows if row["rewards"] and len(row["base_scores"] or ()) > 1 and row["reward"] not in OWN_REWARDS
    )
    return nsmallest(count, ranked, key=lambda row: content_id(seed, "rounding", row["row_id"]))


def compare_rounding(rows: Sequence[Row], exact: Sequence[Scores], tasks: Mapping[str, TaskSpec]) -> Rounding | None:
    """The rows' own scores beside exact ones of the same outputs; None without rows."""
    if not rows:
        return None
    apart, best_differs, nats = list[float](), 0, list[float]()
    for row, exact_scores in zip(rows, exact, strict=True):
        scores = [row["base_scores"], *row["scores"]]
        sums = tasks[row["task"]].reward_sum == "sum"
        own, other = (_rank_rewards(each, row["output_tokens"] if sums else None) for each in (scores, exact_scores))
        apart += [abs(one - two) for one, two in zip(own, other, strict=True)]
        best_differs += not _best(own) & _best(other)
        for one, two in zip(scores, exact_scores, strict=True):
            nats += [abs(left - right) for left, right in zip(one, two, strict=True)]
    return Rounding(
        groups=len(rows),
        rewards=len(apart),
        differing=sum(each > 0 for each in apart),
        most_ranks=max(apart),
        best_differs=best_differs,
        mean_nats=sum(nats) / len(nats),
    )


def _rank_rewards(scores: Scores, tokens: Sequence[int] | None) -> list[float]:
    """One a candidate; by sums over the tokens where their numbers are given."""
    base, *others = scores if tokens is None else [summed(row, tokens) for row in scores]
    return [rank_reward(base, row) for row in others]


def _best(rewards: Sequence[float]) -> set[int]:
    return {i for i, reward in enumerate(rewards) if reward == max(rewards)}


def rounding_numbers(rounding: Rounding | str | None) -> dict[str, Any] | str | None:
    """The numbers by name, or why there are none."""
    return asdict(rounding) if isinstance(rounding, Rounding) else rounding
