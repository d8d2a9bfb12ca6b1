"""Learning rates: linear warm-up and decay, and the self-paced factor of each task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from embedder.config.train import SelfPacedConfig


def linear_rate(step: int, steps: int, warmup_share: float) -> float:
    """Factor in [0, 1] of step 0..steps-1: rises linearly over the warm-up, then falls linearly towards 0."""
    warmup = int(steps * warmup_share)
    if step < warmup:
        return (step + 1) / warmup
    return (steps - step) / max(1, steps - warmup)


class Pace(NamedTuple):
    """What the factors of its tasks make of one batch."""

    rate: float
    """Factor on the learning rate: the mean over the batch's queries."""
    weights: dict[str, float]
    """By task, the factor on its queries' losses: what its own factor is to that mean; 1 in a one-task batch."""


@dataclass
class SelfPaced:
    """Running loss of each task and its value at the last checkpoint of losses.

    The factor compares the two: a task whose loss has stayed high learns faster (`lossy_faster`). Until the first
    checkpoint the task's first loss stands for it. The same on every worker, since it is fed the loss of the global
    batch.
    """

    config: SelfPacedConfig
    current: dict[str, float] = field(default_factory=dict)
    reference: dict[str, float] = field(default_factory=dict)

    def factor(self, task: str) -> float:
        """The task's factor on the learning rate, within `bounds`; 1 before its first loss."""
        if self.config.direction == "off" or not self.reference.get(task) or not self.current[task]:
            return 1.0
        ratio = self.current[task] / self.reference[task]
        if self.config.direction == "lossy_slower":
            ratio = 1 / ratio
        low, high = self.config.bounds
        return min(max(ratio, low), high)

    def pace(self, queries: Mapping[str, int]) -> Pace:
        """The pace of a batch that holds so many queries of each task.

        Rate times weight is each task's own factor. Adam's step hardly knows the scale of a loss, so a one-task batch
        needs the factor on the rate; in a mixed one only a weight tells the tasks apart.
        """
        factors = {task: self.factor(task) for task in queries}
        total = sum(queries.values())
        rate = sum(factors[task] * (count / total) for task, count in queries.items())
        return Pace(rate, {task: factor / rate for task, factor in factors.items()})

    def update(self, task: str, loss: float, step: int) -> None:
        """Take in a task's loss of one step; at each checkpoint step the running losses become the reference."""
        past = self.current.get(task, loss)
        self.current[task] = self.config.smoothing * past + (1 - self.config.smoothing) * loss
        self.reference.setdefault(task, self.current[task])
        if (step + 1) % self.config.checkpoint_every == 0:
            self.reference = dict(self.current)

    def state(self) -> dict[str, dict[str, float]]:
        """What a checkpoint keeps: the arguments, besides `config`, of one that goes on alike."""
        return {"current": dict(self.current), "reference": dict(self.reference)}
