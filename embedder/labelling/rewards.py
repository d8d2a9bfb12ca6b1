"""Rewards from log-likelihoods: pure numbers, so that they can be computed again without the LLM.

Scores are mean token log-likelihoods in nats; entry 0 is the desired output, the others are the sampled ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from embedder.answer_text import normalise_answer


def desired_rank(scores: Sequence[float]) -> float:
    """Rank of the desired output: 1 + outputs above it + half of those equal to it; 1 is best."""
    desired = scores[0]
    above = sum(score > desired for score in scores[1:])
    ties = sum(score == desired for score in scores[1:])
    return 1 + above + 0.5 * ties


def rank_reward(base: Sequence[float], with_candidate: Sequence[float]) -> float:
    """R(C) = rank without candidate - rank with candidate, in [-N, N] (paper, section on the rank-aware reward)."""
    return desired_rank(base) - desired_rank(with_candidate)


def group_rewards(kind: str, base: Sequence[float], scores: Sequence[Sequence[float]]) -> list[float]:
    """One reward a candidate.

    Raises:
        ValueError: a score is no number, or the kind is unknown; a made-up reward would be trained on.
    """
    if not all(math.isfinite(score) for row in (base, *scores) for score in row):
        raise ValueError("a log-likelihood is not finite")
    match kind:
        case "rank":
            return [rank_reward(base, row) for row in scores]
        case "likelihood":
            return [row[0] for row in scores]
        case "lift":
            return [row[0] - base[0] for row in scores]
        case _:
            raise ValueError(f"reward kind {kind!r}; use rank, likelihood or lift")


def is_flat(rewards: Sequence[float]) -> bool:
    """True if all rewards are equal, so that the group prefers no candidate."""
    return max(rewards) == min(rewards)


def is_saturated(base: Sequence[float]) -> bool:
    """True if the desired output is first without any candidate, so that no candidate can raise its rank."""
    return desired_rank(base) == 1


def distinct_samples(samples: Sequence[str], accepted: Sequence[str]) -> list[str]:
    """Sampled outputs without blank ones, copies of an accepted answer, and repetitions, in their order."""
    # An accepted answer is no rival of the desired one: to rank below it would be no fault.
    seen = {normalise_answer(answer) for answer in accepted}
    kept = []
    for sample in samples:
        if sample.strip() and normalise_answer(sample) not in seen:
            seen.add(normalise_answer(sample))
            kept.append(sample)
    return kept
