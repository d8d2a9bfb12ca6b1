"""Learning rates: linear warm-up and decay, and the self-paced factor of each task."""

from __future__ import annotations

from dataclasses import dataclass, field

from embedder.train_config import SelfPacedConfig


def linear_rate(step: int, steps: int, warmup_share: float) -> float:
    """Factor in [0, 1] of step 0..steps-1: rises linearly over the warm-up, then falls linearly towards 0."""
    warmup = int(steps * warmup_share)
    if step < warmup:
        return (step + 1) / warmup
    return (steps - step) / max(1, steps - warmup)


@dataclass
class SelfPaced:
    """Running loss of each task and its value at the last checkpoint of losses.

    The factor compares the two: a task whose loss has stayed high learns faster (`lossy_faster`). The same on every
    worker, since it is fed the loss of the global batch.
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

    def update(self, task: str, loss: float, step: int) -> None:
        """Take in the loss of one step; at each checkpoint step the running losses become the reference."""
        past = self.current.get(task, loss)
        self.current[task] = self.config.smoothing * past + (1 - self.config.smoothing) * loss
        self.reference.setdefault(task, self.current[task])
        if (step + 1) % self.config.checkpoint_every == 0:
            self.reference = dict(self.current)

    def state(self) -> dict[str, dict[str, float]]:
        """What a checkpoint keeps."""
        return {"current": dict(self.current), "reference": dict(self.reference)}

    def restore(self, state: dict[str, dict[str, float]]) -> None:
        """Undo `state`."""
        self.current, self.reference = dict(state["current"]), dict(state["reference"])
