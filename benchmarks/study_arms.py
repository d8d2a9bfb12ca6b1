"""The arms of the study: ways to teach the same encoder from the same labelled groups, each for the same steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from benchmarks.study_protocol import TRAININGS, Training
from embedder.config.tasks import TaskSpec
from embedder.config.train import TrainConfig, ValidationConfig
from embedder.data.records import Split
from embedder.errors import ConfigError
from embedder.labelling.rewards import group_rewards
from embedder.training.control import shuffle_rewards

Group = dict[str, Any]
Answers = Mapping[str, Mapping[str, str | None]]
"""Dataset -> passage id -> answer of the worked example that it is."""


@dataclass(frozen=True)
class Arm:
    """One way to teach; the defaults are the method as it is shipped."""

    name: str
    says: str
    """What it is, for the page."""
    teacher: Literal["rewards", "shuffled", "labels"] = "rewards"
    """`shuffled`: the rewards permuted within each group, so that the LLM says nothing and all else is equal.
    `labels`: known positives alone, by the contrastive loss; of a worked example those with the query's own answer."""
    reward: Literal["rank", "likelihood"] | None = None
    """Kind of reward, made anew from the stored scores; null: the one that was labelled."""
    steps: float = 1.0
    """The training has so many times the steps of the run file."""
    batch: float = 1.0
    """A batch has so many times the queries of the run file."""
    trainings: int = TRAININGS
    split: Split = "test"
    """`test`: judged on test queries, of data sets it never saw. `dev`: compared with `full` on the dev queries of the
    data sets that it learns from, to choose and not to claim."""

    def specs(self, tasks: Mapping[str, TaskSpec]) -> dict[str, TaskSpec]:
        """The tasks with this arm's losses."""
        by_label = {"loss": "contrastive"} if self.teacher == "labels" else {}
        return {name: spec.model_copy(update=by_label) for name, spec in tasks.items()}

    def groups(self, groups: Sequence[Group], training: Training, answers: Answers) -> list[Group]:
        """The labelled groups (records.LABELLED) that a training learns from, as this arm teaches them."""
        taught = [self._group(group, answers) for group in groups if group["dataset"] in training.learned]
        # By the row alone, so that every training is misled by the same rewards.
        return shuffle_rewards(taught, 0) if self.teacher == "shuffled" else taught

    def settings(self, train: TrainConfig, training: Training, tasks: Sequence[str]) -> TrainConfig:
        """The training of the tasks that have groups; a task has as many steps in every arm, whatever the others have.

        Raises:
            ConfigError: the run file leaves the shares of the tasks to the numbers of groups, which differ by arm.
        """
        if not train.task_weights:
            raise ConfigError("train.task_weights is empty; name the share of each task, which must not differ by arm")
        taught = {task: weight for task, weight in train.task_weights.items() if task in tasks}
        share = sum(taught.values()) / sum(train.task_weights.values())
        changes = {
            "steps": max(1, round(self.steps * train.steps * share)),
            "batch_size": round(self.batch * train.batch_size),
            "task_weights": taught,
            "seed": training.number,
            "validation": self.validation(train, training),
        }
        return train.model_copy(update=changes)

    def validation(self, train: TrainConfig, training: Training) -> ValidationConfig | None:
        """The validation split, which each training draws anew."""
        return train.validation and train.validation.model_copy(update={"seed": training.number})

    def record(self) -> dict[str, Any]:
        """What decides its trainings, for the file of values."""
        return {key: value for key, value in asdict(self).items() if key not in {"says", "trainings"}}

    def _group(self, group: Group, answers: Answers) -> Group:
        if self.teacher == "labels":
            own = answers.get(group["dataset"], {})
            if any(own.values()):
                wanted = group["answers"][:1]
                return {**group, "relevance": [int([own.get(each)] == wanted) for each in group["candidate_ids"]]}
            return group
        if group["rewards"] is None or self.reward is None:
            return group
        return {**group, "rewards": group_rewards(self.reward, group["base_scores"], group["scores"])}


FULL = Arm("full", "the method: the LLM's rewards where a task has them, known positives elsewhere")
SHUFFLED = Arm("shuffled", "the same, the rewards permuted within each group", teacher="shuffled")
LABELS = Arm("labels", "known positives alone", teacher="labels")
FEW = 2
"""Trainings of an arm that is only compared on dev: one a direction."""
ARMS = (
    FULL,
    SHUFFLED,
    LABELS,
    Arm("longer", "twice the steps", steps=2, trainings=FEW, split="dev"),
    Arm("large", "batches twice as large, half the steps", batch=2, steps=0.5, trainings=FEW, split="dev"),
    Arm("likelihood", "likelihood rewards in every task", reward="likelihood", trainings=FEW, split="dev"),
)


def arms_of(names: Sequence[str]) -> list[Arm]:
    """The arms of these names, all for none; the method itself is always among them.

    Raises:
        ConfigError: an arm is not known.
    """
    unknown = sorted(set(names) - {arm.name for arm in ARMS})
    if unknown:
        raise ConfigError(f"arms {unknown} are not known; there are {', '.join(arm.name for arm in ARMS)}")
    return [arm for arm in ARMS if not names or arm is FULL or arm.name in names]
