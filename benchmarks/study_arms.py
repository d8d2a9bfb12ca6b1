"""The arms of the study: each trains the same encoder on the same labels, and changes one part of the method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from embedder.config.tasks import TaskSpec
from embedder.config.train import TrainConfig
from embedder.errors import ConfigError
from embedder.labelling.rewards import group_rewards, is_flat


@dataclass(frozen=True)
class Arm:
    """One way to train; the defaults are the method as in the paper."""

    name: str
    part: str
    """What it varies."""
    reward: Literal["rank", "likelihood", "labels"] = "rank"
    """Of the tasks that the LLM rewards; labels: their known positives alone, by the contrastive loss. There is no arm
    `lift`: what it takes off the likelihood is one number a query, which no softmax and no order notices."""
    loss: Literal["graded", "kl", "best"] = "graded"
    """Of the same tasks; best: contrastive, with the candidate of the greatest reward as positive."""
    batches: Literal["one_task", "mixed"] = "one_task"
    self_paced: Literal["off", "lossy_faster", "lossy_slower"] = "lossy_faster"
    instructions: bool = True
    task: str | None = None
    """The only task that is trained; null: all."""
    by_labels: tuple[str, ...] = ()
    """Tasks that learn from their known positives alone, whatever the others do."""

    def specs(self, tasks: Mapping[str, TaskSpec]) -> dict[str, TaskSpec]:
        """The tasks with this arm's losses and instructions."""
        found = {}
        for name, spec in tasks.items():
            if spec.reward != "none":
                alone = self.reward == "labels" or self.loss == "best" or name in self.by_labels
                loss = "contrastive" if alone else self.loss
                spec = spec.model_copy(update={"loss": loss})
            found[name] = spec if self.instructions else spec.without_instructions()
        return found

    def groups(self, groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The labelled groups (records.LABELLED) it learns from, with its rewards and its positives."""
        return [self._group(group) for group in groups if self.task in (None, group["task"])]

    def settings(self, train: TrainConfig, seed: int) -> TrainConfig:
        """The training; that of one task has as many steps as the task gets in that of all."""
        paced = train.self_paced.model_copy(update={"direction": self.self_paced})
        changes: dict[str, object] = {"batches": self.batches, "self_paced": paced, "seed": seed}
        if self.task is not None:
            share = train.task_weights[self.task] / sum(train.task_weights.values())
            changes |= {"steps": max(1, round(train.steps * share)), "task_weights": {self.task: 1.0}}
        return train.model_copy(update=changes)

    def _group(self, group: dict[str, Any]) -> dict[str, Any]:
        if group["scores"] is None or group["error"] is not None or self.reward == "labels":
            return group
        rewards = group_rewards(self.reward, group["base_scores"], group["scores"])
        if self.loss != "best":
            return {**group, "rewards": rewards}
        best = [int(reward == max(rewards) and not is_flat(rewards)) for reward in rewards]
        return {**group, "rewards": rewards, "relevance": best}


FULL = Arm("full", "reference")
RECIPE = Arm("recipe", "choice", by_labels=("qa",))
"""What the grid supports: rewards where labels say least, and labels where they say all."""
ARMS = (
    FULL,
    Arm("likelihood", "reward", reward="likelihood"),
    Arm("labels", "reward", reward="labels"),
    Arm("kl", "loss", loss="kl"),
    Arm("best", "loss", loss="best"),
    Arm("mixed", "batches", batches="mixed"),
    Arm("unpaced", "self-paced rate", self_paced="off"),
    Arm("inverse", "self-paced rate", self_paced="lossy_slower"),
    Arm("bare", "instructions", instructions=False),
    *(Arm(f"only-{task}", "one task", task=task) for task in ("qa", "tool", "chat", "convsearch", "icl", "lrlm")),
    RECIPE,
)


def arms_of(names: Sequence[str]) -> list[Arm]:
    """The arms of these names, all for none; the reference is always among them.

    Raises:
        ConfigError: an arm is not known.
    """
    unknown = sorted(set(names) - {arm.name for arm in ARMS})
    if unknown:
        raise ConfigError(f"arms {unknown} are not known; there are {', '.join(arm.name for arm in ARMS)}")
    return [arm for arm in ARMS if not names or arm is FULL or arm.name in names]
