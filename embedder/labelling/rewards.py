"""Rewards from log-likelihoods: pure numbers, so that they can be computed again without the LLM.

Scores are mean token log-likelihoods in nats; entry 0 is the desired output, the others are its rivals. For rewards
without a desired output all entries are answers of the LLM itself.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from statistics import median

from embedder.answer_text import normalise_answer
from embedder.config.tasks import VERDICTS, TaskSpec


def desired_rank(scores: Sequence[float]) -> float:
    """Rank of the desired output: 1 + outputs above it + half of those equal to it; 1 is best."""
    desired = scores[0]
    above = sum(score > desired for score in scores[1:])
    ties = sum(score == desired for score in scores[1:])
    return 1 + above + 0.5 * ties


def rank_reward(base: Sequence[float], with_candidate: Sequence[float]) -> float:
    """R(C) = rank without candidate - rank with candidate, in [-N, N] (paper, section on the rank-aware reward)."""
    return desired_rank(base) - desired_rank(with_candidate)


def whole_margins(gains: Sequence[float], margin: float) -> list[float]:
    """Each gain as the group's best less whole margins: what is nearer to the best than one margin equals it."""
    if not gains or not margin:
        return list(gains)
    best = max(gains)
    return [best - margin * math.floor((best - gain) / margin) for gain in gains]


def mean_gain(base: Sequence[float], with_candidate: Sequence[float]) -> float:
    """How much likelier a candidate makes the LLM's own answers, which stand there as often as it wrote them.

    An estimate of E[log p(a | q, C) - log p(a | q)] over answers a that the LLM writes with all candidates before it.
    """
    return math.fsum(after - before for before, after in zip(base, with_candidate, strict=True)) / len(base)


def judged(base: Sequence[float], with_candidate: Sequence[float]) -> float:
    """The expected value of the LLM's verdict on a candidate, 0 to 1; log-likelihoods of VERDICTS, summed over tokens.

    Each probability is divided by what it is without a candidate, and they are made to sum to 1: an LLM that prefers
    "yes" whatever it reads then says nothing by it (contextual calibration, arXiv 2102.09690).
    """
    apart = [after - before for before, after in zip(base, with_candidate, strict=True)]
    weights = [math.exp(each - max(apart)) for each in apart]
    return math.fsum(map(operator.mul, weights, VERDICTS.values())) / math.fsum(weights)


def rank_then_gain(ranks: Sequence[float], gains: Sequence[float]) -> list[float]:
    """Rank rewards; where all are equal the gains, of which the best counts one rank above the worst."""
    if not gains or not is_flat(ranks) or is_flat(gains):
        return list(ranks)
    return [(gain - min(gains)) / (max(gains) - min(gains)) for gain in gains]


def summed(scores: Sequence[float], tokens: Sequence[int]) -> list[float]:
    """Sums over the tokens from means over them."""
    return [score * count for score, count in zip(scores, tokens, strict=True)]


def group_rewards(
    kind: str, base: Sequence[float], scores: Sequence[Sequence[float]], margin: float = 0.0
) -> list[float]:
    """One reward a candidate; `margin` (nats) is that of the gain.

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
        case "gain":
            return whole_margins([row[0] - base[0] for row in scores], margin)
        case "rank_then_gain":
            ranks, gains = (group_rewards(part, base, scores, margin) for part in ("rank", "gain"))
            return rank_then_gain(ranks, gains)
        case "own_answers":
            return whole_margins([mean_gain(base, row) for row in scores], margin)
        case "judgement":
            return [judged(base, row) for row in scores]
        case _:
            raise ValueError(
                f"reward kind {kind!r}; use rank, likelihood, gain, rank_then_gain, own_answers or judgement"
            )


def task_rewards(
    task: TaskSpec, base: Sequence[float], scores: Sequence[Sequence[float]], tokens: Sequence[int] | None
) -> list[float]:
    """One reward a candidate, as the settings of the task say.

    Args:
        task: Its kind of reward, margin, and whether sums or means count.
        base: Mean log-likelihoods of the outputs without a candidate.
        scores: The same with each candidate.
        tokens: How many tokens of each output were scored; null in labels made before they were kept.

    Raises:
        ValueError: as `group_rewards`; or sums are wanted, and the tokens are not known.
    """
    if task.reward_sum == "sum" or task.reward == "judgement":
        if tokens is None:
            raise ValueError("the numbers of tokens are not known, without which there are no sums")
        base, scores = summed(base, tokens), [summed(row, tokens) for row in scores]
    return group_rewards(task.reward, base, scores, task.reward_margin)


def spread(rewards: Sequence[float]) -> float:
    """Standard deviation of the rewards of a group."""
    # Exact sums, so that neither the order of the candidates nor the machine changes a digit.
    mean = math.fsum(rewards) / len(rewards)
    return math.sqrt(math.fsum((reward - mean) ** 2 for reward in rewards) / len(rewards))


def median_spread(groups: Iterable[Sequence[float]]) -> float:
    """The reward temperature by rule: the median of the spreads of the groups that are not flat; 1 without any.

    Rewards divided by it do not change when all rewards are scaled, so one rule serves every kind of reward.
    """
    spreads = [spread(rewards) for rewards in groups if rewards and not is_flat(rewards)]
    return median(spreads) if spreads else 1.0


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
